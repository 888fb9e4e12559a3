"""Splitting texts into batches."""

from __future__ import annotations

import functools
import random
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
    limit_items,
    make_batches,
    merge_limits,
)
from llmopt.operations.learned_rates import LearnedRates
from llmopt.testing.clock import SimulatedClock
from tests.support.faults import FaultServer, MaxItems, Request, answer_openai, find_fault
from tests.support.faults.response import json_answer
from tests.support.faults.script import Reply

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


# A limit is documented or stated by the server, or it is a guess that the user may exceed.

NUMBERS = ("max_items", "max_item_tokens", "max_tokens", "max_bytes")


@st.composite
def declared(draw: st.DrawFn) -> BatchLimit:
    numbers = {name: draw(st.none() | st.integers(1, 6)) for name in NUMBERS}
    guesses = [name for name, number in numbers.items() if number is not None and draw(st.booleans())]
    return BatchLimit(**numbers, guesses=tuple(sorted(guesses)))


@given(st.lists(declared(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_of_several_limits_the_smallest_holds_and_says_what_it_is(
    each: list[BatchLimit], dice: random.Random
) -> None:
    """In any order; a number is a guess only if nobody's word is as low."""
    merged = functools.reduce(merge_limits, each)
    shuffled = dice.sample(each, len(each))
    assert functools.reduce(merge_limits, shuffled) == merged
    for name in NUMBERS:
        stated = [getattr(limit, name) for limit in each if getattr(limit, name) is not None]
        assert getattr(merged, name) == min(stated, default=None)
        words = [getattr(limit, name) for limit in each if name not in limit.guesses]
        assert (name in merged.guesses) == (
            getattr(merged, name) is not None and getattr(merged, name) not in words
        )


@given(declared(), st.none() | st.integers(1, 10))
def test_the_users_number_counts_more_than_a_guess(limit: BatchLimit, maximum: int | None) -> None:
    """And never more than a word; no other number changes."""
    result = limit_items(limit, maximum)
    if maximum is None:
        assert result == limit
        return
    is_word = limit.max_items is not None and "max_items" not in limit.guesses
    assert result.max_items == (min(maximum, limit.max_items or maximum) if is_word else maximum)
    assert [getattr(result, name) for name in NUMBERS[1:]] == [getattr(limit, name) for name in NUMBERS[1:]]
    assert set(result.guesses) == set(limit.guesses) - {"max_items"}


@pytest.mark.row("B06")
@pytest.mark.parametrize(
    ("plugin", "maximum", "largest"),
    [
        ("local", None, 32),
        ("local", 128, 128),
        ("compatible", 128, 128),
        ("compatible", 5, 5),
        ("mistral", 200, 200),
        # The documentation's word.
        ("openai", 4_000, 2_048),
    ],
)
async def test_max_batch_size_above_a_guess_is_believed(
    plugin: str, maximum: int | None, largest: int
) -> None:
    """As many texts in a request as the user says, where the plugin does not know."""
    async with FaultServer() as server:
        entry = {
            "plugin": plugin,
            "base_url": server.base_url,
            "api_key": "test-key",
            "max_batch_size": maximum,
        }
        async with llmopt.AsyncClient({"providers": {"server": entry}}, cache=False) as client:
            await client.embed("server/m", [str(number) for number in range(largest + 1)])
    assert sorted(len(request.json()["input"]) for request in server.requests) == [1, largest]


@pytest.mark.row("B06")
async def test_what_the_server_says_is_never_exceeded() -> None:
    """A limit that it states when asked holds, whatever the configuration says."""
    info = json_answer({"max_client_batch_size": 40, "max_input_length": 512, "max_concurrent_requests": 512})

    def reply(request: Request) -> Reply:
        if request.path == "/info":
            return info
        return json_answer([[0.5, 0.5]] * len(request.json()["inputs"]))

    async with FaultServer() as server:
        server.default(reply)
        entry = {"plugin": "local", "flavour": "tei", "base_url": server.base_url, "max_batch_size": 128}
        async with llmopt.AsyncClient({"providers": {"server": entry}}, cache=False) as client:
            await client.embed("server/m", [str(number) for number in range(100)])
    sizes = [len(request.json()["inputs"]) for request in server.requests if request.path != "/info"]
    assert sorted(sizes) == [20, 40, 40]


@pytest.mark.row("B06")
async def test_a_size_that_was_believed_wrongly_is_found_out() -> None:
    """The server refuses it without a number: all texts arrive all the same, and the next call knows."""
    async with FaultServer() as server:
        server.default(MaxItems(64, state_limit=False))
        entry = {"plugin": "local", "base_url": server.base_url, "max_batch_size": 128, "retry_delay": 0.001}
        async with llmopt.AsyncClient({"providers": {"server": entry}}, cache=False) as client:
            texts = [str(number) for number in range(256)]
            assert (await client.embed("server/m", texts)).errors == {}
            before = len(server.requests)
            await client.embed("server/m", [f"more {text}" for text in texts])
        assert len(server.requests) - before == 4


async def test_each_endpoint_has_its_own_maximum() -> None:
    """A batch may go to any of them, so the smallest holds."""
    async with FaultServer() as server:
        places = [{"max_batch_size": 64}, {"max_batch_size": 10}]
        entry = {"plugin": "local", "base_url": server.base_url, "endpoints": places}
        async with llmopt.AsyncClient({"providers": {"server": entry}}, cache=False) as client:
            await client.embed("server/m", [str(number) for number in range(20)])
    assert [len(request.json()["input"]) for request in server.requests] == [10, 10]


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

    async def nowhere() -> None:
        return None

    def new_state() -> ModelState:
        rates = LearnedRates(lambda: (), nowhere, clock.now)
        return ModelState("server", "a model", lambda: store, clock, rates)

    async def learned() -> BatchLimit:
        adaptive = await new_state().load(BatchLimit(max_items=100))
        return adaptive.apply(BatchLimit(max_items=100))

    state = new_state()
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
