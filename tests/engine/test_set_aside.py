"""Several endpoints that do not serve the same models: the others are asked, and the one that lacks a model is left alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import EndpointSetAside, Event
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Request, answer_openai, error_answer
from tests.support.faults.openai import chat_payload, stream_answer
from tests.support.faults.response import json_answer
from tests.support.faults.script import Reply

MESSAGES = [{"role": "user", "content": "hi"}]
LACKS = error_answer(404, "The model does not exist.", code="model_not_found")
FORBIDS = error_answer(403, "This project has no access to the model.", code="model_forbidden")


def answer(request: Request) -> Reply:
    """Every operation, answered well."""
    if request.path.endswith("/embeddings"):
        return answer_openai(request)
    if request.json().get("stream"):
        return stream_answer(["good"])
    return json_answer(chat_payload(["good"]))


def without(refusal: Answer, *models: str) -> Callable[[Request], Reply]:
    """A server that serves all models but these."""

    def reply(request: Request) -> Reply:
        return refusal if request.json()["model"] in models else answer(request)

    return reply


async def stream_text(client: llmopt.AsyncClient, model: str) -> str:
    async with client.stream(model, MESSAGES) as stream:
        async for _ in stream:
            pass
    return stream.text


@pytest.mark.row("B07")
@pytest.mark.parametrize("refusal", [LACKS, FORBIDS], ids=["lacks", "forbids"])
@pytest.mark.parametrize("plugin", ["local", "compatible", "openai"])
@pytest.mark.parametrize("retries", [0, 2])
async def test_calls_go_to_the_endpoint_that_has_the_model(
    refusal: Answer, plugin: str, retries: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Embeddings, chats and streams; each operation finds out once, and says which endpoint it leaves alone."""
    events: list[Event] = []
    async with FaultServer() as poor, FaultServer() as rich:
        keys = provider_config(poor, rich, plugin=plugin, api_key="test-key", max_retries=retries)
        poor.default(without(refusal, "m"))
        rich.default(answer)
        with caplog.at_level(logging.WARNING, "llmopt"):
            async with llmopt.AsyncClient(keys, on_event=events.append, cache=False) as client:
                for number in range(12):
                    assert (await client.embed("server/m", [f"text {number}"])).errors == {}
                    assert (await client.chat("server/m", MESSAGES)).text == "good"
                    assert await stream_text(client, "server/m") == "good"
                # Another model of the same endpoint is served as before.
                for number in range(12):
                    await client.embed("server/other", [f"text {number}"])
        refused = [request for request in poor.requests if request.json()["model"] == "m"]
        assert len(refused) == 2
        assert len(poor.requests) > 2
    asides = [event for event in events if isinstance(event, EndpointSetAside)]
    assert sorted(event.operation for event in asides) == ["chat", "embeddings"]
    assert {(event.provider, event.model, event.index) for event in asides} == {("server", "m", 0)}
    warnings = [record.message for record in caplog.records if "does not serve" in record.message]
    assert len(warnings) == 2
    assert all("providers.server.endpoints[0]" in each for each in warnings)


@pytest.mark.row("B07")
async def test_a_model_that_no_endpoint_has_is_an_error_of_one_request() -> None:
    """The first call asks each endpoint, later ones any of them: the model may exist by then."""
    async with FaultServer() as first, FaultServer() as second:
        for server in (first, second):
            server.default(without(LACKS, "m"))
        async with llmopt.AsyncClient(provider_config(first, second), cache=False) as client:
            for requests in (2, 3, 4):
                with pytest.raises(llmopt.NotFound, match="does not exist"):
                    await client.embed("server/m", ["a"])
                assert len(first.requests) + len(second.requests) == requests
            first.default(answer)
            # As soon as one endpoint has answered, it is the one to ask.
            for _ in range(20):
                try:
                    await client.embed("server/m", ["a"])
                    break
                except llmopt.NotFound:
                    continue
            for number in range(12):
                await client.embed("server/m", [f"text {number}"])


async def test_a_single_endpoint_is_asked_each_time() -> None:
    """There is no other one: nothing is remembered, and nothing is said."""
    events: list[Event] = []
    async with FaultServer() as server:
        server.default(without(LACKS, "m"))
        async with llmopt.AsyncClient(provider_config(server), on_event=events.append, cache=False) as client:
            for _ in range(3):
                with pytest.raises(llmopt.NotFound):
                    await client.embed("server/m", ["a"])
        assert len(server.requests) == 3
    assert not any(isinstance(event, EndpointSetAside) for event in events)


@pytest.mark.row("B07")
async def test_two_keys_of_one_address() -> None:
    """Endpoints may differ in the key alone: the event names the endpoint by its position."""
    events: list[Event] = []

    def reply(request: Request) -> Reply:
        return answer(request) if request.header("authorization") == "Bearer rich-key" else FORBIDS

    async with FaultServer() as server:
        server.default(reply)
        keys: dict[str, Any] = {
            "plugin": "local",
            "base_url": server.base_url,
            "endpoints": [{"api_key": "rich-key"}, {"api_key": "poor-key"}, {"api_key": "poor-key-2"}],
        }
        async with llmopt.AsyncClient({"providers": {"server": keys}}, on_event=events.append) as client:
            for number in range(40):
                await client.embed("server/m", [f"text {number}"])
        assert len(server.requests) == 42
    assert sorted(event.index for event in events if isinstance(event, EndpointSetAside)) == [1, 2]


@pytest.mark.row("B07")
def test_the_endpoint_is_asked_again_after_some_minutes() -> None:
    """A deployment that was made meanwhile is found; one that is still missing costs one request."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as poor,
            FaultServer(sleep=clock.sleep, clock=clock.now) as rich,
            llmopt.AsyncClient(provider_config(poor, rich), clock=clock, cache=False) as client,
        ):
            poor.default(without(LACKS, "m"))
            rich.default(answer)

            async def calls() -> None:
                for number in range(12):
                    await client.embed("server/m", [f"text {number}"])

            await calls()
            assert len(poor.requests) == 1
            await clock.sleep(301.0)
            await calls()
            assert len(poor.requests) == 2
            await clock.sleep(301.0)
            poor.default(answer)
            await calls()
            assert len(poor.requests) > 3

    run_simulated(main)


@pytest.mark.row("B07")
def test_another_endpoint_that_has_to_wait_is_waited_for() -> None:
    """It is throttled for two seconds at the moment when the first one turns out to lack the model."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as rich,
            FaultServer(sleep=clock.sleep, clock=clock.now) as poor,
        ):
            rich.play(bytes(Answer(429, b"{}", [("retry-after", "2")])))
            rich.default(answer)
            poor.default(without(LACKS, "m"))
            keys = provider_config(rich, poor, flags={"balance": False})
            async with llmopt.AsyncClient(keys, clock=clock, cache=False) as client:
                await client.embed("server/m", ["a"])
            assert (len(rich.requests), len(poor.requests)) == (2, 1)

    run_simulated(main)
