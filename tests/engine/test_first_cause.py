"""The first cause of a failure reaches the caller: through an open circuit, a partial failure, several endpoints, a plugin."""

from __future__ import annotations

import functools
import json
import logging
import pickle
import traceback
from types import SimpleNamespace
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import BreakerChanged
from llmopt.values.http import HttpRequest
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Request, answer_openai, json_answer

MODEL = "server/m"
KEY = "canary-key-58d1c07e"
config = functools.partial(provider_config, retry_delay=0.001, api_key=KEY)


def refused(words: str, status: int = 500) -> Answer:
    return json_answer({"error": {"message": words}}, status=status)


async def failure(client: llmopt.AsyncClient, texts: list[str], **options: Any) -> llmopt.LLMOptError:
    with pytest.raises(llmopt.LLMOptError) as caught:
        await client.embed(MODEL, texts, **options)
    return caught.value


@pytest.mark.row("F01")
def test_an_open_circuit_names_what_opened_it(caplog: pytest.LogCaptureFixture) -> None:
    """In words, as an attribute, as the cause, in the event and in the log; also after pickling."""
    events: list[Any] = []

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=0), clock=clock, on_event=events.append) as client,
        ):
            server.default(refused("the disk of shard 7 is full"))
            error, origin = await failure(client, ["a"]), server.base_url
            for number in range(40):
                if isinstance(error := await failure(client, [f"{number}"]), llmopt.CircuitOpen):
                    break
        for each in (error, pickle.loads(pickle.dumps(error)), error.copy()):
            assert isinstance(each, llmopt.CircuitOpen)
            assert "ServerError: the disk of shard 7 is full (HTTP 500)" in str(each)
            assert isinstance(each.failure, llmopt.ServerError)
            assert (each.failure.status, each.requests) == (500, 0)
        assert "the disk of shard 7" in "".join(traceback.format_exception(error)[:2])
        (change,) = (event for event in events if isinstance(event, BreakerChanged))
        assert (change.provider, change.endpoint, change.model) == ("server", origin, "m")
        assert (change.new, change.cause) == ("open", "ServerError")

    with caplog.at_level(logging.WARNING):
        run_simulated(main)
    assert "after ServerError: the disk of shard 7 is full" in caplog.text


@pytest.mark.row("F01")
def test_a_job_in_an_outage_names_the_outage() -> None:
    """Not that the circuit was open when its last texts came; and how many requests were sent."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, rpm=1e6, tpm=1e9), clock=clock) as client,
        ):
            server.default(answer_openai)
            await client.embed(MODEL, ["warm"])
            before = len(server.requests)
            server.default(refused("the disk of shard 7 is full"))
            error = await failure(client, [f"text {number}" for number in range(2_000)])
            assert "ServerError: the disk of shard 7 is full" in str(error)
            assert isinstance(error, llmopt.CircuitOpen)
            assert isinstance(error.failure, llmopt.ServerError)
            assert 0 < error.requests <= len(server.requests) - before

    run_simulated(main)


@pytest.mark.row("F01")
async def test_a_partial_failure_has_its_cause_and_number_of_requests() -> None:
    """Those that failed count too."""

    def reply(request: Request) -> Answer:
        bad = "bad" in " ".join(request.json()["input"])
        return refused("the word bad is not allowed", 400) if bad else answer_openai(request)

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(reply)
        error = await failure(client, ["a", "bad", "c", "d"])
    assert isinstance(error, llmopt.PartialFailure)
    assert error.requests == len(server.requests) > 2
    assert f"({error.requests} requests were sent)" in str(error)
    assert isinstance(error.failure, llmopt.ItemRejected)
    assert "the word bad is not allowed" in str(error.__cause__)
    assert pickle.loads(pickle.dumps(error)).requests == error.requests


@pytest.mark.row("F02")
async def test_all_failed_endpoints_are_named() -> None:
    """Each with what it said last; later, when their circuits are open, again."""
    async with (
        FaultServer() as one,
        FaultServer() as two,
        llmopt.AsyncClient(config(one, two, max_retries=3)) as client,
    ):
        one.default(refused("one has no memory"))
        two.default(refused("two is on fire"))
        error = await failure(client, ["a"])
        for number in range(60):
            for text in ("one has no memory", "two is on fire", one.base_url, two.base_url):
                assert text in str(error)
            if isinstance(error, llmopt.CircuitOpen):
                break
            error = await failure(client, [f"{number}"])
        assert isinstance(error, llmopt.CircuitOpen)


@pytest.mark.row("F02")
async def test_all_refused_keys_are_named() -> None:
    """A key that was refused is not tried again for a while, and the error still says of both why."""
    async with (
        FaultServer() as one,
        FaultServer() as two,
        llmopt.AsyncClient(config(one, two)) as client,
    ):
        one.default(refused("key one is revoked", 401))
        two.default(refused("no credit at two", 402))
        for text in ("a", "b"):
            error = await failure(client, [text])
            assert "key one is revoked" in str(error)
            assert "no credit at two" in str(error)
        assert len(one.requests) + len(two.requests) == 2


@pytest.mark.row("F03")
def test_responses_that_do_not_fit_open_no_circuit() -> None:
    """The same fault in each response is the request's: other requests for the model succeed meanwhile."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, rpm=1e6, tpm=1e9), clock=clock) as client,
        ):
            server.default(answer_openai)
            texts = [f"text {number}" for number in range(900)]
            for body in (b"<html>log in</html>", b'{"data": [{"embedding": [1, 2]}]}', b'{"data": []}'):
                server.default(Answer(200, body, [("content-type", "application/json")]))
                error = await failure(client, texts)
                assert "failed repeatedly" not in str(error)
                assert isinstance(error, llmopt.InvalidResponse)
                server.default(answer_openai)
                await client.embed(MODEL, [f"another text {body!r}"])

    run_simulated(main)


def of_plugin(**hooks: Any) -> list[Any]:
    return [SimpleNamespace(**{name: llmopt.hookimpl(function) for name, function in hooks.items()})]


def parse_embeddings(response: Any) -> object:
    return json.loads(response.body)["no such field"]


@pytest.mark.row("G03")
async def test_a_hook_exception_keeps_its_text_and_place() -> None:
    """For every operation, whole and in parts; and its frame is in the traceback."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), plugins=of_plugin(parse_embeddings=parse_embeddings)) as client,
    ):
        server.default(answer_openai)
        for texts in (["a"], [f"text {number}" for number in range(100)]):
            error = await failure(client, texts)
            assert isinstance(error, llmopt.PluginContractError)
            line = parse_embeddings.__code__.co_firstlineno + 1
            assert f"raised KeyError: 'no such field' (engine/test_first_cause.py, line {line})" in str(error)
            shown = "".join(traceback.format_exception(error))
            assert "in parse_embeddings" in shown
            assert 'json.loads(response.body)["no such field"]' in shown


@pytest.mark.row("G03", "S02")
async def test_a_hook_exception_is_redacted() -> None:
    """A plugin may put all that it was given into its message."""

    def build_request(call: Any, settings: Any) -> HttpRequest:
        sent = f"cannot send {settings.auth_headers()['authorization']!s} with '{call.texts[0]}'"
        if call.texts[0].startswith("canary-text-a07c in"):
            raise TypeError("no key here") from ValueError(sent)
        raise ValueError(sent)

    async with llmopt.AsyncClient(
        {"providers": {"server": {"plugin": "local", "base_url": "http://127.0.0.1:1/v1", "api_key": KEY}}},
        plugins=of_plugin(build_request=build_request),
    ) as client:
        error = await failure(client, ["canary-text-a07c and more"])
        assert "ValueError: cannot send Bearer [key] with '[text]'" in str(error)
        inside = await failure(client, ["canary-text-a07c in the cause of an exception"])
        assert "TypeError: no key here" in str(inside)
    for each in (error, inside):
        shown = "".join(traceback.format_exception(each))
        assert "in build_request" in shown
        assert KEY not in shown
        assert "canary-text" not in shown


@pytest.mark.row("G03")
@pytest.mark.parametrize(
    "body", [{"x": {1, 2}.__iter__()}, {"x": object()}, {(1, 2): 3}], ids=["iterator", "object", "key"]
)
async def test_a_body_that_is_not_json_is_a_plugin_error(body: Any) -> None:
    """What the caller passed as ``extra`` was checked before."""

    def build_request() -> HttpRequest:
        return HttpRequest(method="POST", path="/embeddings", json=body)

    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), plugins=of_plugin(build_request=build_request)) as client,
    ):
        error = await failure(client, ["a"], extra={"user": "me"})
    assert isinstance(error, llmopt.PluginContractError)
    assert "built a request body that JSON cannot express" in str(error)
    assert "extra" not in str(error)
    assert server.requests == []
