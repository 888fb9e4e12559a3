"""Chats without streaming: requests, replies and retries."""

from __future__ import annotations

import json
import logging
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Reset,
    Script,
    Stall,
    answer_openai,
    chat_payload,
    cut,
    error_answer,
    faults_of,
    json_answer,
)
from tests.support.streams import (
    DONE,
    MESSAGES,
    MODEL,
    config,
    error_event,
    event,
    is_idle,
    stream_script,
    word_events,
)

REPLY = json_answer(chat_payload(["Hello", " world"]), headers=[("x-request-id", "req_7")])
LENGTH = len(bytes(REPLY))


async def test_every_option_reaches_the_server() -> None:
    """Each parameter by its name, and nothing that was not asked for."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    asked: dict[str, Any] = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "presence_penalty": 0.1,
        "frequency_penalty": -0.1,
        "tools": [tool],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "response_format": {"type": "json_object"},
        "reasoning_effort": "low",
    }
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(REPLY)
        messages = [llmopt.Message("system", "Be brief."), {"role": "user", "content": "Hello?"}]
        reply = await client.chat(MODEL, messages, stop="END", extra={"top_k": 1}, **asked)
        await client.chat(MODEL, MESSAGES)
    sent = server.requests[0].json()
    base = {"model": "m", "stream": False, "stop": ["END"], "top_k": 1}
    assert sent.pop("messages") == [{"role": "system", "content": "Be brief."}, *MESSAGES]
    assert sent == {**base, **asked}
    assert server.requests[1].json() == {"model": "m", "stream": False, "messages": MESSAGES}
    assert (reply.text, reply.finish_reason, reply.request_id) == ("Hello world", "stop", "req_7")
    assert reply.usage is not None
    assert (reply.usage.total_tokens, reply.usage.requests) == (4, 1)


BAD: list[tuple[Any, dict[str, Any], str, int | None]] = [
    ("Hello?", {}, "one question", None),
    ([], {}, "empty", None),
    ({"role": "user", "content": "x"}, {}, "must be a list", None),
    ([*MESSAGES, "Hello?"], {}, "message 1 is of type str", 1),
    ([*MESSAGES, {"content": "x"}], {}, "message 1 has no role", 1),
    ([{"role": "user"}], {}, "message 0 has no content", 0),
    ([{"role": "user", "content": "a\ud800b"}], {}, "surrogate", 0),
    ([{"role": "user", "content": {1, object()}}], {}, "JSON", 0),
    (MESSAGES, {"max_tokens": 0}, "max_tokens must be a whole number of 1 or more", None),
    (MESSAGES, {"max_tokens": True}, "max_tokens", None),
    (MESSAGES, {"max_tokens": 1.5}, "max_tokens", None),
    (MESSAGES, {"temperature": float("nan")}, "temperature must be a finite number", None),
    (MESSAGES, {"temperature": -1}, "temperature must be 0 or more", None),
    ([{"role": "user", "content": "x", "provider_data": "y"}], {}, "provider_data of message 0", 0),
    (
        [*MESSAGES, {"role": "assistant", "tool_calls": [{"id": "a", "provider_data": ["y"]}]}],
        {},
        "provider_data of message 1",
        1,
    ),
    (
        [llmopt.Message("user", "x", provider_data={"a": object()})],
        {},
        "message 0 contains a value that JSON cannot express",
        0,
    ),
    (MESSAGES, {"temperature": "hot"}, "temperature", None),
    (MESSAGES, {"top_p": 1.5}, "top_p must be from 0 to 1", None),
    (MESSAGES, {"stop": ["a", ""]}, "stop", None),
    (MESSAGES, {"stop": 7}, "stop", None),
    (MESSAGES, {"seed": 1.0}, "seed", None),
    (MESSAGES, {"tools": {"type": "function"}}, "tools must be a list", None),
    (MESSAGES, {"tools": ["look"]}, "tool 0", None),
    (MESSAGES, {"tool_choice": 7}, "tool_choice", None),
    (MESSAGES, {"parallel_tool_calls": "yes"}, "parallel_tool_calls", None),
    (MESSAGES, {"response_format": "json"}, "response_format", None),
    (MESSAGES, {"reasoning_effort": ""}, "reasoning_effort", None),
    (MESSAGES, {"extra": {"a": float("inf")}}, "extra", None),
]


@pytest.mark.row("I01", "I05")
@pytest.mark.parametrize(("messages", "options", "told", "index"), BAD, ids=range(len(BAD)))
async def test_invalid_arguments_are_refused_before_sending(
    messages: Any, options: dict[str, Any], told: str, index: int | None
) -> None:
    """For a chat and for a stream alike, which is refused when it is made."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        with pytest.raises(llmopt.InvalidInput, match=told) as caught:
            await client.chat(MODEL, messages, **options)
        assert caught.value.index == index
        with pytest.raises(llmopt.InvalidInput, match=told):
            client.stream(MODEL, messages, **options)
    assert server.connections == 0


@pytest.mark.parametrize("size", [0, -1, True, 1.0, "10", 10**9])
async def test_an_invalid_buffer_size_is_refused(size: Any) -> None:
    """Refused likewise."""
    async with llmopt.AsyncClient() as client:
        with pytest.raises(llmopt.InvalidInput, match="buffer_size"):
            client.stream("openai/m", MESSAGES, buffer_size=size)


@pytest.mark.row("N01", "N02")
@pytest.mark.parametrize("end", [Reset(), Close()], ids=["N01", "N02"])
async def test_a_response_broken_at_any_byte_is_retried_once(end: Reset | Close) -> None:
    """It may have been carried out: once more, and then no more."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, max_retries=3), flags={"breaker": False}) as client,
    ):
        for offset in range(0, LENGTH, 11):
            server.requests.clear()
            server.play(cut(offset, end, REPLY))
            server.default(REPLY)
            assert (await client.chat(MODEL, MESSAGES)).text == "Hello world"
            assert len(server.requests) == 2, offset
            server.requests.clear()
            server.default(cut(offset, end, REPLY))
            with pytest.raises((llmopt.ConnectionLost, llmopt.InvalidResponse)):
                await client.chat(MODEL, MESSAGES)
            assert len(server.requests) == 2, offset
            assert is_idle(client)


def test_the_default_timeout_of_a_chat_is_ten_minutes() -> None:
    """And is repeated once."""

    async def main(clock: SimulatedClock) -> int:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            entry = {"plugin": "openai", "base_url": server.base_url, "api_key": "test-key"}
            async with llmopt.AsyncClient({"providers": {"server": entry}}, clock=clock) as client:
                server.default(Script([Stall()]))
                with pytest.raises(llmopt.AttemptTimeout):
                    await client.chat(MODEL, MESSAGES)
                assert 1201 <= clock.elapsed < 1203
            return len(server.requests)

    assert run_simulated(main) == 2


@pytest.mark.row("H08", "H11", "H14")
@pytest.mark.parametrize(
    ("answer", "kind", "requests"),
    [
        (Answer(200, b"<html>", [("content-type", "text/html")]), llmopt.InvalidResponse, 2),
        (Answer(200, b""), llmopt.InvalidResponse, 2),
        (Answer(204, b""), llmopt.InvalidResponse, 2),
        (json_answer({"choices": []}), llmopt.InvalidResponse, 2),
        (json_answer({"choices": [{"message": {"content": 7}}]}), llmopt.InvalidResponse, 2),
        (error_answer(200, "no", code="insufficient_quota"), llmopt.QuotaExhausted, 1),
        (error_answer(503, "busy"), llmopt.Overloaded, 4),
        (error_answer(400, "bad"), llmopt.BadRequest, 1),
        (error_answer(400, "filtered", code="content_filter"), llmopt.ContentFiltered, 1),
        (error_answer(401, "who?"), llmopt.AuthError, 1),
        (error_answer(404, "what?"), llmopt.NotFound, 1),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
async def test_each_error_status_raises_its_error(
    answer: Answer, kind: type[Exception], requests: int
) -> None:
    """A chat in one piece and a stream are tried again alike."""
    flags = {"breaker": False}
    for streamed in (False, True):
        async with (
            FaultServer() as server,
            llmopt.AsyncClient(config(server, max_retries=3), flags=flags) as client,
        ):
            server.default(answer)
            with pytest.raises(kind):
                if streamed:
                    async with client.stream(MODEL, MESSAGES):
                        raise AssertionError
                await client.chat(MODEL, MESSAGES)
            assert len(server.requests) == requests, streamed
            assert is_idle(client)


@pytest.mark.row("P07")
@pytest.mark.parametrize("fault", faults_of("P07"), ids=lambda fault: fault.name)
async def test_odd_bodies_raise_only_errors_of_llmopt(fault: Any) -> None:
    """Whatever JSON can be: an unusable answer, never another exception. The bodies are of embeddings."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=0)) as client:
        reply = fault.reply
        bodies: Callable[[Any], Any] = reply if callable(reply) else lambda _: reply

        def made(request: Any) -> Any:
            body = json.dumps({"model": "m", "input": ["a", "b"]}).encode()
            import attrs

            return bodies(attrs.evolve(request, body=body, target="/v1/embeddings"))

        server.default(made)
        with pytest.raises(llmopt.LLMOptError):
            await client.chat(MODEL, MESSAGES)
        assert is_idle(client)


CANARY_KEY = "sk-canary-key-8f7e6d5c"
CANARY_TEXT = "canary-prompt-1a2b3c4d"


@pytest.mark.row("S02")
@pytest.mark.parametrize("streamed", [False, True])
async def test_neither_key_nor_prompt_leaks(
    streamed: bool, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    """A provider that repeats both, in a status, in an event, first and later: errors, events, logs, pickles."""
    caplog.set_level(logging.DEBUG)
    prompt = f"Hello, I am {CANARY_TEXT}, who are you?"
    echo = f"You said {prompt} with {CANARY_KEY}."
    events: list[Any] = []
    answers: list[Any] = [error_answer(status, echo) for status in (400, 401, 422, 429, 500)]
    answers += [
        stream_script(error_event(echo)),
        stream_script(*word_events(), error_event(echo), DONE),
        cut(30, Reset(), REPLY),
    ]
    for answer in answers:
        async with FaultServer() as server:
            entry = config(server, api_key=CANARY_KEY, max_retries=1)
            async with llmopt.AsyncClient(entry, on_event=events.append) as client:
                server.default(answer)
                messages = [
                    {"role": "user", "content": [{"type": "text", "text": prompt}]},
                    llmopt.Message("assistant", "Yes?", provider_data={"other": {"signature": prompt}}),
                ]
                with pytest.raises(llmopt.LLMOptError) as caught:
                    if streamed:
                        async with client.stream(MODEL, messages) as stream:
                            async for _ in stream:
                                pass
                    await client.chat(MODEL, messages, deadline=30)
                shown = "".join(traceback.format_exception(caught.value))
                told = [
                    shown,
                    repr(caught.value),
                    repr(vars(caught.value)),
                    repr(events),
                    caplog.text,
                    repr(client),
                ]
                told += [str(pickle.dumps(caught.value)), json.dumps(client.stats()), repr(messages[1])]
                for text in told:
                    assert CANARY_KEY not in text
                    assert CANARY_TEXT not in text


@pytest.mark.parametrize("plugin", ["local", "openai", "mistral"])
async def test_the_common_dialect_sends_no_provider_data(plugin: str) -> None:
    """A conversation may move from a provider that wants it back to one that would refuse the key."""
    data = {"other": {"signature": "c2lnbmVk"}}
    called = llmopt.ToolCall(id="a", name="f", arguments="{}", provider_data=data)
    told = [
        llmopt.Message("assistant", "x", tool_calls=[called], provider_data=data),
        {"role": "tool", "tool_call_id": "a", "content": "y", "provider_data": {}},
    ]
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, plugin=plugin, api_key="k")) as client,
    ):
        server.default(REPLY)
        await client.chat(MODEL, [*MESSAGES, *told])
    function = {"name": "f", "arguments": "{}"}
    assert server.requests[0].json()["messages"][1:] == [
        {
            "role": "assistant",
            "content": "x",
            "tool_calls": [{"id": "a", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "a", "content": "y"},
    ]
    assert told[0].provider_data == data, "the caller's message is unchanged"  # type: ignore[attr-defined]


@pytest.mark.parametrize("plugin", ["local", "openai", "mistral", "azure"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_the_signature_of_geminis_compatible_endpoint_goes_back(streamed: bool, plugin: str) -> None:
    """It stands in ``extra_content`` of a tool call, in a stream also in a last piece of the call; others refuse the key."""
    signed = {"extra_content": {"google": {"thought_signature": "EpC1"}}}
    call = {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        if streamed:
            deltas = [{"tool_calls": [call]}, {"tool_calls": [signed]}]
            pieces = [event(choices=[{"index": 0, "delta": delta}]) for delta in deltas]
            end = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
            server.default(stream_script(*pieces, end, DONE))
            async with client.stream(MODEL, MESSAGES) as stream:
                async for _ in stream:
                    pass
            reply = stream.reply
        else:
            message = {"content": None, "tool_calls": [{**call, **signed}]}
            server.default(json_answer({"choices": [{"message": message, "finish_reason": "stop"}]}))
            reply = await client.chat(MODEL, MESSAGES)
    stored = json.loads(json.dumps(reply.message.as_dict()))
    async with FaultServer() as server:
        server.default(REPLY)
        entry = config(server, plugin=plugin, api_key="test-key", **_API_VERSION.get(plugin, {}))
        async with llmopt.AsyncClient(entry) as client:
            await client.chat(MODEL, [*MESSAGES, stored])
    (sent,) = server.requests[0].json()["messages"][-1]["tool_calls"]
    del call["index"]
    assert sent == (call if plugin != "local" else {**call, **signed})


_API_VERSION = {"azure": {"api_version": "v1"}}


@pytest.mark.parametrize("streamed", [False, True])
async def test_calls_without_ids_can_be_answered(streamed: bool) -> None:
    """Each gets an id that stays, and "stop" behind them is "tool_calls"."""
    functions = [{"name": "f", "arguments": "{}"}, {"name": "f", "arguments": "[1]"}]
    calls = [{"index": index, "function": each} for index, each in enumerate(functions)]
    choice = {"index": 0, "message": {"content": None, "tool_calls": calls}, "finish_reason": "stop"}
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        if streamed:
            delta = {"index": 0, "delta": {"tool_calls": calls}}
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            server.default(stream_script(event(choices=[delta]), event(choices=[end]), DONE))
            async with client.stream(MODEL, MESSAGES) as stream:
                reasons = [each.finish_reason async for each in stream]
            reply = stream.reply
            assert reasons[:2] == [None, "tool_calls"]
        else:
            server.default(json_answer({"choices": [choice]}))
            reply = await client.chat(MODEL, MESSAGES)
    assert reply.finish_reason == "tool_calls"
    first, second = reply.tool_calls
    assert (first.arguments, second.arguments) == ("{}", "[1]")
    assert first.id.startswith("call_")
    assert first.id != second.id
    sent = reply.message.as_dict()["tool_calls"]
    assert [each["id"] for each in sent] == [first.id, second.id]


async def test_chat_and_stream_return_the_same_reply() -> None:
    """What a stream comes to is what a chat gives, but for what only one of them tells."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        reply = await client.chat(MODEL, MESSAGES)
        async with client.stream(MODEL, MESSAGES) as stream:
            async for _ in stream:
                pass
    for name in ("text", "reasoning", "refusal", "tool_calls", "finish_reason", "model", "id"):
        assert getattr(stream.reply, name) == getattr(reply, name), name
