"""The hook `decode_stream`: an AWS event stream, binary with checksums, through the whole client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import llmopt
from llmopt import ChatCall, ChatEvent, EventDecoder, Failure, ServerEvent, Settings, Usage, hookimpl
from tests.support.configuration import provider_config
from tests.support.eventstream import Decoder, message
from tests.support.faults import Answer, FaultServer, error_answer

MESSAGES = [{"role": "user", "content": "hello"}]
KIND = "application/vnd.amazon.eventstream"


class Converse:
    """Reads the stream of Bedrock's ConverseStream."""

    decoder: Any = Decoder

    @hookimpl
    def decode_stream(self, content_type: str) -> EventDecoder | None:
        found: EventDecoder | None = self.decoder() if content_type == KIND else None
        return found

    @hookimpl
    def parse_stream_event(
        self, call: ChatCall, event: ServerEvent, settings: Settings
    ) -> tuple[ChatEvent, ...] | Failure | None:
        if event.event.startswith("exception "):
            return Failure.from_event(event, model=call.model)
        if event.event == "message":
            # The core's own decoder: server-sent events.
            return None
        value = json.loads(event.data)
        if event.event == "contentBlockDelta":
            return (ChatEvent(text=value["delta"]["text"]),)
        if event.event == "messageStop":
            return (ChatEvent(finish_reason="stop"),)
        if event.event == "metadata":
            usage = value["usage"]
            tokens = Usage(prompt_tokens=usage["inputTokens"], completion_tokens=usage["outputTokens"])
            return (ChatEvent(usage=tokens, last=True),)
        return ()


def event(name: str, kind: str = "event", **value: Any) -> bytes:
    named = {":exception-type" if kind == "exception" else ":event-type": name}
    headers = {":message-type": kind, **named, ":content-type": "application/json"}
    return message(headers, json.dumps(value, ensure_ascii=False).encode())


WORDS = ("Grüße", " aus", " Köln")
START = [event("messageStart", role="assistant")]
TEXT = [event("contentBlockDelta", delta={"text": word}) for word in WORDS]
END = [
    event("messageStop", stopReason="end_turn"),
    event("metadata", usage={"inputTokens": 5, "outputTokens": 3}),
]
REPLY = b"".join([*START, *TEXT, *END])


def answer(body: bytes, kind: str = KIND) -> Answer:
    return Answer(headers=[("content-type", kind)], body=body)


async def read(*answers: Answer, plugin: object | None = None) -> tuple[Any, int]:
    """The reply, and the number of requests."""
    async with FaultServer() as server:
        server.play(*answers)
        config = provider_config(server, retry_delay=0.001)
        plugins = [Converse() if plugin is None else plugin]
        async with llmopt.AsyncClient(config, plugins=plugins) as client:
            stream = client.stream("server/m", MESSAGES)
            try:
                async with stream:
                    async for _ in stream:
                        pass
            except llmopt.LLMOptError as error:
                error.text = stream.text  # type: ignore[attr-defined] # for the test
                raise
        return stream, len(server.requests)


async def test_a_binary_stream_is_read() -> None:
    """Text, finish reason and usage."""
    stream, _ = await read(answer(REPLY))
    assert stream.text == "Grüße aus Köln"
    assert stream.finish_reason == "stop"
    assert (stream.usage.prompt_tokens, stream.usage.completion_tokens) == (5, 3)


def test_the_decoder_of_these_tests_reads_any_split() -> None:
    """One byte at a time, as all at once; and every flipped bit is found."""
    whole = list(Decoder().feed(REPLY))
    decoder = Decoder()
    assert [each for byte in REPLY for each in decoder.feed(bytes([byte]))] == whole
    assert [each.event for each in whole][:2] == ["messageStart", "contentBlockDelta"]
    for at in range(len(START[0])):
        broken = bytearray(START[0])
        broken[at] ^= 1
        with pytest.raises(llmopt.InvalidResponse):
            decoder = Decoder()
            list(decoder.feed(bytes(broken)))
            decoder.end()


async def test_a_damaged_message_ends_the_stream_after_what_was_right() -> None:
    """The text before it reaches the caller, that of the same chunk too."""
    damaged = bytearray(TEXT[1])
    damaged[-6] ^= 1
    with pytest.raises(llmopt.StreamInterrupted, match="wrong checksum") as caught:
        await read(answer(START[0] + TEXT[0] + damaged + END[0]))
    assert caught.value.text == "Grüße"
    assert isinstance(caught.value.__cause__, llmopt.InvalidResponse)


async def test_damage_before_the_first_event_is_retried() -> None:
    """As any other invalid response."""
    damaged = bytearray(START[0])
    damaged[-6] ^= 1
    stream, requests = await read(answer(bytes(damaged)), answer(REPLY))
    assert stream.text == "Grüße aus Köln"
    assert requests == 2


@pytest.mark.parametrize("cut", [len(START[0]) + len(TEXT[0]) + 9, len(START[0]) + len(TEXT[0])])
async def test_a_cut_stream_is_never_complete(cut: int) -> None:
    """Within a message, and between two."""
    with pytest.raises(llmopt.StreamInterrupted, match=r"ends within a message|ended before it was complete"):
        await read(answer(REPLY[:cut]))


async def test_an_exception_in_the_stream_is_an_error() -> None:
    """Before the first event it is retried, by the plugin's verdict."""
    refused = answer(event("throttlingException", "exception", message="Too many requests", status=429))
    stream, requests = await read(refused, answer(REPLY))
    assert stream.text == "Grüße aus Köln"
    assert requests == 2


async def test_an_error_and_another_type_are_read_as_ever() -> None:
    """The hook is not asked for the first, and answers None for the second."""
    server_sent = (
        b'data: {"choices":[{"delta":{"content":"plain"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    stream, requests = await read(error_answer(503, "later"), answer(server_sent, "text/event-stream"))
    assert stream.text == "plain"
    assert requests == 2


class Raises:
    """A decoder with a fault of its own, after the first event."""

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        yield from Decoder().feed(START[0] + TEXT[0])
        raise KeyError("canary")

    def end(self) -> Iterator[ServerEvent]:
        return iter(())


async def test_a_fault_of_the_decoder_is_the_plugins_error() -> None:
    """With its place and without its text."""
    plugin = Converse()
    plugin.decoder = Raises
    with pytest.raises(llmopt.StreamInterrupted, match="decode_stream raised KeyError") as caught:
        await read(answer(REPLY), plugin=plugin)
    assert caught.value.text == "Grüße"
    assert isinstance(caught.value.__cause__, llmopt.PluginContractError)
    assert "test_decode_stream.py" in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("made", "named"), [(object, "object"), (lambda: Decoder, "type")], ids=["an object", "a class"]
)
async def test_something_else_than_a_decoder_is_the_plugins_error(made: Any, named: str) -> None:
    """Both methods are needed, and a class has those of its instances."""
    plugin = Converse()
    plugin.decoder = made
    with pytest.raises(
        llmopt.PluginContractError,
        match=f"decode_stream returned {named}; expected an instance of an EventDecoder, or None",
    ):
        await read(answer(REPLY), plugin=plugin)
