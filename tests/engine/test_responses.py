"""Responses that are valid HTTP with wrong or unusual content."""

from __future__ import annotations

import asyncio
import functools
import json
from typing import Any

import numpy as np
import pytest
from attrs import evolve

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import RequestWait
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    Crossed,
    FaultServer,
    Request,
    answer_openai,
    embeddings_answer,
    faults_of,
    find_fault,
    rewritten,
    vector_for,
)
from tests.support.faults.fault import Fault

MODEL = "server/m"
TEXTS = ["one", "two", "three"]
JSON = [("content-type", "application/json")]


config = functools.partial(provider_config, retry_delay=0.001)


def rows(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array([vector_for(text) for text in texts], dtype=np.float32)


@pytest.mark.row("P08")
@pytest.mark.parametrize("fault", faults_of("P08"), ids=str)
def test_invalid_usage_is_replaced_by_the_estimate(fault: Fault) -> None:
    """The vectors are good, and nobody waits for a limit that was not used up."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, tpm=60_000), clock=clock, on_event=events.append) as client,
        ):
            server.default(answer_openai)
            await client.embed(MODEL, ["warm"])
            fault.inject(server)
            found = await client.embed(MODEL, TEXTS)
            np.testing.assert_array_equal(found.vectors, rows(TEXTS))
            assert 0 <= found.usage.prompt_tokens <= 1_000
            await client.embed(MODEL, ["after"])
            assert clock.elapsed < 0.1

    run_simulated(main)
    assert not [event for event in events if isinstance(event, RequestWait) and event.cause == "limiter"]


@pytest.mark.row("P09")
async def test_the_result_names_the_model_that_answered() -> None:
    """Providers answer an alias with the name behind it; the caller sees which it was."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        find_fault("P09", "another model").inject(server)
        found = await client.embed(MODEL, TEXTS)
        assert found.model == "another-model"
        np.testing.assert_array_equal(found.vectors, rows(TEXTS))
        find_fault("P09", "no model").inject(server)
        assert (await client.embed(MODEL, TEXTS)).model == "m"


@pytest.mark.row("P10")
async def test_swapped_responses_are_detected_by_their_size() -> None:
    """Two concurrent requests get each other's answer: both are asked again, and come right."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=2)) as client:
        await client.embed(MODEL, ["warm"])
        crossed = Crossed()
        server.play(crossed, crossed)
        one, two = await asyncio.gather(client.embed(MODEL, TEXTS), client.embed(MODEL, ["a", "b"]))
    np.testing.assert_array_equal(one.vectors, rows(TEXTS))
    np.testing.assert_array_equal(two.vectors, rows(["a", "b"]))


@pytest.mark.row("P10")
async def test_swapped_responses_of_one_size_are_not_detected() -> None:
    """What no client can see: nothing in the answer says whose it is. It stands here so that nobody forgets."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        await client.embed(MODEL, ["warm"])
        crossed = Crossed()
        server.play(crossed, crossed)
        one, two = await asyncio.gather(client.embed(MODEL, ["a"]), client.embed(MODEL, ["b"]))
    np.testing.assert_array_equal(np.concatenate([one.vectors, two.vectors]), rows(["b", "a"]))


@pytest.mark.row("P11")
@pytest.mark.parametrize("fault", faults_of("P11"), ids=str)
async def test_a_vector_of_zeros_or_of_one_number_is_a_vector(fault: Fault) -> None:
    """Some models give them, to an empty thought; it is for the caller to judge."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        fault.inject(server)
        found = await client.embed(MODEL, TEXTS)
    assert found.errors == {}
    assert found.vectors.shape == (3, 4)
    assert len(server.requests) == 1


@pytest.mark.row("P05")
async def test_dimensions_that_a_server_ignores_are_told_at_once() -> None:
    """By the first response, in words: no retry, no search for a text, and no open circuit for other requests."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, flags={"cache": False})) as client:
        server.default(lambda request: embeddings_answer(without_dimensions(request)))
        for number in range(1, 31):
            with pytest.raises(
                llmopt.InvalidResponse, match=r"dimensions=8 was asked for.* 4 numbers"
            ) as caught:
                await client.embed(MODEL, TEXTS, dimensions=8)
            assert caught.value.reason == "dimensions_ignored"
            assert not caught.value.copy().retryable
            assert len(server.requests) == number
        np.testing.assert_array_equal((await client.embed(MODEL, TEXTS)).vectors, rows(TEXTS))


def without_dimensions(request: Request) -> Request:
    kept = {key: value for key, value in request.json().items() if key != "dimensions"}
    return evolve(request, body=json.dumps(kept).encode())


@pytest.mark.row("P05")
async def test_a_length_chosen_by_an_extra_key_is_another_length() -> None:
    """What one call asks for by a key of the provider's own says nothing about the next one."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, flags={"cache": False})) as client:
        server.default(lambda request: embeddings_answer(request, dimensions=request.json().get("size", 4)))
        for size in (None, 8, 16, None):
            extra = {} if size is None else {"size": size}
            assert (await client.embed(MODEL, TEXTS, extra=extra)).vectors.shape == (3, size or 4)


NO_JSON = [
    b"", b" ", b"{", b"}", b"[", b"]", b"[1,]", b"[,1]", b"[1 2]", b"[1,,2]", b'["a" "b"]', b"{,}", b'{"a":}', b'{"a" 1}',
    b'{"a":1,}', b'{"a":1 "b":2}', b"{a:1}", b"{'a':1}", b'{"a":1}}', b"[[]", b'{"a":[}', b'"a', b'"a\n"', b'"\\x61"', b'"\\u12"',
    b'"\\', b'"\t"', b"'a'", b"tru", b"True", b"nul", b"None", b"nan", b"NaN", b"Infinity", b"-Infinity", b"+1", b"01", b"-01", b"1.",
    b".5", b"-", b"--1", b"1e", b"1e+", b"0x1F", b"1_000", b"1,000", b"\xff", b"\xef\xbb\xbf{}", b"\x00", b"{}\x00", b"// c\n{}",
    b"{} {}", b"[1]x", b"<html></html>", b'{"a":1', b'["\xed\xa0\x80"]', b'{"\\ud800":1', b"*", b"[-]", b"[1e400e1]", b'{"a"=1}',
]  # fmt: skip
"""What is no JSON, in the ways of JSONTestSuite's n_ files."""

SOME_JSON = [
    b"{}", b"[]", b"null", b"true", b"false", b"0", b"-0", b"1e400", b"-1e-400", b"123456789012345678901234567890", b'""', b'"a"',
    b'"\\u0000"', b'"\\ud83d\\ude00"', b'"\\ud800"', b'"\xc3\xa9"', b'"\\/\\b\\f\\n\\r\\t"', b" [ ] ", b"\t{\n}\r", b"[[[[[[]]]]]]",
    b'{"a":1,"a":2}', b'{"":0}', b"[1,2.5,-3e2]", b'{"data":{}}', b'{"data":null}', b'{"data":[{}]}', b'{"data":[null]}',
]  # fmt: skip
"""JSON that is no answer, in the ways of its y_ and i_ files."""


@pytest.mark.row("P12")
@pytest.mark.parametrize("body", [*NO_JSON, *SOME_JSON], ids=repr)
async def test_an_unusable_body_is_an_invalid_response(body: bytes) -> None:
    """Whatever it is, and nothing else comes of it."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), flags={"retry": False}) as client:
        server.default(Answer(200, body, JSON))
        with pytest.raises(llmopt.InvalidResponse):
            await client.embed(MODEL, ["a"])


@pytest.mark.row("P12")
@pytest.mark.parametrize("value", [body for body in SOME_JSON if b"data" not in body], ids=repr)
async def test_odd_json_in_unused_fields_is_ignored(value: bytes) -> None:
    """In a field that is not ours it is skipped, or the answer is refused; the rows are never wrong."""
    spoiled = rewritten(lambda body: body[:-1] + b',"novel":' + value + b"}")
    async with FaultServer() as server, llmopt.AsyncClient(config(server), flags={"retry": False}) as client:
        server.default(spoiled)
        try:
            found = await client.embed(MODEL, TEXTS)
        except llmopt.InvalidResponse:
            assert value == b'"\\ud800"'  # half a character is no text
        else:
            np.testing.assert_array_equal(found.vectors, rows(TEXTS))


@pytest.mark.row("P01", "P02", "P03", "P04", "P05", "P06")
@pytest.mark.parametrize("row", ["P01", "P03", "P04", "P05", "P06"])
async def test_an_invalid_response_does_not_affect_the_next(row: str) -> None:
    """Each of them once, one after the other, in one client: right rows, whatever the answer before was."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), flags={"breaker": False, "limiter": False}) as client,
    ):
        await client.embed(MODEL, TEXTS)
        for fault in faults_of(row):
            fault.inject(server)
            found = await client.embed(MODEL, TEXTS)
            np.testing.assert_array_equal(found.vectors, rows(TEXTS))
