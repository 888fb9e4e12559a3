"""What an operator reads of a client: counters and gauges as plain values."""

from __future__ import annotations

import json
from typing import Any

import pytest

import llmopt
from llmopt.testing import FakeProvider
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.faults import Answer, FaultServer, answer_openai

DOWN = bytes(Answer(503, b'{"error":{"message":"down"}}', [("content-type", "application/json")]))
NO_KEY = bytes(Answer(401, b'{"error":{"message":"who?"}}', [("content-type", "application/json")]))


def only(client: llmopt.AsyncClient | llmopt.Client) -> dict[str, Any]:
    ((provider, endpoints),) = client.stats().items()
    ((endpoint, found),) = endpoints.items()
    assert provider
    assert endpoint
    counters: dict[str, Any] = found
    return counters


def test_counters_tell_what_was_done_and_why_it_waited() -> None:
    """Requests, retries, errors by name, tokens, and seconds by cause."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            entry = {"plugin": "local", "base_url": server.base_url, "max_retries": 1, "rpm": 60}
            async with llmopt.AsyncClient({"providers": {"server": entry}}, clock=clock) as client:
                server.default(answer_openai)
                server.play(DOWN)
                for number in range(4):
                    await client.embed("server/m", [f"text {number}"])
                server.play(NO_KEY)
                with pytest.raises(llmopt.AuthError):
                    await client.embed("server/m", ["refused"])
                found = only(client)
                assert found["requests"] == len(server.requests) == 6
                assert found["succeeded"] == 4
                assert found["errors"] == {"Overloaded": 1, "AuthError": 1}
                assert found["retries"] == 1
                assert found["input_tokens"] > 0
                assert found["waited_s"]["limiter"] > 3
                assert found["in_flight"] == found["waiting"] == 0
                assert found["breakers"]["m embeddings"] == {"origin": "closed", "model": "closed"}
                json.dumps(client.stats())

    run_simulated(main)


def test_an_engine_inside_the_process_is_counted_too() -> None:
    """A user of the embedded model sees what it did."""
    with llmopt.Client({"providers": {"local": {}}}) as client:
        client.embed("local/default", ["one", "two"])
        found = only(client)
        assert (found["requests"], found["succeeded"]) == (1, 1)


def test_a_fake_counts_chats_and_their_tokens() -> None:
    """Chats, streamed or not, are requests like any other."""
    with FakeProvider() as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
        client.chat("fake/fake-chat", [{"role": "user", "content": "hello"}])
        with client.stream("fake/fake-chat", [{"role": "user", "content": "hello"}]) as stream:
            list(stream)
        found = only(client)
        assert (found["requests"], found["succeeded"], found["errors"]) == (2, 2, {})
        assert found["output_tokens"] > 0
