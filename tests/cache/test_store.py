"""The behaviour that all cache stores share, and that of each store."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pickle
import stat
import struct
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmopt
from llmopt.cache.disk import DiskStore, WriteBuffer
from llmopt.cache.store import (
    CacheStore,
    LRUCache,
    MemoryStore,
    SafeStore,
    read_record,
    write_record,
)
from tests.cache.stores import item, key, opened

Make = Callable[[Path], CacheStore]
STORES: dict[str, Make] = {
    "memory": lambda _: MemoryStore(),
    "disk": DiskStore,
    "layered": lambda folder: SafeStore(DiskStore(folder), MemoryStore()),
    "guarded": lambda folder: SafeStore(DiskStore(folder)),
}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CacheStore]:
    cache = STORES[request.param](tmp_path / "kept")
    yield cache
    await cache.aclose()


async def test_get_returns_the_values_in_the_order_of_the_keys(store: CacheStore) -> None:
    """None for a missing key; the newest value of a key that was put twice."""
    await store.put([item(1), item(2)])
    await store.put([item(2, b"newer")])
    assert list(await store.get([key(2), key(9), key(1), key(2)])) == [b"newer", None, b"value 1", b"newer"]
    assert list(await store.get([])) == []


async def test_entries_can_be_removed_by_key_by_group_and_all_at_once(store: CacheStore) -> None:
    """Also entries that are not written yet."""
    await store.put([item(number, group=f"g{number % 2}") for number in range(10)])
    await store.remove([key(0), key(99)])
    assert list(await store.get([key(0), key(2)])) == [None, b"value 2"]
    await store.clear("g0")
    assert list(await store.get([key(2), key(3)])) == [None, b"value 3"]
    await store.put([item(4)])
    await store.clear()
    assert list(await store.get([key(number) for number in range(10)])) == [None] * 10
    assert (await store.size()).entries == 0


async def test_size_has_entries_bytes_and_groups(store: CacheStore) -> None:
    await store.put([item(1), item(2, group="h"), item(3, b"x" * 1000, group="h")])
    size = await store.size()
    assert (size.entries, dict(size.groups)) == (3, {"g": 1, "h": 2})
    assert 1000 < size.bytes < size.max_bytes


async def test_a_closed_store_opens_again(store: CacheStore) -> None:
    """Closing twice is no error. Only a SafeStore stays closed: a client closes it at its end."""
    await store.put([item(1)])
    await store.aclose()
    await store.aclose()
    await store.put([item(2)])
    guarded = isinstance(store, SafeStore)
    assert (await store.get([key(2)]))[0] == (None if guarded else b"value 2")


async def test_more_values_than_fit_into_one_statement(store: CacheStore) -> None:
    items = [item(number, os.urandom(number % 7 * 900)) for number in range(1_777)]
    await store.put(items)
    # On disk a read may overtake entries in the write buffer; closing writes them all.
    if not isinstance(store, SafeStore):
        await store.aclose()
    assert list(await store.get([each.key for each in items])) == [each.value for each in items]


async def test_the_memory_store_evicts_the_least_recently_used() -> None:
    """A value that is larger than the store is not cache."""
    store = MemoryStore(max_bytes=10_000)
    await store.put([item(number, b"x" * 1_000) for number in range(8)])
    await store.get([key(0)])
    await store.put([item(8, b"x" * 1_000)])
    values = await store.get([key(0), key(1), key(8)])
    assert [value is not None for value in values] == [True, False, True]
    await store.put([item(9, b"x" * 20_000)])
    assert await store.get([key(9)]) == [None]
    size = await store.size()
    assert size.bytes <= 10_000
    assert size.evicted == 1


async def test_files_are_private(tmp_path: Path) -> None:
    """The folder is 0700 and all files are 0600, whatever the umask of the process."""
    umask = os.umask(0)
    try:
        store = DiskStore(tmp_path / "a" / "b")
        await store.put([item(1)])
        await store.size()
        folder = tmp_path / "a" / "b"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
        assert {"cache-1.db", "cache-1.db-wal", "cache-1.db-shm"} <= set(modes)
        assert set(modes.values()) == {0o600}
        await store.aclose()
    finally:
        os.umask(umask)


async def test_nothing_is_opened_before_it_is_needed(tmp_path: Path) -> None:
    """Neither a file nor a thread exists."""
    threads = threading.active_count()
    async with opened(tmp_path / "kept") as store:
        assert await store.get([]) == []
    assert not (tmp_path / "kept").exists()
    assert threading.active_count() == threads


async def test_a_second_disk_store_reads_what_the_first_wrote(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        await store.put([item(1)])
    async with opened(tmp_path) as store:
        assert await store.get([key(1)]) == [b"value 1"]


async def test_the_disk_store_evicts_the_least_recently_used(tmp_path: Path) -> None:
    """In batches; the size of the file is bounded."""
    wall = [1_000_000.0]
    max_bytes = 4 << 20
    async with opened(tmp_path, max_bytes=max_bytes, wall=lambda: wall[0]) as store:
        for start in range(0, 4_000, 200):
            await store.put([item(start + each, os.urandom(4_000)) for each in range(200)])
            await store.size()
            wall[0] += 100
            # The first entries stay in use.
            await store.get([key(each) for each in range(50)])
        size = await store.size()
        assert size.bytes <= max_bytes
        assert size.evicted > 2_000
        first, early, last = await store.get([key(0), key(900), key(3_999)])
        assert first is not None
        assert early is None
        assert last is not None
    assert (tmp_path / "cache-1.db").stat().st_size < 2 * max_bytes


async def test_expired_entries_are_deleted(tmp_path: Path) -> None:
    """Before any entry has to be evicted."""
    wall = [1_000_000.0]
    async with opened(tmp_path, wall=lambda: wall[0]) as store:
        await store.put([item(1, until=1_000_100.0), item(2, until=2_000_000.0)])
        await store.size()
    wall[0] += 1_000
    async with opened(tmp_path, wall=lambda: wall[0]) as store:
        # The first write of a store deletes them.
        await store.put([item(3)])
        assert (await store.size()).entries == 2
        assert await store.get([key(1), key(2)]) == [None, b"value 2"]


async def test_the_time_of_use_is_written_once_a_minute(tmp_path: Path) -> None:
    """So that reading rarely writes."""
    import sqlite3

    wall = [1_000_000.0]

    def used() -> int:
        connection = sqlite3.connect(tmp_path / "cache-1.db")
        (seconds,) = connection.execute("SELECT used FROM entries").fetchone()
        connection.close()
        return int(seconds)

    async with opened(tmp_path, wall=lambda: wall[0]) as store:
        await store.put([item(1)])
        await store.size()
        for passed, expected in ((30, 1_000_000), (61, 1_000_091), (30, 1_000_091)):
            wall[0] += passed
            await store.get([key(1)])
            await store.size()
            assert used() == expected


def test_the_write_buffer_is_bounded_and_drops_the_oldest_entries() -> None:
    """The disk may be slower than the callers."""
    buffer = WriteBuffer()
    buffer.add(item(number, b"x" * (1 << 20)) for number in range(100))
    items, _ = buffer.pop_batch(1_000)
    assert len(items) < 64
    assert items[-1].key == key(99)
    assert items[0].key == key(100 - len(items))


def test_the_write_buffer_has_one_writer_at_a_time() -> None:
    """The writer goes on until the buffer is empty."""
    buffer = WriteBuffer()
    assert not buffer.start_flush()
    buffer.add([item(1)])
    assert buffer.start_flush()
    assert not buffer.start_flush()
    buffer.add([item(2)])
    assert buffer.end_batch()
    buffer.pop_batch(10)
    assert not buffer.end_batch()
    buffer.add([item(3)])
    assert buffer.start_flush()
    assert not buffer.end_batch(stop=True)


class Failing:
    """A store of the user in which every call fails or hangs."""

    def __init__(self, how: str) -> None:
        self.how = how

    async def _fail(self, *_: object) -> Any:
        if self.how == "hangs":
            await asyncio.sleep(3600)
        if self.how == "nonsense":
            return ["not bytes", 3, None]
        raise RuntimeError("canary-text of a database driver")

    get = put = remove = clear = size = aclose = _fail


@pytest.mark.parametrize("how", ["raises", "nonsense"])
async def test_a_store_that_fails_is_a_miss(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """One warning, with the place of the error and without its message."""
    store = SafeStore(Failing(how))
    for _ in range(3):
        assert await store.get([key(1), key(2)]) == [None, None]
        await store.put([item(1)])
        await store.remove([key(1)])
        await store.clear()
        assert (await store.size()).entries == 0
        await store.aclose()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == (how == "raises")
    if how == "raises":
        line = Failing._fail.__code__.co_firstlineno + 5
        assert f"failed with RuntimeError (cache/test_store.py, line {line})" in caplog.text
    assert "canary" not in caplog.text


def test_a_store_that_hangs_is_a_miss_after_two_seconds() -> None:
    from llmopt.testing.clock import SimulatedClock, run_simulated

    async def main(clock: SimulatedClock) -> float:
        assert await SafeStore(Failing("hangs")).get([key(1)]) == [None]
        return clock.elapsed

    assert run_simulated(main) == 2.0


def test_a_client_without_a_disk_cache_does_not_import_sqlite() -> None:
    import subprocess

    code = (
        "import llmopt, sys; llmopt.AsyncClient({}); "
        "assert 'sqlite3' not in sys.modules, 'sqlite3'; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


async def test_what_was_found_in_the_store_is_kept_in_memory() -> None:
    """Only the keys that memory does not have are asked of the store; what is cleared is gone from both."""
    below = MemoryStore()
    asked: list[int] = []

    class Counting(MemoryStore):
        async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
            asked.append(len(keys))
            return await below.get(keys)

        clear = below.clear

    await below.put([item(1), item(2)])
    store = SafeStore(Counting(), MemoryStore())
    await store.put([item(3)])
    for _ in range(2):
        assert await store.get([key(3), key(1)]) == [b"value 3", b"value 1"]
    assert asked == [1]
    await store.clear("g")
    assert await store.get([key(3), key(1)]) == [None, None]


async def test_several_clients_can_share_a_store(tmp_path: Path) -> None:
    """A client does not close a store that it did not open."""
    async with opened(tmp_path) as store:
        for _ in range(2):
            async with llmopt.AsyncClient({}, cache=store) as client:
                assert len(await client.list_models("local")) > 0
        assert (await store.size()).groups == {"catalog/local": 1}


# Encoding and decoding of records.

KIND = b"TST1"
KEY = bytes(range(32))
NOW = 1_790_000_000.0


def written(head: bytes = b"head", body: bytes = b"the body", **more: object) -> bytes:
    return write_record(**{"kind": KIND, "key": KEY, "created": NOW, "head": head, "body": body, **more})  # type: ignore[arg-type] # as the test likes


@given(
    st.binary(max_size=100),
    st.binary(max_size=3_000),
    st.floats(0, 1e11),
    st.binary(min_size=32, max_size=32),
)
def test_a_written_record_is_read_back(head: bytes, body: bytes, created: float, key: bytes) -> None:
    record = read_record(KIND, key, write_record(KIND, key, created, head, body))
    assert record is not None
    assert (record.head, bytes(record.body), record.created) == (head, body, created)


@pytest.mark.row("K03")
def test_every_flipped_bit_is_detected() -> None:
    data = written()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            assert read_record(KIND, KEY, bytes(changed)) is None, (at, bit)


@pytest.mark.row("K03")
def test_every_truncation_is_detected() -> None:
    """And any byte after the end."""
    data = written()
    for length in range(len(data)):
        assert read_record(KIND, KEY, data[:length]) is None
    assert read_record(KIND, KEY, data + b"\0") is None


@pytest.mark.row("K03")
def test_a_record_of_another_key_is_rejected() -> None:
    assert read_record(KIND, bytes(32), written()) is None


def test_a_record_of_another_kind_is_rejected() -> None:
    assert read_record(b"TST2", KEY, written()) is None


@pytest.mark.parametrize("created", [math.nan, math.inf, -math.inf, -1.0, 1e12])
def test_an_invalid_date_is_rejected(created: float) -> None:
    """Even with a valid checksum."""
    assert read_record(KIND, KEY, written(created=created)) is None


@pytest.mark.row("S06")
@given(st.binary(max_size=400))
def test_random_bytes_are_rejected_without_an_exception(data: bytes) -> None:
    assert read_record(KIND, KEY, data) is None


@pytest.mark.row("S06")
def test_a_pickle_is_rejected() -> None:
    assert read_record(KIND, KEY, pickle.dumps({"a": 1})) is None


def test_a_head_length_beyond_the_end_is_rejected() -> None:
    """Even with a valid checksum."""
    from zlib import crc32

    data = struct.pack("<4sdI", KIND, NOW, 2**32 - 1) + b"short"
    assert read_record(KIND, KEY, data + struct.pack("<I", crc32(data, crc32(KEY)))) is None


# The LRU cache.

OVERHEAD = 200
"""Bytes that each entry counts for besides its value."""


def test_a_value_may_change_size_while_it_is_cached() -> None:
    """Its removal subtracts the size that it had when it was put."""
    cache: LRUCache[str, list[int]] = LRUCache(10_000, len)
    value = [1] * 50
    cache.put("a", value)
    value.extend([2] * 500)
    cache.remove("a")
    assert cache.bytes == 0


def test_a_value_larger_than_the_cache_evicts_only_its_old_value() -> None:
    cache: LRUCache[str, bytes] = LRUCache(1_000, len)
    cache.put("a", b"")
    cache.put("b", b"old")
    cache.put("b", b"x" * 1_000)
    assert cache.evicted == 0
    assert dict(cache.items()) == {"a": b""}


def test_a_cache_may_be_exactly_full() -> None:
    cache: LRUCache[str, bytes] = LRUCache(2 * OVERHEAD + 100, len)
    cache.put("a", bytes(OVERHEAD + 100))
    assert len(cache) == 1
    cache.put("a", bytes(60))
    cache.put("b", bytes(40))
    assert (len(cache), cache.evicted) == (2, 0)
    cache.put("b", bytes(41))
    assert cache.evicted == 1


OPS = st.lists(st.tuples(st.sampled_from("gpr"), st.integers(0, 8), st.integers(0, 600)), max_size=60)


@given(OPS)
def test_the_cache_behaves_like_a_plain_list(operations: list[tuple[str, int, int]]) -> None:
    """The same contents, in the same order, within the same bound."""
    cache: LRUCache[int, bytes] = LRUCache(2_000, len)
    plain: list[tuple[int, int]] = []
    evicted = 0
    for what, name, size in operations:
        present = next((each for each in plain if each[0] == name), None)
        if what == "g":
            assert cache.get(name) == (None if present is None else bytes(present[1]))
            if present is not None:
                plain.remove(present)
                plain.append(present)
        elif what == "r":
            cache.remove(name)
            if present is not None:
                plain.remove(present)
        elif what == "p":
            if present is not None:
                plain.remove(present)
            plain.append((name, size))
            while sum(each[1] + OVERHEAD for each in plain) > 2_000:
                plain.pop(0)
                evicted += 1
            cache.put(name, bytes(size))
        assert [(each, len(value)) for each, value in cache.items()] == plain
        assert cache.bytes == sum(each[1] + OVERHEAD for each in plain) <= 2_000
        assert len(cache) == len(plain)
    assert cache.evicted == evicted
