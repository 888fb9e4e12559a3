"""Failures whose cause is this process or machine: no circuit opens, and no retry budget is spent."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import BreakerChanged, RequestAttempt, RequestRetry
from tests.support.configuration import provider_config as config
from tests.support.faults import (
    Answer,
    FaultServer,
    Playable,
    Respond,
    Script,
    Send,
    Stall,
    Wait,
    answer_openai,
)
from tests.support.scale import scaled

MODEL = "server/m"
MESSAGES = [{"role": "user", "content": "x"}]


async def outcome_of(client: llmopt.AsyncClient, text: str) -> str:
    try:
        await client.embed(MODEL, [text])
    except llmopt.LLMOptError as error:
        return type(error).__name__
    return "ok"


async def slow_turns(clock: SimulatedClock, seconds: float) -> None:
    """Let every turn of the event loop take up to some seconds, as on a starved machine."""
    rng = random.Random(seconds)
    while True:
        await asyncio.sleep(0)
        clock.advance(rng.uniform(0, seconds))


def starved(read: float, turn: float, calls: int) -> tuple[Counter[str], list[Any], dict[str, Any]]:
    """The outcomes of calls on a starved machine, the events, and the endpoint's statistics after them."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> tuple[Counter[str], dict[str, Any]]:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, timeouts={"read": read}, max_concurrency=50, max_retries=2, retry_delay=0.1),
                clock=clock,
                on_event=events.append,
                flags={"limiter": False, "coalesce": False},
            ) as client,
        ):
            server.default(answer_openai)
            assert await outcome_of(client, "warm") == "ok"
            server.default(Script([Wait(0.5), Respond(answer_openai)]))
            busy = asyncio.create_task(slow_turns(clock, turn))
            outcomes = await asyncio.gather(*(outcome_of(client, f"text {n}") for n in range(calls)))
            busy.cancel()
            return Counter(outcomes), client.stats()["server"][server.base_url]

    outcomes, stats = run_simulated(main)
    return outcomes, events, stats


@pytest.mark.row("C11")
@pytest.mark.parametrize(("read", "turn"), [(2.0, 1.5), (10.0, 3.0)])
def test_a_starved_machine_opens_no_circuit(read: float, turn: float) -> None:
    """The server answers within half a second all the time; only this process is late."""
    outcomes, events, stats = starved(read, turn, scaled(150, nightly=3000))
    attempts = Counter(event.outcome for event in events if isinstance(event, RequestAttempt))
    assert attempts["AttemptTimeout"] > 10  # the machine is as slow as the test means it to be
    assert set(outcomes) <= {"ok", "AttemptTimeout"}
    assert not [event for event in events if isinstance(event, BreakerChanged)]
    assert stats["budget"] == 500
    assert stats["concurrency"] == 50


@pytest.mark.row("C11")
def test_the_error_says_that_the_loop_was_late() -> None:
    """The user can do something about that."""

    async def main(clock: SimulatedClock) -> str:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, timeouts={"read": 5}, max_retries=0), clock=clock) as client,
        ):
            server.default(Script([Stall()]))
            call = asyncio.create_task(client.embed(MODEL, ["a"]))
            await server.wait_requests(1)
            clock.advance(30)
            with pytest.raises(llmopt.AttemptTimeout) as caught:
                await call
            return str(caught.value)

    assert "event loop was 29" in run_simulated(main)


@pytest.mark.row("C11")
def test_a_hanging_server_still_opens_the_circuit() -> None:
    """On a loop that is late for a moment only."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, timeouts={"read": 10}, max_retries=0, max_concurrency=20),
                clock=clock,
                on_event=events.append,
                flags={"limiter": False},
            ) as client,
        ):
            server.default(Script([Stall()]))
            calls = [asyncio.create_task(outcome_of(client, f"text {number}")) for number in range(20)]
            await server.wait_requests(20)
            clock.advance(0.3)
            assert {await call for call in calls} == {"AttemptTimeout"}

    run_simulated(main)
    assert [event for event in events if isinstance(event, BreakerChanged)]


@pytest.mark.row("C11")
@pytest.mark.parametrize("status", [408, 504])
def test_a_408_after_a_late_loop_is_no_fault_of_the_server(status: int) -> None:
    """The server has waited for the request; a 504 is a timeout behind the server."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, max_retries=0, max_concurrency=20),
                clock=clock,
                on_event=events.append,
                flags={"limiter": False},
            ) as client,
        ):
            answer = Answer(status, b'{"error": {"message": "late"}}', [("content-type", "application/json")])
            server.default(Script([Wait(1.0), Respond(answer)]))
            calls = [asyncio.create_task(outcome_of(client, f"text {number}")) for number in range(20)]
            await server.wait_requests(20)
            clock.advance(20)
            assert {await call for call in calls} == {"RequestTimeout"}

    run_simulated(main)
    assert bool([event for event in events if isinstance(event, BreakerChanged)]) is (status == 504)


@pytest.mark.row("C12")
@pytest.mark.parametrize(
    "number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL]
)
def test_a_lack_of_resources_opens_no_circuit(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is retried, costs nothing of the budget, and everything works again afterwards."""
    events: list[Any] = []

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, "canned")

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, max_retries=1, keepalive=0), clock=clock, on_event=events.append
            ) as client,
        ):
            server.default(answer_openai)
            assert await outcome_of(client, "warm") == "ok"
            with monkeypatch.context() as patched:
                patched.setattr(socket, "socket", refuse)
                outcomes = await asyncio.gather(*(outcome_of(client, f"text {n}") for n in range(30)))
            assert set(outcomes) == {"OutOfResources"}
            assert await outcome_of(client, "later") == "ok"
            assert client.stats()["server"][server.base_url]["budget"] == 500

    run_simulated(main)
    assert not [event for event in events if isinstance(event, BreakerChanged)]
    assert len([event for event in events if isinstance(event, RequestRetry)]) == 30


@pytest.mark.row("C12")
@pytest.mark.parametrize(
    ("error", "resource"),
    [
        (MemoryError(), "memory"),
        (ImportError(f"libx.so: cannot open: {os.strerror(errno.EMFILE)}"), "descriptors"),
        (RuntimeError("can't start new thread"), "threads"),
        (OSError(errno.ENOSPC, "canned"), "disk"),
    ],
    ids=lambda value: (
        getattr(value, "__class__", type(value)).__name__ if isinstance(value, Exception) else value
    ),
)
async def test_a_lack_while_a_response_is_parsed_has_its_own_error(
    error: Exception, resource: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever raises it, it is no foreign exception, and the plugin is not blamed."""

    def exhausted(*_: Any, **__: Any) -> None:
        raise error

    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=0)) as client:
        server.default(answer_openai)
        for place in (
            "llmopt.compatible.parse_embeddings",
            "llmopt.operations.embed_run.in_input_order",
        ):
            with monkeypatch.context() as patched:
                patched.setattr(place, exhausted)
                with pytest.raises(llmopt.OutOfResources) as caught:
                    await client.embed(MODEL, ["a"])
            assert caught.value.resource == resource
            assert caught.value.endpoint == server.base_url.removesuffix("/v1")
        assert await outcome_of(client, "b") == "ok"


DRIP = Script(
    [
        Send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n"),
        *[Send(b" "), Wait(1.0)] * 400,
    ]
)


@pytest.mark.row("C19")
@pytest.mark.parametrize("play", [Script([Stall()]), DRIP], ids=["black hole", "slow loris"])
@pytest.mark.parametrize(
    ("timeouts", "operation", "seconds"),
    [
        ({"read": 2}, "embed", 2),
        ({"read_large": 2, "read": 2}, "embed", 2),
        ({"chat": 2}, "chat", 2),
        ({"first_event": 2}, "stream", 2),
        ({"first_event": 2}, "reasoning", 2),
        ({"read": 2}, "list", 2),
        ({"connect": 2}, "embed", 300),
        ({"read": 2, "first": 20}, "embed", 20),
    ],
    ids=str,
)
def test_a_configured_timeout_bounds_the_first_attempt(
    play: Playable, timeouts: dict[str, float], operation: str, seconds: float
) -> None:
    """A local server may load its model for five minutes, unless the user has set the timeout."""

    async def main(clock: SimulatedClock) -> float:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, timeouts=timeouts, max_retries=0), clock=clock, cache=False
            ) as client,
        ):
            server.default(play)
            with pytest.raises(llmopt.AttemptTimeout):
                if operation == "embed":
                    await client.embed(MODEL, ["a"])
                elif operation == "chat":
                    await client.chat(MODEL, MESSAGES)
                elif operation == "list":
                    await client.list_models("server")
                else:
                    effort = "high" if operation == "reasoning" else None
                    async with client.stream(MODEL, MESSAGES, reasoning_effort=effort):
                        pass
            return clock.elapsed

    assert run_simulated(main) == pytest.approx(seconds, abs=0.5)


@pytest.mark.row("C12")
async def test_a_lack_in_the_middle_of_a_stream_interrupts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the reply until then, as any other break, but not as the server's fault."""

    def exhausted(*_: Any) -> None:
        raise MemoryError

    begin = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
    event = b'data: {"choices": [{"index": 0, "delta": {"content": "word "}}]}\n\n'
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=0)) as client:
        server.default(Script([Send(begin + event), Wait(gate), Send(event), Wait(5.0)]))
        async with client.stream(MODEL, MESSAGES) as stream:
            assert (await anext(stream)).text == "word "
            monkeypatch.setattr("llmopt.engine.event_reader.EventReader.feed", exhausted)
            gate.set()
            with pytest.raises(llmopt.StreamInterrupted, match="out of memory") as caught:
                await anext(stream)
        assert (caught.value.text, caught.value.local) == ("word ", True)


AFTER_A_SUCCESS = """
import asyncio, sys
import llmopt
from tests.support.configuration import provider_config as config
from tests.support.faults import Answer, FaultServer, Reset, Script, Stall, answer_openai

JSON = [("content-type", "application/json")]
FAULTS = {
    "server error": Answer(500, b'{"error": {"message": "x"}}', JSON),
    "rate limit": Answer(429, b"{}", [*JSON, ("retry-after", "Wed, 21 Oct 2065 07:28:00 GMT")]),
    "refusal": Answer(400, b'{"error": {"message": "x"}}', JSON),
    "page": Answer(502, b"<html>", [("content-type", "text/html")]),
    "half": Answer(200, b"{", JSON),
    "gzip": Answer(200, b"x", [*JSON, ("content-encoding", "gzip")]),
    "redirect": Answer(302, b"", [("location", "/x")]),
    "reset": Script([Reset()]),
    "silence": Script([Stall()]),
}

async def main():
    async with FaultServer() as server:
        async with llmopt.AsyncClient(
            config(server, max_retries=0, timeouts={"read": 0.05}), cache=False, flags={"breaker": False, "limiter": False}
        ) as client:
            server.default(answer_openai)
            await client.embed("server/m", ["warm"])
            before = set(sys.modules)
            for name, fault in FAULTS.items():
                server.default(fault)
                for texts in (["a"], ["b", "c"]):
                    result = await client.embed("server/m", [name + each for each in texts], errors="return")
                    assert result.errors, name
            print(*sorted(set(sys.modules) - before))

asyncio.run(main())
"""


@pytest.mark.row("C12")
def test_failures_import_nothing() -> None:
    """Without a free descriptor nothing can be imported, so what failures need is there before."""
    found = subprocess.run(
        [sys.executable, "-c", AFTER_A_SUCCESS], capture_output=True, text=True, check=True
    )
    # But for structlog, which the log imports in a thread of its own.
    packages = {name.partition(".")[0] for name in found.stdout.split()}
    assert packages <= {"structlog", "rich", "pygments", "colorsys", "fractions"}
