"""The embeddings cache: each text is paid for once, and vectors are never mixed up."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

import llmopt
from llmopt.cache.store import MemoryStore
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import CacheHit, CacheMiss
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    FaultServer,
    Poison,
    Request,
    answer_openai,
    embeddings_payload,
    json_answer,
    serving,
    vector_for,
)

MODEL = "s/m"


config = functools.partial(provider_config, name="s")


def rows(texts: list[str], dimensions: int = 4) -> np.ndarray[Any, Any]:
    return np.array([vector_for(text, dimensions) for text in texts], dtype=np.float32)


def sent(server: FaultServer) -> list[list[str]]:
    return [request.json()["input"] for request in server.requests if request.method == "POST"]


CHOICES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: "memory",
    "folder": lambda folder: folder,
    "folder as text": str,
    "store": lambda _: MemoryStore(),
}


@pytest.mark.parametrize("choice", CHOICES)
async def test_cached_texts_are_not_sent(choice: str, tmp_path: Path) -> None:
    """Nothing is sent, nothing is paid, and the vectors are the same to the last bit."""
    texts = [f"text {number}" for number in range(100)]
    async with FaultServer() as server:
        server.default(answer_openai)
        async with llmopt.AsyncClient(config(server), cache=CHOICES[choice](tmp_path / "kept")) as client:
            first = await client.embed(MODEL, texts)
            before = len(server.requests)
            again = await client.embed(MODEL, texts)
    assert len(server.requests) == before
    np.testing.assert_array_equal(again.vectors, first.vectors)
    assert again.vectors.flags.c_contiguous
    assert again.vectors.dtype == np.float32
    assert (again.usage, again.model, again.errors) == (llmopt.Usage(), first.model, {})
    again.vectors[0] = 7.0


async def test_one_call_combines_hits_and_misses(tmp_path: Path) -> None:
    """Order is kept, repeated texts among them; only what is missing is sent, and counted."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache="memory") as client:
        server.default(answer_openai)
        await client.embed(MODEL, ["b", "d"])
        found = await client.embed(MODEL, ["a", "b", "c", "a", "d", "b", "e"])
    assert sent(server) == [["b", "d"], ["a", "c", "e"]]
    np.testing.assert_array_equal(found.vectors, rows(["a", "b", "c", "a", "d", "b", "e"]))
    assert found.usage.requests == 1
    assert found.usage.prompt_tokens == 3


async def test_the_embedding_cache_is_off_by_default(tmp_path: Path) -> None:
    """Vectors are kept only where somebody asks for it."""
    for more in ({}, {"flags": {"cache": True}}):
        async with FaultServer() as server, llmopt.AsyncClient(config(server), **more) as client:
            server.default(answer_openai)
            await client.embed(MODEL, ["a"])
            await client.embed(MODEL, ["a"])
        assert len(sent(server)) == 2


SWITCHED_OFF: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {"cache": True}, {"cache": False}),
    ({}, {"cache": True}, {"cache": "off"}),
    ({}, {"cache": "memory", "flags": {"cache": False}}, {}),
    ({}, {}, {"cache": True, "flags": {"cache": False}}),
    ({"flags": {"cache": False}}, {"cache": True}, {}),
    ({"cache_ttl": 0}, {"cache": True}, {}),
]


@pytest.mark.parametrize(("entry", "top", "client"), SWITCHED_OFF)
async def test_the_embedding_cache_can_be_switched_off(
    entry: dict[str, Any], top: dict[str, Any], client: dict[str, Any], tmp_path: Path
) -> None:
    """By the client, by the configuration, for one provider, by a flag."""
    async with FaultServer() as server:
        server.default(answer_openai)
        settings = {**config(server, **entry), **top, "cache_dir": str(tmp_path / "kept")}
        async with llmopt.AsyncClient(settings, **client) as asking:
            for _ in range(2):
                await asking.embed(MODEL, ["a"])
                await asking.list_models("s")
    assert len(server.requests) == 4
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("value", [True, "disk", "FOLDER"])
async def test_the_configuration_switches_the_embedding_cache_on(value: bool | str, tmp_path: Path) -> None:
    """In ``cache_dir``, or in the folder that is named."""
    folder = tmp_path / "kept"
    async with FaultServer() as server:
        server.default(answer_openai)
        named = str(folder) if value == "FOLDER" else value
        settings = {**config(server), "cache": named, "cache_dir": str(folder)}
        for _ in range(2):
            async with llmopt.AsyncClient(settings) as client:
                await client.embed(MODEL, ["a"])
    assert len(sent(server)) == 1
    assert (folder / "cache-1.db").exists()


@pytest.mark.parametrize("wrong", [3, object(), "", b"x", "a\0b"])
def test_an_invalid_cache_argument_is_refused(wrong: Any) -> None:
    """Before any I/O."""
    with pytest.raises(llmopt.ConfigError, match="cache"):
        llmopt.AsyncClient({}, cache=wrong)


async def test_each_option_has_its_own_cached_vectors() -> None:
    """Dimensions, what the text is for, and whatever else goes into the body."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache="memory") as client:
        server.default(answer_openai)
        for _ in range(2):
            assert (await client.embed(MODEL, ["a"])).vectors.shape == (1, 4)
            assert (await client.embed(MODEL, ["a"], dimensions=8)).vectors.shape == (1, 8)
            await client.embed(MODEL, ["a"], input_type="query")
            await client.embed(MODEL, ["a"], extra={"novel": 1})
            await client.embed("s/other", ["a"])
    assert len(sent(server)) == 5


def named(model: str, dimensions: int = 4) -> Callable[[Request], Answer]:
    """A provider that says which model answers."""

    def answer(request: Request) -> Answer:
        return json_answer({**embeddings_payload(request, dimensions=dimensions), "model": model})

    return answer


@pytest.mark.row("P09")
async def test_vectors_are_cached_under_the_model_that_answered(tmp_path: Path) -> None:
    """The result says which; when another one answers to the name, what the first one gave is not mixed in."""
    async with FaultServer() as server:
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            server.default(named("m-2025"))
            assert (await client.embed(MODEL, ["a", "b"])).model == "m-2025"
            assert (await client.embed(MODEL, ["a", "b"])).model == "m-2025"
            assert len(sent(server)) == 1
            server.default(named("m-2026"))
            found = await client.embed(MODEL, ["a", "new", "b"])
            # The new one, and then those that do not belong to it.
            assert sent(server)[1:] == [["new"], ["a", "b"]]
            assert found.model == "m-2026"
            assert found.usage.requests == 2
            np.testing.assert_array_equal(found.vectors, rows(["a", "new", "b"]))
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            assert (await client.embed(MODEL, ["a", "new", "b"])).model == "m-2026"
            assert len(sent(server)) == 3


async def test_other_dimensions_are_a_miss() -> None:
    """Vectors of two lengths are not put into one array."""
    async with FaultServer() as server:
        server.default(named("m", 4))
        async with llmopt.AsyncClient(config(server), cache=MemoryStore()) as client:
            await client.embed(MODEL, ["a"])
            # Another client does not know yet how long the model's vectors are.
            client._components.model_states.clear()
            server.default(named("m", 8))
            found = await client.embed(MODEL, ["a", "b"])
    np.testing.assert_array_equal(found.vectors, rows(["a", "b"], 8))


def stored(folder: Path) -> list[tuple[bytes, bytes]]:
    connection = sqlite3.connect(folder / "cache-1.db")
    found = connection.execute(
        "SELECT key, value FROM entries WHERE substr(value, 1, 4)=CAST('LOV1' AS BLOB)"
    ).fetchall()
    connection.close()
    return found


def replace(folder: Path, change: Callable[[bytes, bytes], bytes]) -> None:
    connection = sqlite3.connect(folder / "cache-1.db")
    for key, value in stored(folder):
        connection.execute("UPDATE entries SET value=? WHERE key=?", (change(key, value), key))
    connection.commit()
    connection.close()


def summed(key: bytes, data: bytes) -> bytes:
    return data + struct.pack("<I", crc32(data, crc32(key)))


def fewer_dimensions(key: bytes, value: bytes) -> bytes:
    """Four numbers that say they are three, with a good checksum."""
    at = value.index(struct.pack("<I", 4), 16)
    return summed(key, value[:at] + struct.pack("<I", 3) + value[at + 4 : -4])


def from_the_future(key: bytes, value: bytes) -> bytes:
    (created,) = struct.unpack_from("<d", value, 4)
    return summed(key, value[:4] + struct.pack("<d", created + 3_600) + value[12:-4])


K03: dict[str, Callable[[bytes, bytes], bytes]] = {
    "a bit in a number": lambda _, value: value[:-6] + bytes([value[-6] ^ 1]) + value[-5:],
    "dimensions wrong, checksum right": fewer_dimensions,
    "no numbers at all": lambda key, value: summed(key, value[:-20]),
    "from the future": from_the_future,
    "of another model": lambda key, value: summed(key, value[:-4].replace(b"model-x", b"model-y")),
    "empty": lambda *_: b"",
}


@pytest.mark.row("K03")
@pytest.mark.parametrize("fault", K03)
async def test_a_damaged_entry_is_a_miss(fault: str, tmp_path: Path) -> None:
    """It is asked for again, and put right."""
    async with FaultServer() as server:
        server.default(named("model-x"))
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            await client.embed(MODEL, ["a"])
        assert len(stored(tmp_path)) == 1
        replace(tmp_path, K03[fault])
        for requests in (2, 2):
            async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
                found = await client.embed(MODEL, ["a"])
                np.testing.assert_array_equal(found.vectors, rows(["a"]))
            assert len(sent(server)) == requests


@pytest.mark.row("K03")
async def test_cached_vectors_of_two_lengths_are_not_mixed(tmp_path: Path) -> None:
    """Whole in themselves, but not of one model: the first one found decides."""

    def shortened(key: bytes, value: bytes) -> bytes:
        at = value.index(struct.pack("<I", 4), 16)
        return summed(key, value[:at] + struct.pack("<I", 3) + value[at + 4 : -8])

    async with FaultServer() as server:
        server.default(named("model-x"))
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            await client.embed(MODEL, ["a"])
        replace(tmp_path, shortened)
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            await client.embed(MODEL, ["b", "c"])
            client._components.model_states.clear()
            found = await client.embed(MODEL, ["b", "a", "c"])
            np.testing.assert_array_equal(found.vectors, rows(["b", "a", "c"]))
            assert sent(server)[-1] == ["a"]


@pytest.mark.row("K03")
async def test_the_length_of_cached_vectors_is_known(tmp_path: Path) -> None:
    """From an earlier answer, or because the call asks for it."""

    def shortened(key: bytes, value: bytes) -> bytes:
        at = value.index(struct.pack("<I", 4), 16)
        return summed(key, value[:at] + struct.pack("<I", 3) + value[at + 4 : -8])

    async with FaultServer() as server:
        server.default(answer_openai)
        for options in ({}, {"dimensions": 4}):
            async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
                await client.embed(MODEL, ["a"], **options)
            replace(tmp_path, shortened)
            async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
                await client.embed(MODEL, ["seen"], **options)
                found = await client.embed(MODEL, ["a"], **options)
                np.testing.assert_array_equal(found.vectors, rows(["a"]))


async def test_the_stored_form_of_a_vector(tmp_path: Path) -> None:
    """Little-endian float32, its length, its model, a checksum."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache=tmp_path) as client:
        server.default(named("model-x"))
        await client.embed(MODEL, ["a"])
        await client.aclose()
    ((key, value),) = stored(tmp_path)
    kind, _, length = struct.unpack_from("<4sdI", value)
    assert (kind, length) == (b"LOV1", 4 + len("model-x"))
    assert value[16:20] == struct.pack("<I", 4)
    assert value[20:27] == b"model-x"
    assert value[27:-4] == rows(["a"]).astype("<f4").tobytes()
    assert struct.unpack("<I", value[-4:])[0] == crc32(value[:-4], crc32(key))


@pytest.mark.row("S02")
async def test_neither_texts_nor_keys_are_in_the_files(tmp_path: Path) -> None:
    """Nor anything that a list of keys could be tried against without the secret."""
    import hashlib

    text, secret = "canary-text-5f1c", "canary-key-77aa"
    async with FaultServer() as server:
        server.default(answer_openai)
        entry = config(server, api_key=secret, headers={"x-hidden": "canary-header"})
        async with llmopt.AsyncClient(entry, cache=tmp_path) as client:
            await client.embed(MODEL, [text], extra={"note": "canary-extra"})
            await client.list_models("s")
            await client.aclose()
            written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for canary in (text, secret, "canary-header", "canary-extra"):
        assert canary.encode() not in written
        assert hashlib.sha256(canary.encode()).digest() not in written


async def test_failures_are_not_cached() -> None:
    """Nor what could not be checked."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache="memory") as client:
        server.default(Poison("bad"))
        found = await client.embed(MODEL, ["good", "bad"], errors="return")
        assert list(found.errors) == [1]
        server.default(answer_openai)
        before = len(server.requests)
        found = await client.embed(MODEL, ["good", "bad"])
        assert sent(server)[before:] == [["bad"]]
        assert found.errors == {}


async def test_hits_are_returned_when_misses_fail() -> None:
    """A provider that is down takes with it only what is not kept."""
    async with FaultServer() as server:
        settings = config(server)
        async with llmopt.AsyncClient(settings, cache="memory", flags={"retry": False}) as client:
            server.default(answer_openai)
            await client.embed(MODEL, ["a", "b"])
            await server.stop()
            found = await client.embed(MODEL, ["a", "new", "b"], errors="return")
            assert list(found.errors) == [1]
            np.testing.assert_array_equal(found.vectors[[0, 2]], rows(["a", "b"]))
            assert np.isnan(found.vectors[1]).all()
            assert (await client.embed(MODEL, ["b"])).errors == {}


async def test_a_closed_client_raises(tmp_path: Path) -> None:
    """Neither from the cache, nor is anything opened again."""
    import threading

    others = set(threading.enumerate())
    async with FaultServer() as server:
        server.default(answer_openai)
        client = llmopt.AsyncClient(config(server), cache=tmp_path)
        await client.embed(MODEL, ["a"])
        await client.aclose()
        with pytest.raises(llmopt.ClientClosed):
            await client.embed(MODEL, ["a"])
        with pytest.raises(llmopt.ClientClosed):
            _ = [part async for part in client.embed_iter(MODEL, ["a"])]
    ours = [each for each in set(threading.enumerate()) - others if "llmopt-cache" in each.name]
    for each in ours:
        # One that is on its way out may take a moment; one that was started anew stays.
        await asyncio.to_thread(each.join, 30)
    assert not any(each.is_alive() for each in ours)


async def test_embed_iter_uses_the_cache(tmp_path: Path) -> None:
    """In order, sending what is missing; a part of hits alone costs nothing."""
    texts = [f"text {number}" for number in range(200)]
    async with FaultServer() as server:
        server.default(answer_openai)
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            await client.embed(MODEL, texts[::2])
            before = len(sent(server))
            parts = [part async for part in client.embed_iter(MODEL, texts)]
            found = np.concatenate([part.vectors for part in parts])
            np.testing.assert_array_equal(found, rows(texts))
            assert sorted(text for batch in sent(server)[before:] for text in batch) == sorted(texts[1::2])
            before = len(sent(server))
            parts = [part async for part in client.embed_iter(MODEL, texts)]
            assert len(sent(server)) == before
            assert sum((part.usage for part in parts), llmopt.Usage()) == llmopt.Usage()


async def test_embed_iter_when_another_model_answers() -> None:
    """Within a part vectors of two models are not mixed."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache="memory") as client:
        server.default(named("m-2025"))
        await client.embed(MODEL, ["a", "b"])
        server.default(named("m-2026"))
        (part,) = [part async for part in client.embed_iter(MODEL, ["a", "new", "b"])]
        assert sent(server)[1:] == [["new"], ["a", "b"]]
        assert part.model == "m-2026"
        np.testing.assert_array_equal(part.vectors, rows(["a", "new", "b"]))


async def test_hits_and_misses_are_events() -> None:
    """Events with their numbers, and no text."""
    events: list[Any] = []
    async with FaultServer() as server:
        server.default(answer_openai)
        async with llmopt.AsyncClient(config(server), cache="memory", on_event=events.append) as client:
            await client.embed(MODEL, ["a", "b"])
            await client.embed(MODEL, ["a", "b", "c"])
    cache_events = [each for each in events if isinstance(each, (CacheHit, CacheMiss))]
    assert [(each.name, each.items, each.cache, each.model) for each in cache_events] == [
        ("cache.miss", 2, "embeddings", "m"),
        ("cache.hit", 2, "embeddings", "m"),
        ("cache.miss", 1, "embeddings", "m"),
    ]


def test_vectors_expire_after_thirty_days_or_as_configured() -> None:
    """With a tenth either way."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer() as server:
            server.default(answer_openai)
            store = MemoryStore()
            for more, good, bad in (({}, 26.9, 33.1), ({"cache_ttl": 86_400}, 0.89, 1.11)):
                async with llmopt.AsyncClient(config(server, **more), cache=store, clock=clock) as client:
                    await store.clear()
                    before = len(server.requests)
                    await client.embed(MODEL, ["a"])
                    clock.advance(good * 86_400)
                    await client.embed(MODEL, ["a"])
                    assert len(server.requests) == before + 1
                    clock.advance((bad - good) * 86_400)
                    await client.embed(MODEL, ["a"])
                    assert len(server.requests) == before + 2

    run_simulated(main)


def test_the_answering_model_is_saved_again_now_and_then(tmp_path: Path) -> None:
    """So that it outlives the vectors that are found by it."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer() as server:
            server.default(answer_openai)
            async with llmopt.AsyncClient(config(server), cache=tmp_path, clock=clock) as client:
                for number in range(10):
                    await client.embed(MODEL, [f"text {number}"])
                    clock.advance(5 * 86_400)
            before = len(server.requests)
            async with llmopt.AsyncClient(config(server), cache=tmp_path, clock=clock) as client:
                # Of 50 days; the last ones are 5 to 25 days old.
                await client.embed(MODEL, [f"text {number}" for number in range(5, 10)])
            assert len(server.requests) == before

    run_simulated(main)


async def test_a_credential_function_caches_in_memory_only(tmp_path: Path) -> None:
    """Another process could not know whose it is."""
    async with FaultServer() as server:
        server.default(answer_openai)
        entry = config(server, api_key=lambda: "key-of-this-hour")
        async with llmopt.AsyncClient(entry, cache=tmp_path) as client:
            for _ in range(2):
                await client.embed(MODEL, ["a"])
                await client.list_models("s")
            assert len(server.requests) == 2
        async with llmopt.AsyncClient(entry, cache=tmp_path) as client:
            await client.embed(MODEL, ["a"])
        assert len(server.requests) == 3


async def test_concurrent_calls_share_the_cache() -> None:
    """Coalescing and cache together: one request, all the same rows."""
    import asyncio

    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache="memory") as client:
        server.default(answer_openai)
        found = await asyncio.gather(*(client.embed(MODEL, ["a", "b"]) for _ in range(50)))
        assert len(server.requests) == 1
        for each in found:
            np.testing.assert_array_equal(each.vectors, rows(["a", "b"]))


def test_the_sync_client_uses_the_cache(tmp_path: Path) -> None:
    """The same through `Client`."""
    with serving() as server:
        server.server.default(answer_openai)
        with llmopt.Client(config(server.server), cache=tmp_path) as client:
            first = client.embed(MODEL, ["a", "b"])
            again = client.embed(MODEL, ["b", "a"])
    np.testing.assert_array_equal(again.vectors, first.vectors[::-1])
    assert again.usage.requests == 0
