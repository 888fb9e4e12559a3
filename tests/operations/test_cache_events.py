"""Cache events and compression events: sizes, evictions, compressed and decoded responses."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import llmopt
from llmopt.cache.store import MemoryStore
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import CacheEviction, CacheSized, JsonParse, ResponseCompression
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, answer_openai, models_payload

config = functools.partial(provider_config, name="s")


def test_cache_size_and_evictions_are_reported(tmp_path: Path) -> None:
    """Every ten seconds at most, while something is put there."""

    async def main(clock: SimulatedClock) -> None:
        events: list[Any] = []
        store = MemoryStore(max_bytes=20_000)
        async with FaultServer() as server:
            server.default(answer_openai)
            client = llmopt.AsyncClient(config(server), cache=store, on_event=events.append, clock=clock)
            async with client:
                for start in range(0, 300, 50):
                    await client.embed("s/m", [f"text {start + each}" for each in range(50)])
                    clock.advance(6)
        sized = [each for each in events if isinstance(each, CacheSized)]
        gone = [each for each in events if isinstance(each, CacheEviction)]
        assert len(sized) == 3
        assert all(each.size <= each.max_size == 20_000 and each.items > 0 for each in sized)
        assert 0 < sum(each.items for each in gone) <= (await store.size()).evicted

    run_simulated(main)


async def test_compressed_responses_and_parsing_are_reported(tmp_path: Path) -> None:
    """Bytes that travelled, bytes that they stand for; how long reading them took."""
    body = json.dumps(models_payload(f"model-{number}" for number in range(500))).encode()
    packed = gzip.compress(body)
    headers = [("content-type", "application/json"), ("content-encoding", "gzip")]
    events: list[Any] = []
    async with FaultServer() as server:
        server.default(Answer(200, packed, headers))
        async with llmopt.AsyncClient(config(server), cache=tmp_path, on_event=events.append) as client:
            assert len(await client.list_models("s")) == 500
            server.default(answer_openai)
            await client.embed("s/m", ["a"])
    (compressed,) = [each for each in events if isinstance(each, ResponseCompression)]
    assert (compressed.received, compressed.size) == (len(packed), len(body))
    assert compressed.ratio == len(body) / len(packed)
    assert compressed.name == "response.compression"
    read = [each for each in events if isinstance(each, JsonParse)]
    assert [(each.operation, each.name) for each in read] == [
        ("catalog", "json.parse"),
        ("embeddings", "json.parse"),
    ]
    assert read[0].size == len(body)
    assert all(each.seconds >= 0 for each in read)


async def test_a_listener_that_raises_does_not_affect_calls(tmp_path: Path) -> None:
    """It is no fault of the call's."""

    def listen(event: object) -> None:
        raise RuntimeError("somebody's listener")

    async with FaultServer() as server:
        server.default(answer_openai)
        async with llmopt.AsyncClient(config(server), cache=tmp_path, on_event=listen) as client:
            for _ in range(2):
                assert len(await client.list_models("s")) == 1
                await client.embed("s/m", ["a"])
