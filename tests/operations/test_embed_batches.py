"""Splitting texts into batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmopt
from llmopt import BatchLimit
from llmopt.cache.store import MemoryStore, SafeStore
from llmopt.operations.embed_batches import (
    Batcher,
    ModelState,
    body_bytes,
    certainly_too_long,
    make_batches,
)
from llmopt.testing.clock import SimulatedClock
from tests.support.faults import FaultServer, answer_openai, find_fault

texts = st.lists(st.text(min_size=1, max_size=40), max_size=60)
limits = st.builds(
    BatchLimit,
    max_items=st.none() | st.integers(1, 10),
    max_tokens=st.none() | st.integers(1, 200),
    max_bytes=st.none() | st.integers(600, 1_200),
)


def estimate(text: str) -> int:
    return len(text)


@given(texts, limits)
def test_every_text_is_in_exactly_one_batch_in_order(given_texts: list[str], limit: BatchLimit) -> None:
    """Nothing is lost, doubled or moved, and `start` counts the texts before."""
    batches = list(make_batches(given_texts, Batcher(lambda: limit, estimate)))
    assert [text for batch in batches for text in batch.texts] == given_texts
    assert [batch.start for batch in batches] == [
        sum(len(before.texts) for before in batches[:number]) for number in range(len(batches))
    ]


@given(texts, limits)
def test_no_batch_is_over_a_limit_unless_one_text_alone_is(given_texts: list[str], limit: BatchLimit) -> None:
    """Items, tokens and bytes hold together."""
    for batch in make_batches(given_texts, Batcher(lambda: limit, estimate)):
        assert batch.texts
        assert batch.tokens == sum(map(estimate, batch.texts))
        if limit.max_items is not None:
            assert len(batch.texts) <= limit.max_items
        if len(batch.texts) > 1:
            assert limit.max_tokens is None or batch.tokens <= limit.max_tokens
            assert limit.max_bytes is None or sum(map(body_bytes, batch.texts)) + 512 <= limit.max_bytes


@given(texts, limits)
def test_batches_are_as_full_as_they_can_be(given_texts: list[str], limit: BatchLimit) -> None:
    """The first text of a batch would not have fitted into the one before."""
    batches = list(make_batches(given_texts, Batcher(lambda: limit, estimate)))
    for before, after in pairwise(batches):
        grown = (*before.texts, after.texts[0])
        assert (
            (limit.max_items is not None and len(grown) > limit.max_items)
            or (limit.max_tokens is not None and sum(map(estimate, grown)) > limit.max_tokens)
            or (limit.max_bytes is not None and sum(map(body_bytes, grown)) + 512 > limit.max_bytes)
        )


def test_a_changed_limit_applies_to_the_next_batch() -> None:
    """The limit is asked for anew with each batch."""
    sizes = iter([3, 1, 2])
    batcher = Batcher(lambda: BatchLimit(max_items=next(sizes, 5)), estimate)
    assert [len(batch.texts) for batch in make_batches(list("abcdefg"), batcher)] == [3, 1, 2, 1]


def test_skip_leaves_a_position_out() -> None:
    """A position that holds no text still counts."""
    batcher = Batcher(BatchLimit, estimate)
    batcher.skip()
    batcher.add("a")
    batch = batcher.flush()
    assert batch is not None
    assert batch.start == 1


def test_sizes_are_utf8_bytes() -> None:
    """Two quotes and a comma, and the text in UTF-8."""
    assert body_bytes("abc") == 6
    assert body_bytes("é") == 5
    assert body_bytes("🙂") == 7


def test_only_texts_too_long_for_any_tokenizer_are_refused() -> None:
    """What some tokenizer might squeeze in is sent."""
    limit = BatchLimit(max_item_tokens=10)
    assert not certainly_too_long("a" * 2_000, limit)
    assert certainly_too_long("a" * 3_000, limit)
    assert not certainly_too_long("a" * 3_000, BatchLimit(max_item_tokens=10, truncates=True))
    assert not certainly_too_long("a" * 10_000_000, BatchLimit())
    assert certainly_too_long("a" * 600, BatchLimit(max_bytes=1_000))


# What was learned is saved for the next process.


async def sizes_sent(server: FaultServer, folder: Path, *, refuse: bool, **options: Any) -> list[int]:
    """Numbers of texts in the requests of a client that embeds eight."""
    entry = {"plugin": "local", "base_url": server.base_url, "retry_delay": 0.001}
    settings = {"providers": {"server": entry}, "cache_dir": str(folder)}
    before = len(server.requests)
    async with llmopt.AsyncClient(settings, **options) as client:
        if refuse:
            find_fault("H11", "413").inject(server)
        else:
            server.default(answer_openai)
        await client.embed("server/m", list("abcdefgh"))
    return [len(request.json()["input"]) for request in server.requests[before:]]


async def test_learned_batch_sizes_are_saved_for_the_next_process(tmp_path: Path) -> None:
    """A refused size is not tried again."""
    async with FaultServer() as server:
        assert (await sizes_sent(server, tmp_path, refuse=True))[0] == 8
        assert await sizes_sent(server, tmp_path, refuse=False) == [4, 4]


@pytest.mark.parametrize("choice", ["off", "memory", False])
async def test_without_a_disk_cache_nothing_learned_is_saved(tmp_path: Path, choice: Any) -> None:
    """Nor read."""
    async with FaultServer() as server:
        await sizes_sent(server, tmp_path, refuse=True, cache=choice)
        assert await sizes_sent(server, tmp_path, refuse=False) == [8]
        await sizes_sent(server, tmp_path, refuse=True)
        assert await sizes_sent(server, tmp_path, refuse=False, cache=choice) == [8]


async def test_nothing_learned_through_a_custom_transport_is_saved(tmp_path: Path) -> None:
    """It may lead anywhere: the address says nothing of who answers."""
    async with FaultServer() as server:
        transport = httpx.AsyncHTTPTransport()
        await sizes_sent(server, tmp_path, refuse=True, transport=transport)
        assert await sizes_sent(server, tmp_path, refuse=False) == [8]


async def test_learned_sizes_expire() -> None:
    """Thirty days after it was saved, and when the calendar was set back."""
    clock = SimulatedClock()
    store = SafeStore(MemoryStore())

    async def learned() -> BatchLimit:
        adaptive = await ModelState("server", "a model", lambda: store, clock).load(BatchLimit(max_items=100))
        return adaptive.apply(BatchLimit(max_items=100))

    state = ModelState("server", "a model", lambda: store, clock)
    adaptive = await state.load(BatchLimit(max_items=100))
    assert not state.unsaved
    adaptive.refused(64, 1_000, BatchLimit(max_items=20))
    assert state.unsaved
    await state.save()
    assert not state.unsaved
    assert (await learned()).max_items == 20
    clock.advance(30 * 24 * 3600 - 1)
    assert (await learned()).max_items == 20
    clock.advance(1)
    assert (await learned()).max_items == 100
