"""Recovery of failed batches, counted at the server."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import llmopt
from tests.support.configuration import provider_config
from tests.support.error_score import bodies_server
from tests.support.faults import Answer, FaultServer, MaxItems, Poison, TokenLimit, answer_openai, vector_for
from tests.support.faults.payload_rows import changed
from tests.support.faults.request import Request

config = functools.partial(
    provider_config, name="openai", api_key="test-key", retry_delay=0.001, plugin="openai"
)


def rows(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    return np.array([vector_for(text, 4) for text in texts], dtype=np.float32)


TEXTS = [f"text number {number}" for number in range(300)]
MODEL = "openai/text-embedding-3-small"


async def test_an_unstated_batch_limit_is_learned() -> None:
    """200 texts to a server that takes 64 while its plugin declares 2,048: 7 requests, and 4 the next time."""
    async with FaultServer() as server:
        server.default(MaxItems(64, state_limit=False))
        async with llmopt.AsyncClient(config(server)) as client:
            found = await client.embed(MODEL, TEXTS[:200])
        np.testing.assert_array_equal(found.vectors, rows(TEXTS[:200]))
        assert len(server.requests) <= 7
        before = len(server.requests)
        # Another client reads what the first one kept, as another process would.
        async with llmopt.AsyncClient(config(server)) as client:
            again = await client.embed(MODEL, TEXTS[:200])
        np.testing.assert_array_equal(again.vectors, rows(TEXTS[:200]))
        assert len(server.requests) - before == 4


async def test_a_stated_batch_limit_is_used_at_once() -> None:
    """One refusal, then as few requests as can be."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(MaxItems(64, state_limit=True))
        found = await client.embed(MODEL, TEXTS[:200])
        assert found.errors == {}
    np.testing.assert_array_equal(found.vectors, rows(TEXTS[:200]))
    assert len(server.requests) <= 7


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("at", [0, 150, 299])
async def test_one_bad_text_is_one_error(status: int, at: int) -> None:
    """299 vectors, in at most 20 requests more than the one."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(Poison(TEXTS[at], status=status))
        found = await client.embed(MODEL, TEXTS, errors="return")
    assert set(found.errors) == {at}
    good = [row for row in range(300) if row != at]
    np.testing.assert_array_equal(found.vectors[good], rows([TEXTS[row] for row in good]))
    assert np.isnan(found.vectors[at]).all()
    # A 500 may pass by itself, so the whole batch is tried again before anything is suspected.
    assert len(server.requests) - 1 <= (20 if status < 500 else 22)


async def test_a_vector_that_is_not_finite_is_one_error() -> None:
    """The text at fault is found from the answers alone."""

    def reply(request: Request) -> Answer:
        poisoned = "text number 7" in request.json()["input"]
        return spoiled(request) if poisoned else answer_openai(request)  # type: ignore[return-value] # an Answer both

    def spoil(payload: Any) -> None:
        payload["data"][0]["embedding"][0] = None

    spoiled = changed(spoil)
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(reply)
        with pytest.raises(llmopt.PartialFailure) as caught:
            await client.embed(MODEL, TEXTS[:20])
    result = caught.value.result
    assert set(result.errors) == {7}
    assert isinstance(result.errors[7], llmopt.InvalidResponse)
    good = [row for row in range(20) if row != 7]
    np.testing.assert_array_equal(result.vectors[good], rows([TEXTS[row] for row in good]))


async def test_one_text_over_the_token_limit_among_a_hundred() -> None:
    """99 vectors, and the error is that text's."""
    texts = [*TEXTS[:60], "long " * 3_000, *TEXTS[60:99]]
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(TokenLimit(2_000, per="item"))
        found = await client.embed(MODEL, texts, errors="return")
    assert set(found.errors) == {60}
    assert isinstance(found.errors[60], llmopt.ItemTooLong)
    assert len(server.requests) == 3


async def test_a_batch_over_the_token_limit_is_split() -> None:
    """By tokens; every text comes through."""
    texts = [f"{number} " + "word " * 100 for number in range(40)]
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(TokenLimit(1_000, per="request"))
        found = await client.embed(MODEL, texts)
    np.testing.assert_array_equal(found.vectors, rows(texts))


async def test_a_400_that_names_a_parameter_is_never_bisected() -> None:
    """It is the whole request's: one request, and no batch after it."""
    body = b'{"error":{"message":"bad dimensions","type":"invalid_request_error","param":"dimensions","code":null}}'
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_concurrency=1)) as client:
        server.default(bytes(Answer(400, body, [("content-type", "application/json")])))
        with pytest.raises(llmopt.BadRequest, match="bad dimensions"):
            await client.embed(MODEL, [f"text {number}" for number in range(5_000)])
    assert len(server.requests) == 1


async def test_bisection_stops_when_every_text_is_refused() -> None:
    """Nothing of three levels came through, and no text alone: it is no text's fault, and no size's."""
    body = b'{"error":{"message":"no","type":"invalid_request_error","param":null,"code":null}}'
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(bytes(Answer(400, body, [("content-type", "application/json")])))
        with pytest.raises(llmopt.BadRequest):
            await client.embed(MODEL, TEXTS)
    assert len(server.requests) <= 16


@pytest.mark.row("V07")
@pytest.mark.parametrize("plugin", ["openai", "local"])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [2, 34, 100])
def test_a_size_that_no_word_states_is_found_down_to_one(limit: int, count: int, plugin: str) -> None:
    """All texts get their vectors with a few requests more than needed, and the next call knows."""

    def answer(request: dict[str, Any]) -> tuple[int, object]:
        texts = request["input"]
        if len(texts) > limit:
            return 400, {"error": {"message": "the engine says no"}}
        return 200, {"data": [{"index": at, "embedding": [len(text), 1.0]} for at, text in enumerate(texts)]}

    texts = ["a" * length for length in range(1, count + 1)]
    needed = -(-count // limit)
    with bodies_server(answer) as (url, requests):
        entry = {"plugin": plugin, "base_url": url, "api_key": "key-of-the-test", "rpm": 60_000, "tpm": 1e9}
        with llmopt.Client({"providers": {"x": entry}}, cache=False) as client:
            vectors = client.embed("x/m", texts).vectors
            first = len(requests)
            client.embed("x/m", [f"{text}b" for text in texts])
    assert [vector[0] for vector in vectors] == [len(text) for text in texts]
    assert first <= needed + 40
    # A larger size than one may be tried again after ten batches.
    assert len(requests) - first == needed or limit > 1


async def test_many_bad_texts_cost_a_bounded_number_of_requests() -> None:
    """At most 64 further requests; rows received before are kept."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(Poison(TEXTS[3], inner=Poison(TEXTS[77], inner=Poison(TEXTS[200]))))
        found = await client.embed(MODEL, TEXTS, errors="return")
    assert set(found.errors) == {3, 77, 200}
    assert len(server.requests) <= 65


async def test_splits_are_events() -> None:
    """An operator sees why there are more requests than batches."""
    events: list[Any] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=events.append) as client:
        server.default(MaxItems(64, state_limit=False))
        await client.embed(MODEL, TEXTS[:200])
    splits = [event for event in events if event.name == "batch.split"]
    assert sorted(event.items for event in splits) == [100, 100, 200]
