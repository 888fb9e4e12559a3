"""Connection faults: vectors are right whatever happens to the bytes."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    Close,
    CloseAfter,
    FaultServer,
    Framing,
    Playable,
    Reset,
    Respond,
    Script,
    Stall,
    Step,
    answer_openai,
    cut,
    embeddings_answer,
    strange_answer,
    vector_for,
)
from tests.support.faults.request import Request
from tests.support.faults.script import Reply
from tests.support.scale import scaled

MODEL = "server/m"
TEXTS = [f"text {number:02}" for number in range(30)]
AT_ONCE = 8
CALLS = scaled(400, nightly=2_000)


config = functools.partial(provider_config, retry_delay=0.001, max_retries=1)


def expected(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array([vector_for(text) for text in texts], dtype=np.float32)


def answer(framing: Framing) -> Answer:
    body = json.dumps({"model": "m", "input": TEXTS}).encode()
    request = Request("POST", "/embeddings", (), body, connection=1, nth=1, time=0.0)
    return embeddings_answer(request, framing=framing)


class CutFirst:
    """Cuts the first answer to each request, each time some bytes later; the second one is whole."""

    def __init__(self, end: Step, whole: Answer, step: int = 1) -> None:
        self._offset = -step
        self._step = step
        self._end = end
        self._whole = whole
        self._seen: set[bytes] = set()

    def __call__(self, request: Request) -> Reply:
        if request.body in self._seen:
            return self._whole
        self._seen.add(request.body)
        self._offset += self._step
        return cut(self._offset, self._end, self._whole)(request)


async def embed_at_offsets(server: FaultServer, end: Step, framing: Framing, step: int) -> int:
    """One call for each byte of the response, or for each `step` bytes; returns how many gave wrong rows.

    tests/transport/test_truncation.py cuts at every byte, without a client around the pool."""
    whole = answer(framing)
    offsets = range(0, len(bytes(whole)) + 1, step)
    server.default(CutFirst(end, whole, step))
    wrong = 0
    # Every second request is cut, which opens any circuit; that is another test's.
    async with llmopt.AsyncClient(config(server), flags={"breaker": False, "coalesce": False}) as client:
        numbers = iter(offsets)

        async def worker() -> None:
            nonlocal wrong
            for number in numbers:
                found = await client.embed(MODEL, TEXTS, extra={"number": number})
                wrong += not np.array_equal(found.vectors, expected(TEXTS))

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    assert len(bytes(whole)) > 2_000
    assert len(offsets) < len(server.requests) <= 2 * len(offsets)
    return wrong


@pytest.mark.row("N01")
@pytest.mark.parametrize(
    ("framing", "step"),
    [(Framing.LENGTH, scaled(13, nightly=1)), (Framing.CHUNKED, scaled(37, nightly=11))],
    ids=["length", "chunked"],
)
async def test_a_reset_at_every_byte_of_a_response(framing: Framing, step: int) -> None:
    """Right every time, with one retry."""
    async with FaultServer() as server:
        assert await embed_at_offsets(server, Reset(), framing, step) == 0


@pytest.mark.row("N02", "N03", "N04")
@pytest.mark.parametrize(
    ("framing", "step"),
    [
        (Framing.LENGTH, scaled(37, nightly=11)),
        (Framing.CHUNKED, scaled(37, nightly=11)),
        (Framing.EOF, scaled(13, nightly=1)),
    ],
    ids=["length", "chunked", "eof"],
)
async def test_an_end_at_every_byte_of_a_response(framing: Framing, step: int) -> None:
    """The same with a regular end of the connection, also where nothing but the JSON tells of it."""
    async with FaultServer() as server:
        assert await embed_at_offsets(server, Close(), framing, step) == 0


@pytest.mark.row("N01")
def test_with_the_circuit_breaker_on() -> None:
    """Cut off at every second request, it opens; who waits for it gets the right rows all the same."""

    async def main(clock: SimulatedClock) -> None:
        whole = answer(Framing.LENGTH)
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock, flags={"coalesce": False}) as client,
        ):
            server.default(CutFirst(Reset(), whole, 40))
            for number in range(len(bytes(whole)) // 40):
                found = await client.embed(MODEL, TEXTS, extra={"number": number}, when_open="wait")
                np.testing.assert_array_equal(found.vectors, expected(TEXTS))

    run_simulated(main)


@pytest.mark.row("N06")
async def test_an_unsolicited_response_is_never_used() -> None:
    """A whole right-looking answer behind each answer: the connection is not used again."""

    def doubled(request: Request) -> bytes:
        return bytes(answer_openai(request)) + bytes(strange_answer(request))

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(doubled)
        for number in range(50):
            texts = [f"{text} of {number}" for text in TEXTS]
            np.testing.assert_array_equal((await client.embed(MODEL, texts)).vectors, expected(texts))
        assert server.connections == 50


RACES: dict[str, Playable] = {
    "closes after each answer": CloseAfter(1),
    "closes after three answers": CloseAfter(3),
    "resets after each answer": lambda request: Script([Respond(answer_openai(request)), Reset()]),
}


@pytest.mark.row("N15")
@pytest.mark.parametrize("race", RACES.values(), ids=RACES)
async def test_an_idle_connection_closed_by_the_server_is_replaced(race: Playable) -> None:
    """Nobody sees an error, whatever the moment; no call takes more than one further request."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=0)) as client:
        server.default(race)

        async def one(number: int) -> bool:
            found = await client.embed(MODEL, [f"text {number}"])
            return bool(np.array_equal(found.vectors, expected([f"text {number}"])))

        numbers = iter(range(CALLS))

        async def worker() -> list[bool]:
            return [await one(number) for number in numbers]

        good = list(itertools.chain(*await asyncio.gather(*(worker() for _ in range(AT_ONCE)))))
        assert len(good) == CALLS
        assert all(good)
        assert len(server.requests) <= 2 * CALLS


@pytest.mark.row("N15")
def test_idle_connections_that_end_during_reuse_are_replaced() -> None:
    """A server that closes after 5 s of idleness, give or take 10 ms, and a client that comes then."""

    async def main(clock: SimulatedClock) -> None:
        closings: Iterator[float] = itertools.cycle([4.99, 5.0, 5.01, 5.005, 4.995])
        pauses = itertools.cycle([5.0, 4.995, 5.0, 5.01, 4.99, 5.005, 5.0])
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now, idle_close=lambda: next(closings)) as server,
            llmopt.AsyncClient(config(server, max_retries=0), clock=clock) as client,
        ):
            for number in range(scaled(140, nightly=700)):
                found = await client.embed(MODEL, [f"text {number}"])
                np.testing.assert_array_equal(found.vectors, expected([f"text {number}"]))
                await clock.sleep(next(pauses))

    run_simulated(main)


@pytest.mark.row("N16")
def test_an_idle_connection_to_a_dead_peer_is_replaced() -> None:
    """The attempt times out, and the batch is retried in halves, each on a fresh connection."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, timeouts={"read": 2.0}), clock=clock) as client,
        ):
            await client.embed(MODEL, TEXTS)
            server.play(Script([Stall(reading=False)]))
            found = await client.embed(MODEL, TEXTS)
            np.testing.assert_array_equal(found.vectors, expected(TEXTS))
            assert clock.elapsed < 2.1
            assert [request.connection for request in server.requests] == [1, 1, 2, 3]

    run_simulated(main)
