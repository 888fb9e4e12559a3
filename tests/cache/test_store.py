"""Behaviour that all cache stores share, and what each adds."""

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
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmopt
from llmopt.cache.disk import DiskStore, WriteBuffer
from llmopt.cache.store import (
    CacheStore,
    LayeredStore,
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
    "layered": lambda folder: LayeredStore(MemoryStore(), DiskStore(folder)),
    "guarded": lambda folder: SafeStore(DiskStore(folder)),
}


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CacheStore]:
    made = STORES[request.param](tmp_path / "kept")
    yield made
    await made.aclose()


async def test_what_is_put_can_be_had(store: CacheStore) -> None:
    """In the order that is asked for, None for what is not there; the newest value of a key."""
    await store.put([item(1), item(2)])
    await store.put([item(2, b"newer")])
    assert list(await store.get([key(2), key(9), key(1), key(2)])) == [b"newer", None, b"value 1", b"newer"]
    assert list(await store.get([])) == []


async def test_removing(store: CacheStore) -> None:
    """Keys, a group, everything; also what is not written yet."""
    await store.put([item(number, group=f"g{number % 2}") for number in range(10)])
    await store.remove([key(0), key(99)])
    assert list(await store.get([key(0), key(2)])) == [None, b"value 2"]
    await store.clear("g0")
    assert list(await store.get([key(2), key(3)])) == [None, b"value 3"]
    await store.put([item(4)])
    await store.clear()
    assert list(await store.get([key(number) for number in range(10)])) == [None] * 10
    assert (await store.size()).entries == 0


async def test_size(store: CacheStore) -> None:
    """Entries, bytes, groups."""
    await store.put([item(1), item(2, group="h"), item(3, b"x" * 1000, group="h")])
    size = await store.size()
    assert (size.entries, dict(size.groups)) == (3, {"g": 1, "h": 2})
    assert 1000 < size.bytes < size.max_bytes


async def test_closed_and_used_again(store: CacheStore) -> None:
    """Closing twice does no harm, and is not the end; but for a guarded one, which a client closes for good."""
    await store.put([item(1)])
    await store.aclose()
    await store.aclose()
    await store.put([item(2)])
    guarded = isinstance(store, SafeStore)
    assert (await store.get([key(2)]))[0] == (None if guarded else b"value 2")


async def test_many_values_at_once(store: CacheStore) -> None:
    """More than fit into one statement, some of them large."""
    items = [item(number, os.urandom(number % 7 * 900)) for number in range(1_777)]
    await store.put(items)
    # On disk a read may pass those that wait in line; closing writes them all.
    if not isinstance(store, SafeStore):
        await store.aclose()
    assert list(await store.get([each.key for each in items])) == [each.value for each in items]


async def test_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    """Least recently used first; one that is too large alone is not kept."""
    store = MemoryStore(max_bytes=10_000)
    await store.put([item(number, b"x" * 1_000) for number in range(8)])
    await store.get([key(0)])
    await store.put([item(8, b"x" * 1_000)])
    found = await store.get([key(0), key(1), key(8)])
    assert [value is not None for value in found] == [True, False, True]
    await store.put([item(9, b"x" * 20_000)])
    assert await store.get([key(9)]) == [None]
    size = await store.size()
    assert size.bytes <= 10_000
    assert size.evicted == 1


async def test_files_are_private(tmp_path: Path) -> None:
    """The folder 0700, all files 0600, whatever the process's umask."""
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
    """No file, no thread."""
    threads = threading.active_count()
    async with opened(tmp_path / "kept") as store:
        assert await store.get([]) == []
    assert not (tmp_path / "kept").exists()
    assert threading.active_count() == threads


async def test_disk_goes_on_in_another_store(tmp_path: Path) -> None:
    """What one process wrote another reads."""
    async with opened(tmp_path) as store:
        await store.put([item(1)])
    async with opened(tmp_path) as store:
        assert await store.get([key(1)]) == [b"value 1"]


async def test_disk_is_bounded(tmp_path: Path) -> None:
    """What was not used for the longest time goes, in batches; the file does not grow for ever."""
    wall = [1_000_000.0]
    most = 4 << 20
    async with opened(tmp_path, max_bytes=most, wall=lambda: wall[0]) as store:
        for start in range(0, 4_000, 200):
            await store.put([item(start + each, os.urandom(4_000)) for each in range(200)])
            await store.size()
            wall[0] += 100
            # The first ones are used all the time.
            await store.get([key(each) for each in range(50)])
        size = await store.size()
        assert size.bytes <= most
        assert size.evicted > 2_000
        first, early, last = await store.get([key(0), key(900), key(3_999)])
        assert first is not None
        assert early is None
        assert last is not None
    assert (tmp_path / "cache-1.db").stat().st_size < 2 * most


async def test_what_is_of_no_use_any_more_goes(tmp_path: Path) -> None:
    """Cleaning up, before anything else has to go."""
    wall = [1_000_000.0]
    async with opened(tmp_path, wall=lambda: wall[0]) as store:
        await store.put([item(1, until=1_000_100.0), item(2, until=2_000_000.0)])
        await store.size()
    wall[0] += 1_000
    async with opened(tmp_path, wall=lambda: wall[0]) as store:
        # The first write of a store sees to it.
        await store.put([item(3)])
        assert (await store.size()).entries == 2
        assert await store.get([key(1), key(2)]) == [None, b"value 2"]


async def test_use_is_written_down_once_a_minute(tmp_path: Path) -> None:
    """Reading alone hardly ever writes."""
    import sqlite3

    wall = [1_000_000.0]

    def used() -> int:
        connection = sqlite3.connect(tmp_path / "cache-1.db")
        (found,) = connection.execute("SELECT used FROM entries").fetchone()
        connection.close()
        return int(found)

    async with opened(tmp_path, wall=lambda: wall[0]) as store:
        await store.put([item(1)])
        await store.size()
        for passed, expected in ((30, 1_000_000), (61, 1_000_091), (30, 1_000_091)):
            wall[0] += passed
            await store.get([key(1)])
            await store.size()
            assert used() == expected


def test_buffer_is_bounded_and_drops_the_oldest() -> None:
    """When the disk is slower than those who write."""
    buffer = WriteBuffer()
    buffer.add(item(number, b"x" * (1 << 20)) for number in range(100))
    items, _ = buffer.pop_batch(1_000)
    assert len(items) < 64
    assert items[-1].key == key(99)
    assert items[0].key == key(100 - len(items))


def test_buffer_has_one_writer() -> None:
    """Nobody else begins while one has it, and he has it until there is nothing left."""
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
    """A store of the user's own in which everything fails, or hangs."""

    def __init__(self, how: str) -> None:
        self.how = how

    async def _fail(self, *_: object) -> Any:
        if self.how == "hangs":
            await asyncio.sleep(3600)
        if self.how == "nonsense":
            return ["not bytes", 3, None]
        raise RuntimeError("canary-text of somebody's driver")

    get = put = remove = clear = size = aclose = _fail


@pytest.mark.parametrize("how", ["raises", "nonsense"])
async def test_a_store_that_fails_is_a_miss(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, without the text of its error."""
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
    assert "canary" not in caplog.text


def test_a_store_that_hangs_is_a_miss() -> None:
    """After two seconds."""
    from llmopt.testing.clock import SimulatedClock, run_simulated

    async def main(clock: SimulatedClock) -> float:
        assert await SafeStore(Failing("hangs")).get([key(1)]) == [None]
        return clock.elapsed

    assert run_simulated(main) == 2.0


def test_nothing_of_it_is_imported_with_llmopt() -> None:
    """sqlite3 least of all."""
    import subprocess

    code = (
        "import llmopt, sys; llmopt.AsyncClient({}); "
        "assert 'sqlite3' not in sys.modules, 'sqlite3'; print('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "fine", done.stderr


async def test_one_store_for_several_clients(tmp_path: Path) -> None:
    """A client does not close what it was given."""
    async with opened(tmp_path) as store:
        for _ in range(2):
            async with llmopt.AsyncClient({}, cache=store) as client:
                assert len(await client.list_models("local")) > 0
        assert (await store.size()).groups == {"catalog/local": 1}


# How values are written, and what is no value.

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
def test_what_is_written_is_read(head: bytes, body: bytes, created: float, key: bytes) -> None:
    """Every head, every body, to the last bit of the date."""
    record = read_record(KIND, key, write_record(KIND, key, created, head, body))
    assert record is not None
    assert (record.head, bytes(record.body), record.created) == (head, body, created)


@pytest.mark.row("K03")
def test_every_bit_that_flips_is_noticed() -> None:
    """Wherever it is."""
    data = written()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            assert read_record(KIND, KEY, bytes(changed)) is None, (at, bit)


@pytest.mark.row("K03")
def test_every_cut_is_noticed() -> None:
    """And anything that follows."""
    data = written()
    for length in range(len(data)):
        assert read_record(KIND, KEY, data[:length]) is None
    assert read_record(KIND, KEY, data + b"\0") is None


@pytest.mark.row("K03")
def test_another_keys_value_is_none() -> None:
    """A row that was moved in the table."""
    assert read_record(KIND, bytes(32), written()) is None


def test_another_kind_is_none() -> None:
    """A list of models is no vector."""
    assert read_record(b"TST2", KEY, written()) is None


@pytest.mark.parametrize("created", [math.nan, math.inf, -math.inf, -1.0, 1e12])
def test_a_date_that_is_none(created: float) -> None:
    """Even with a good checksum."""
    assert read_record(KIND, KEY, written(created=created)) is None


@pytest.mark.row("S06")
@given(st.binary(max_size=400))
def test_anything_at_all_is_none(data: bytes) -> None:
    """Never an exception, whatever the bytes."""
    assert read_record(KIND, KEY, data) is None


@pytest.mark.row("S06")
def test_a_pickle_is_none() -> None:
    """It is looked at as bytes."""
    assert read_record(KIND, KEY, pickle.dumps({"a": 1})) is None


def test_a_head_that_claims_to_be_longer_than_all() -> None:
    """With a checksum that fits."""
    from zlib import crc32

    data = struct.pack("<4sdI", KIND, NOW, 2**32 - 1) + b"short"
    assert read_record(KIND, KEY, data + struct.pack("<I", crc32(data, crc32(KEY)))) is None


# What was used last is kept, up to so many bytes: against a plain list.

EACH = 200


def test_a_value_may_change_while_it_is_kept() -> None:
    """What it took when it came is what is given back when it goes."""
    kept: LRUCache[str, list[int]] = LRUCache(10_000, len)
    value = [1] * 50
    kept.put("a", value)
    value.extend([2] * 500)
    kept.remove("a")
    assert kept.bytes == 0


def test_too_large_alone() -> None:
    """It is not kept, and nothing goes for it, but for what it was to replace."""
    kept: LRUCache[str, bytes] = LRUCache(1_000, len)
    kept.put("a", b"")
    kept.put("b", b"old")
    assert kept.put("b", b"x" * 1_000) == 0
    assert dict(kept.items()) == {"a": b""}


def test_exactly_full_is_not_too_full() -> None:
    """Neither for one value nor for all."""
    kept: LRUCache[str, bytes] = LRUCache(2 * EACH + 100, len)
    kept.put("a", bytes(EACH + 100))
    assert len(kept) == 1
    kept.put("a", bytes(60))
    assert kept.put("b", bytes(40)) == 0
    assert len(kept) == 2
    assert kept.put("b", bytes(41)) == 1


OPS = st.lists(st.tuples(st.sampled_from("gprc"), st.integers(0, 8), st.integers(0, 600)), max_size=60)


@given(OPS)
def test_like_a_plain_list(operations: list[tuple[str, int, int]]) -> None:
    """The same contents, in the same order, within the same bound."""
    kept: LRUCache[int, bytes] = LRUCache(2_000, len)
    plain: list[tuple[int, int]] = []
    gone = 0
    for what, name, size in operations:
        there = next((each for each in plain if each[0] == name), None)
        if what == "c" and size < 50:
            kept.clear()
            plain.clear()
        elif what == "g":
            assert kept.get(name) == (None if there is None else bytes(there[1]))
            if there is not None:
                plain.remove(there)
                plain.append(there)
        elif what == "r":
            kept.remove(name)
            if there is not None:
                plain.remove(there)
        elif what == "p":
            if there is not None:
                plain.remove(there)
            plain.append((name, size))
            while sum(each[1] + EACH for each in plain) > 2_000:
                plain.pop(0)
                gone += 1
            kept.put(name, bytes(size))
        assert [(each, len(value)) for each, value in kept.items()] == plain
        assert kept.bytes == sum(each[1] + EACH for each in plain) <= 2_000
        assert len(kept) == len(plain)
    assert kept.evicted == gone
