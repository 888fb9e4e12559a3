"""Refusals that no text causes: a call that cannot succeed ends after a few requests, and others are not given up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmopt
from llmopt.errors import BadRequest, InvalidResponse, ServerError
from llmopt.operations.embed_recovery import CallRefusals, may_concern_call, same_words
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Poison, Request, answer_openai, error_answer
from tests.support.faults.openai import embeddings_payload
from tests.support.faults.response import json_answer
from tests.support.faults.script import Reply
from tests.support.scale import scaled

TEXTS = [f"text number {number}" for number in range(scaled(1_000, nightly=5_000))]
MODEL = "server/m"
DICE = random.Random(5)


def config(server: FaultServer, **entry: Any) -> dict[str, Any]:
    return provider_config(server, **{"plugin": "compatible", "retry_delay": 0.001, **entry})


def with_id(text: str) -> Answer:
    """A refusal whose words hold the id of the request, so that no two are equal."""
    return json_answer(
        {"message": f"{text} (request id: 2026{DICE.randrange(10**12)})", "code": 400}, status=400
    )


def short_vectors(request: Request) -> Answer:
    """A server that ignores ``dimensions``."""
    payload = embeddings_payload(request)
    for entry in payload["data"]:
        entry["embedding"] = [0.5, 0.5, 0.5]
    return json_answer(payload)


HOPELESS: dict[str, Callable[[Request], Reply]] = {
    "a wrong key, answered 400": lambda _: error_answer(400, "The credentials look odd."),
    "a parameter without its name": lambda _: json_answer(
        {"object": "error", "message": "m does not support matryoshka representation", "code": 400}, status=400
    ),
    "a parameter in FastAPI's words": lambda _: json_answer(
        {"detail": [{"loc": ["body", "dimensions"], "msg": "extra fields not permitted", "type": "extra"}]}, status=422
    ),
    "words with an id": lambda _: with_id("something about this account is wrong"),
    "not implemented": lambda _: Answer(501, b"not implemented", []),
    "no such method": lambda _: Answer(405, b"method not allowed", []),
    "too large, whatever it is": lambda _: Answer(413, b"<html>413 Request Entity Too Large</html>", []),
    "a page": lambda _: Answer(200, b"<html>please sign in</html>", [("content-type", "text/html")]),
    "vectors of another length": short_vectors,
    "no vectors": lambda _: json_answer({"object": "list", "data": []}),
}  # fmt: skip


@pytest.mark.row("B01")
@pytest.mark.parametrize("case", HOPELESS)
@pytest.mark.parametrize("concurrency", [1, 3, 16])
@pytest.mark.parametrize("way", ["embed", "embed_iter"])
async def test_a_hopeless_call_costs_a_handful_of_requests(case: str, concurrency: int, way: str) -> None:
    """Whatever is in flight at once, and a few more; the error has the server's words."""
    async with FaultServer() as server:
        server.default(HOPELESS[case])
        keys = config(server, max_concurrency=concurrency, flags={"breaker": False})
        async with llmopt.AsyncClient(keys, cache=False) as client:
            if way == "embed":
                with pytest.raises((llmopt.ProviderError, InvalidResponse, llmopt.PartialFailure)) as caught:
                    await client.embed(MODEL, TEXTS, dimensions=2)
                error = caught.value
                if isinstance(error, llmopt.PartialFailure):
                    assert len(error.result.errors) == len(TEXTS)
            else:
                async with client.embed_iter(MODEL, TEXTS, dimensions=2, errors="return") as parts:
                    failed = [at async for part in parts for at in part.errors]
                assert failed == list(range(len(TEXTS)))
        assert len(server.requests) <= 20


@pytest.mark.row("B01")
async def test_batches_of_one_text_too() -> None:
    """There a batch says as little as a text, so a few more are needed."""
    async with FaultServer() as server:
        server.default(HOPELESS["a parameter without its name"])
        keys = config(server, max_batch_size=1, max_concurrency=2)
        async with llmopt.AsyncClient(keys, cache=False) as client:
            with pytest.raises(BadRequest, match="matryoshka"):
                await client.embed(MODEL, TEXTS)
    assert len(server.requests) <= 8


@pytest.mark.row("B01")
async def test_the_next_call_is_asked_anew() -> None:
    """What was refused to one call says nothing about another one."""
    async with FaultServer() as server:
        server.default(HOPELESS["words with an id"])
        async with llmopt.AsyncClient(config(server), cache=False) as client:
            with pytest.raises(llmopt.LLMOptError):
                await client.embed(MODEL, TEXTS)
            server.default(answer_openai)
            assert (await client.embed(MODEL, TEXTS)).errors == {}


class Dislikes:
    """Refuses every request with one of these texts, in the same words."""

    def __init__(self, texts: frozenset[str], param: str | None) -> None:
        self.texts, self.param = texts, param

    def __call__(self, request: Request) -> Reply:
        if self.texts.isdisjoint(request.json()["input"]):
            return answer_openai(request)
        return json_answer({"error": {"message": "Invalid input.", "param": self.param}}, status=400)


@pytest.mark.row("B02")
@settings(max_examples=scaled(15, nightly=200), deadline=None)
@given(
    bad=st.sets(st.integers(0, 9), max_size=4).map(lambda batches: {8 * batch for batch in batches})
    | st.sets(st.integers(0, 79), max_size=4),
    batch=st.sampled_from([2, 3, 8]),
    concurrency=st.sampled_from([1, 2, 16]),
    param=st.sampled_from([None, "input", "input[3]", "$.input"]),
)
def test_a_few_bad_texts_cost_themselves_alone(
    bad: set[int], batch: int, concurrency: int, param: str | None
) -> None:
    """Also where the first batches all have one, and nothing was answered before."""

    async def main(clock: SimulatedClock) -> None:
        texts = TEXTS[:80]
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(Dislikes(frozenset(texts[at] for at in bad), param))
            keys = config(server, max_batch_size=batch, max_concurrency=concurrency)
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                result = await client.embed(MODEL, texts, errors="return")
            assert set(result.errors) == bad

    run_simulated(main)


@pytest.mark.row("B02")
async def test_a_first_batch_that_is_bad_as_a_whole() -> None:
    """Three batches in a row of refused texts end a call; one alone does not."""
    async with FaultServer() as server:
        server.default(Poison(*TEXTS[:32]))
        keys = config(server, max_concurrency=1)
        async with llmopt.AsyncClient(keys, cache=False) as client:
            result = await client.embed(MODEL, TEXTS[:320], errors="return")
    assert set(result.errors) == set(range(32))


@pytest.mark.row("B03")
async def test_a_size_that_nobody_stated_is_found_by_one_batch_for_all() -> None:
    """Sixteen batches are refused at once in words that say nothing; the others learn from the first."""

    def reply(request: Request) -> Reply:
        too_many = len(request.json()["input"]) > 5
        return error_answer(400, "The request is malformed.") if too_many else answer_openai(request)

    async with FaultServer() as server:
        server.default(reply)
        async with llmopt.AsyncClient(config(server), cache=False) as client:
            result = await client.embed(MODEL, TEXTS)
    assert result.errors == {}
    # The first search finds that four texts are few enough: 250 requests, and those that led there.
    assert len(server.requests) <= len(TEXTS) / 4 + 16 + 20


@pytest.mark.parametrize("concurrency", [1, 16])
@pytest.mark.parametrize("kind", ["too long", "filtered", "too large"])
async def test_texts_that_are_refused_first_end_no_call(kind: str, concurrency: int) -> None:
    """Sorted by length, longest first, or by topic: what is true of a hundred texts is not true of all."""
    bad = {f"{number} " + "word " * 3_000 for number in range(100)}

    def reply(request: Request) -> Reply:
        if bad.isdisjoint(request.json()["input"]):
            return answer_openai(request)
        if kind == "too long":
            return error_answer(400, "The text is too long.", code="context_length_exceeded")
        if kind == "filtered":
            return error_answer(400, "The text was filtered.", code="content_filter")
        return Answer(413, b"Request Entity Too Large", [])

    texts = [*sorted(bad), *TEXTS[:412]]
    async with FaultServer() as server:
        server.default(reply)
        keys = config(server, max_concurrency=concurrency, tpm=1e12)
        async with llmopt.AsyncClient(keys, cache=False) as client:
            result = await client.embed(MODEL, texts, errors="return")
    # The fourth batch is mixed, and may be lost when the search budget is used up.
    assert set(range(100)) <= set(result.errors) <= set(range(128))


async def test_a_quota_of_one_request_is_a_size() -> None:
    """What is left pays for smaller requests: all texts come, and no size is remembered."""

    def reply(request: Request) -> Reply:
        if len(request.json()["input"]) <= 8:
            return answer_openai(request)
        return error_answer(
            402, "This request requires more credits. You requested 320 tokens, but can only afford 80."
        )

    async with FaultServer() as server:
        server.default(reply)
        async with llmopt.AsyncClient(config(server), cache=False) as client:
            assert (await client.embed(MODEL, TEXTS[:320], errors="return")).errors == {}
            server.default(answer_openai)
            before = len(server.requests)
            await client.embed(MODEL, [f"{text} again" for text in TEXTS[:320]])
        assert len(server.requests) - before == 10


@given(st.text(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_numbers_and_ids_are_no_words(words: str, first: int, second: int) -> None:
    """Two refusals that differ in them alone are the same."""
    errors = [BadRequest(f"{words} (request req-{number}x)", status=400) for number in (first, second)]
    assert same_words(*errors)
    assert not same_words(errors[0], BadRequest(f"{words} (request req-{first}x)", status=422))
    assert not same_words(errors[0], BadRequest(f"{words} otherwise (request req-{first}x)", status=400))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BadRequest("no", status=400), True),
        (InvalidResponse("no", reason="json"), True),
        (InvalidResponse("no", reason="count"), True),
        (ServerError("no", status=500), True),
        (ServerError("no", status=502), False),
        (llmopt.ItemTooLong("no", status=400), True),
        (llmopt.ContentFiltered("no", status=400), True),
        (llmopt.RequestTooLarge("no", status=413), True),
        # A number says what to do.
        (llmopt.RequestTooLarge("no", status=413, limit=llmopt.BatchLimit(max_items=3)), False),
        (llmopt.RateLimited("no", status=429), False),
        (llmopt.AttemptTimeout("no"), False),
    ],
)
def test_what_may_be_about_the_call(error: llmopt.LLMOptError, expected: bool) -> None:
    """Whatever may be a text's or a size's fault as well."""
    assert may_concern_call(error) is expected


def test_a_refusal_that_names_a_text_is_that_texts() -> None:
    """Nothing needs to be found out."""
    error = BadRequest("no", status=400)
    error.item = 3
    assert not may_concern_call(error)


@pytest.mark.row("B03")
@settings(max_examples=scaled(20, nightly=300), deadline=None)
@given(
    limit=st.integers(1, 9),
    batch=st.integers(2, 9),
    concurrency=st.sampled_from([1, 2, 16]),
    way=st.sampled_from(["words", "too few vectors", "413"]),
)
def test_any_unstated_size_is_found(limit: int, batch: int, concurrency: int, way: str) -> None:
    """All texts arrive, though nothing says that there are too many of them."""

    def reply(request: Request) -> Reply:
        if len(request.json()["input"]) <= limit:
            return answer_openai(request)
        if way == "words":
            return error_answer(400, "The request is malformed.")
        if way == "413":
            return Answer(413, b"Request Entity Too Large", [])
        payload = embeddings_payload(request)
        return json_answer({**payload, "data": payload["data"][:limit]})

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(reply)
            keys = config(server, max_batch_size=batch, max_concurrency=concurrency, flags={"breaker": False})
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                assert (await client.embed(MODEL, TEXTS[:60], errors="return")).errors == {}

    run_simulated(main)


def test_how_much_makes_it_the_calls() -> None:
    """Three batches, or six texts of their own, in the same words."""
    for texts, needed in ((32, 3), (1, 6)):
        refusals = CallRefusals()
        errors = (BadRequest(f"no {number}", status=400) for number in range(needed))
        assert [refusals.add(error, texts=texts) for error in errors] == [False] * (needed - 1) + [True]
    refusals = CallRefusals()
    assert not any(refusals.add(BadRequest(word, status=400), texts=32) for word in ("a", "b", "c", "d"))


def test_the_body_is_json() -> None:
    """The refusals above are what they should be."""
    assert json.loads(with_id("no").body)["message"].startswith("no (request id: ")
