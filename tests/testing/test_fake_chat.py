"""`FakeProvider` with chats."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import llmopt
from llmopt import ChatCall, Failure, Message, ServerEvent, ToolCall, compatible
from llmopt.decoding.accumulator import ReplyAccumulator
from llmopt.decoding.sse import SSEDecoder
from llmopt.testing import FakeProvider
from llmopt.testing.fake import FakePlugin

MESSAGES = (Message("user", "say this again").as_dict(),)
CALL = ChatCall(model="any", messages=MESSAGES)


async def ask(fake: FakeProvider, **body: Any) -> httpx.Response:
    request = httpx.Request(
        "POST",
        "https://fake.llmopt.example/v1/chat/completions",
        json={"model": "any", "messages": MESSAGES, **body},
    )
    return await fake.transport.handle_async_request(request)


async def events_of(response: httpx.Response) -> list[ServerEvent]:
    assert response.headers["content-type"] == "text/event-stream"
    decoder = SSEDecoder()
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return [event async for piece in response.stream for event in decoder.feed(piece)] + decoder.end()


def gathered(events: list[ServerEvent]) -> ReplyAccumulator:
    result = ReplyAccumulator()
    for event in events:
        parts = compatible.parse_stream_event(CALL, event)
        assert not isinstance(parts, Failure)
        for part in parts:
            result.add(part)
    return result


async def test_the_default_reply_depends_on_the_question_only() -> None:
    """As a whole and as a stream."""
    fake = FakeProvider()
    whole = json.loads(await (await ask(fake)).aread())
    stream = await events_of(await ask(fake, stream=True, stream_options={"include_usage": True}))
    result = gathered(stream)
    assert result.text == whole["choices"][0]["message"]["content"] == "say this again"
    assert result.usage is not None
    assert result.usage.total_tokens == whole["usage"]["total_tokens"] == 8
    assert result.finish_reason == "stop"
    assert result.last
    assert [call.operation for call in fake.calls] == ["chat", "chat"]
    assert fake.calls[0].messages == MESSAGES
    assert "again" not in repr(fake.calls)


async def test_a_scripted_reply_is_streamed_in_pieces() -> None:
    """Text, reasoning and tool calls, as often as the script says."""
    fake = FakeProvider()
    call = ToolCall(id="c1", name="find", arguments='{"x": 1}')
    fake.say("a", "b", reasoning="hm", tool_calls=[call], times=2)
    for _ in range(2):
        reply = gathered(await events_of(await ask(fake, stream=True))).reply()
        assert (reply.text, reply.reasoning, reply.tool_calls) == ("ab", "hm", (call,))
        assert reply.finish_reason == "tool_calls"
        assert reply.usage is None
    assert gathered(await events_of(await ask(fake, stream=True))).text == "say this again"


async def test_a_scripted_stream_can_fail() -> None:
    """Without an end, by a lost connection, or by an error event."""
    fake = FakeProvider()
    fake.say("a", ends="cut")
    cut = gathered(await events_of(await ask(fake, stream=True)))
    assert (cut.text, cut.finish_reason, cut.last) == ("a", None, False)
    fake.say("a", ends="break")
    with pytest.raises(httpx.ReadError):
        await events_of(await ask(fake, stream=True))
    fake.say("a", ends="error", error=llmopt.Overloaded)
    *_, event, _ = await events_of(await ask(fake, stream=True))
    failure = compatible.parse_stream_event(CALL, event)
    assert isinstance(failure, Failure)
    assert FakePlugin().classify_error(failure).kind is llmopt.VerdictKind.OVERLOADED


def test_an_error_that_no_stream_can_have_is_refused() -> None:
    """At once, with an alternative."""
    fake = FakeProvider()
    with pytest.raises(ValueError, match="ends='break'"):
        fake.say("a", ends="error", error=llmopt.ConnectionLost)
    with pytest.raises(ValueError, match="no response of a provider leads to ConfigError"):
        fake.say("a", ends="error", error=llmopt.ConfigError)


async def test_reset_removes_calls_errors_and_replies() -> None:
    fake = FakeProvider()
    fake.say("never")
    fake.reset()
    assert gathered(await events_of(await ask(fake, stream=True))).text == "say this again"


@pytest.mark.parametrize("streamed", [False, True])
def test_provider_data_comes_back(streamed: bool) -> None:
    """An application's test sees whether it appends the message of a reply, and not a part of it."""
    call = ToolCall(id="c1", name="find", arguments='{"x": 1}', provider_data={"fake": {"signature": "s1"}})
    with FakeProvider() as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
        fake.say("a", tool_calls=[call], provider_data={"fake": ["s2"]})
        if streamed:
            with client.stream("fake/m", MESSAGES) as stream:
                assert {"fake": ["s2"]} in [event.provider_data for event in stream]
            reply = stream.reply
        else:
            reply = client.chat("fake/m", MESSAGES)
        assert (reply.provider_data, reply.tool_calls) == ({"fake": ["s2"]}, (call,))
        client.chat("fake/m", [*MESSAGES, reply.message])
        sent = fake.calls[-1].messages[-1]
    assert sent == json.loads(json.dumps(reply.message.as_dict()))
    assert sent["provider_data"] == {"fake": ["s2"]}
    assert sent["tool_calls"][0]["provider_data"] == {"fake": {"signature": "s1"}}
