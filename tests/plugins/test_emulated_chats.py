"""Chats as the plugins send and read them, over real sockets, against servers that answer as the providers do.

Sent by a bare HTTP client: what the engine makes of a stream has tests of its own.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from attrs import evolve

from llmopt import ChatCall, ChatReply, Failure, HttpResponse, ProviderEntry, Secret, Settings, VerdictKind
from llmopt.config.resolve import resolve_endpoints
from llmopt.config.schema import Flags
from llmopt.decoding.accumulator import ReplyAccumulator
from llmopt.decoding.ndjson import declared_format, decoder_of
from llmopt.testing.harness import encode_request
from tests.plugins.helpers import hooks
from tests.support.emulators import (
    AnthropicEmulator,
    AzureEmulator,
    Emulator,
    GoogleEmulator,
    MistralEmulator,
    OllamaEmulator,
    OpenAIEmulator,
)

MESSAGES = ({"role": "user", "content": "How do I cross the street?"},)
SAID = "You said: How do I cross the street?"

CASES = {
    "openai": ("openai", OpenAIEmulator, {}, "gpt-4o-mini", {}),
    "mistral": ("mistral", MistralEmulator, {}, "mistral-small-latest", {}),
    "azure v1": ("azure", AzureEmulator, {}, "chat-mini", {}),
    "azure classic": ("azure", AzureEmulator, {"async_filter": True}, "chat-mini", {"api_version": "2024-10-21"}),
    "anthropic": ("anthropic", AnthropicEmulator, {}, "claude-haiku-4-5", {}),
    "google": ("google", GoogleEmulator, {}, "gemini-3.5-flash", {}),
    "ollama": ("local", OllamaEmulator, {}, "qwen3:0.6b", {"flavour": "ollama"}),
    "ollama, the common way": ("local", OllamaEmulator, {}, "qwen3:0.6b", {}),
}  # fmt: skip


async def send_chat(
    case: str, *, broken: int | None = None, **more: Any
) -> tuple[Any, ReplyAccumulator, Settings]:
    """The reply of one server, or the failure of a stream and the text before it."""
    plugin, kind, about, model, options = CASES[case]
    server: Emulator
    async with kind(**about) as server:  # type: ignore[attr-defined] # each case has its own emulator
        server.break_stream_after = broken
        base = f"{server.base_url}/v1" if case == "ollama, the common way" else server.base_url
        entry = ProviderEntry(name="p", base_url=base, api_key=Secret("test-key"), options=options)
        (endpoint,) = resolve_endpoints(
            entry, hooks(plugin).provider_profile, client_flags=Flags(), environ={}
        )
        where = endpoint.settings(Secret("test-key"))
        profile = hooks(plugin).provider_profile(entry)
        call = ChatCall(model=model, messages=MESSAGES, include_usage=profile.stream_usage, **more)
        result, gathered = await _send(plugin, call, where)
        return result, gathered, where


async def _send(plugin: str, call: ChatCall, where: Settings) -> tuple[Any, ReplyAccumulator]:
    sent = encode_request(hooks(plugin).build_request(call, where), where)
    gathered = ReplyAccumulator()
    async with (
        aiohttp.ClientSession() as session,
        session.request(sent.method, sent.url, headers=sent.headers, data=sent.body) as response,
    ):
        assert response.status == 200, await response.text()
        if not call.stream:
            whole = HttpResponse(status=200, headers={}, body=await response.read())
            return hooks(plugin).parse_chat(call, whole, where), gathered
        decoder = decoder_of(declared_format(response.headers["content-type"]))
        assert decoder is not None
        events = [event async for piece in response.content.iter_any() for event in decoder.feed(piece)]
        parse = hooks(plugin).stream_parser(call, where)
        for event in [*events, *decoder.end()]:
            parts = parse(event)
            if isinstance(parts, Failure):
                return parts, gathered
            for part in parts:
                gathered.add(part)
    return None, gathered


@pytest.mark.parametrize("case", CASES)
async def test_a_stream_and_a_whole_response_give_the_same_reply(case: str) -> None:
    """Text, finish reason and usage."""
    failure, stream, _ = await send_chat(case, stream=True)
    assert failure is None
    whole, _, _ = await send_chat(case)
    assert isinstance(whole, ChatReply)
    assert stream.text == whole.text == SAID
    assert stream.finish_reason == whole.finish_reason == "stop"
    assert whole.usage is not None
    # Who puts it together counts the request, and adds the parts.
    assert stream.usage == evolve(whole.usage.after(None), requests=1)
    assert whole.usage.completion_tokens == len(SAID.split())
    assert stream.model == whole.model
    # Gemini's streams have no end of their own.
    assert stream.last is (case != "google")


@pytest.mark.parametrize("case", CASES)
async def test_max_tokens_reaches_every_server(case: str) -> None:
    """Whatever the parameter's name is."""
    failure, stream, _ = await send_chat(case, stream=True, max_tokens=2)
    assert failure is None
    assert (stream.text, stream.finish_reason) == ("You said:", "length")


@pytest.mark.parametrize("case", [case for case in CASES if case != "ollama, the common way"])
async def test_a_failure_in_the_middle_of_a_stream(case: str) -> None:
    """It has the text before it, and is transient."""
    failure, stream, where = await send_chat(case, stream=True, broken=3)
    assert isinstance(failure, Failure)
    assert stream.text == "You said: How"
    assert not stream.last
    assert hooks(CASES[case][0]).classify_error(failure, where).kind is VerdictKind.TRANSIENT


async def test_a_missing_end_marker_is_a_failure() -> None:
    """Ollama's common interface shows a failure in no other way."""
    failure, stream, _ = await send_chat("ollama, the common way", stream=True, broken=3)
    assert failure is None
    assert (stream.text, stream.finish_reason, stream.last) == ("You said: How", None, False)
