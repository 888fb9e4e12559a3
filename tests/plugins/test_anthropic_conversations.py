"""Conversations with an emulated Anthropic, over real sockets: tools, thinking and its signatures, refusals and limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

import llmopt
import llmopt_plugin_anthropic
from llmopt.testing import installed
from tests.support.conversation import QUESTION, TOOLS, converse
from tests.support.emulators import AnthropicEmulator

MODEL = "claude/claude-opus-5"


@pytest.fixture
async def server() -> AsyncIterator[AnthropicEmulator]:
    async with AnthropicEmulator() as emulator:
        yield emulator


def client_of(server: AnthropicEmulator, **more: Any) -> llmopt.AsyncClient:
    entry = {
        "base_url": server.base_url,
        "api_key": "test-key",
        "plugin": "kit-anthropic",
        "retry_delay": 0.01,
        "rpm": 1_000_000,
    }
    return llmopt.AsyncClient({"providers": {"claude": entry}}, **more)


@pytest.fixture(autouse=True)
def plugin() -> Any:
    with installed("kit-anthropic", llmopt_plugin_anthropic):
        yield


def thinking(number: int) -> dict[str, Any]:
    return {"type": "thinking", "thinking": f"Step {number}, I think" if number % 2 else ""}


def use(number: int, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": given}


SCRIPT = [
    [thinking(1), {"type": "text", "text": "I look."}, use(1, at="the table")],
    # Not shown, and redacted; two calls at once, one without arguments.
    [{"type": "redacted_thinking", "data": "c2VjcmV0"}, thinking(2), use(2), use(3, at="the door")],
    [thinking(3), {"type": "text", "text": "At the door."}],
    [{"type": "text", "text": "You are welcome."}],
]


@pytest.mark.parametrize("stored", [False, True], ids=["", "stored as JSON"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_signatures_go_back_over_the_turns_of_a_conversation(
    server: AnthropicEmulator, streamed: bool, stored: bool
) -> None:
    """Two steps with tools, an answer and another question; the server refuses thinking that was lost or changed."""
    server.script = list(SCRIPT)
    async with client_of(server) as client:
        replies = await converse(client, MODEL, len(SCRIPT), streamed=streamed, stored=stored)
    assert len(server.requests) == len(SCRIPT), "no request was refused"
    assert [reply.finish_reason for reply in replies] == ["tool_calls", "tool_calls", "stop", "stop"]
    assert [reply.reasoning for reply in replies] == ["Step 1, I think", "", "Step 3, I think", ""]
    given = [json.loads(each.arguments) for each in replies[1].tool_calls]
    assert given == [{}, {"at": "the door"}]
    assert replies[2].text == "At the door."
    assert all(reply.usage and reply.usage.completion_tokens > 1 for reply in replies)


@pytest.mark.parametrize("loses", ["all of it", "one block", "a letter"])
async def test_the_emulator_refuses_what_was_lost(server: AnthropicEmulator, loses: str) -> None:
    """Without this the test above would prove nothing."""
    server.script = [SCRIPT[1]]
    async with client_of(server) as client:
        first = (await client.chat(MODEL, [QUESTION], tools=TOOLS)).message.as_dict()
        kept = first["provider_data"]["anthropic.blocks"]
        if loses == "all of it":
            del first["provider_data"]
        elif loses == "one block":
            del kept[0]
        else:
            kept[1] = {**kept[1], "thinking": "x"}
        results = [
            {"role": "tool", "tool_call_id": each["id"], "content": "no"} for each in first["tool_calls"]
        ]
        with pytest.raises(llmopt.BadRequest, match=r"cannot be modified|Invalid `signature`"):
            await client.chat(MODEL, [QUESTION, first, *results], tools=TOOLS)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_usage_in_two_parts_is_exact(server: AnthropicEmulator, streamed: bool) -> None:
    """The input with its cache in the first event, the output in the last one; the same as in a whole answer."""
    seen: list[Any] = []
    usage: llmopt.Usage | None = None
    extra = {"cache_control": {"type": "ephemeral"}}
    async with client_of(server, on_event=seen.append) as client:
        for _ in range(2):
            if streamed:
                async with client.stream(MODEL, [QUESTION], extra=extra) as stream:
                    async for _ in stream:
                        pass
                usage = stream.reply.usage
            else:
                usage = (await client.chat(MODEL, [QUESTION], extra=extra)).usage
    assert usage == llmopt.Usage(
        prompt_tokens=5, cached_tokens=5, completion_tokens=6, total_tokens=11, requests=1
    )
    assert [event.usage for event in seen if event.name == "call.end"][1] == usage


async def test_a_list_in_pages(server: AnthropicEmulator) -> None:
    server.page_size = 2
    async with client_of(server) as client:
        models = await client.list_models("claude")
    assert len(server.requests) == 3
    assert [model.id for model in models] == [*dict.fromkeys(m.name for m in server.models_by_name.values())]
    haiku = models[-1]
    assert (haiku.kind, haiku.shutdown, haiku.inputs) == ("chat", "2026-12-31", ("text", "image", "pdf"))
    assert haiku.prices is not None


async def test_overload_passes_and_a_retry_after_on_a_success_means_nothing(
    server: AnthropicEmulator,
) -> None:
    server.fail_next(529, server.envelope("overloaded_error", "Overloaded"))
    seen: list[Any] = []
    async with client_of(server, on_event=seen.append) as client:
        await client.chat(MODEL, [QUESTION])
        reply = await client.chat(MODEL, [QUESTION])
    assert reply.text == "You said: Where is the key?"
    assert len(server.requests) == 3
    assert not [event for event in seen if event.name == "request.waiting"]


@pytest.mark.parametrize("code", ["enforced_spend_limit_reached", "contract_spend_limit_reached"])
async def test_a_spend_limit_is_asked_once(server: AnthropicEmulator, code: str) -> None:
    """Although its status is that of a rate."""
    server.fail_next(
        429, server.envelope("rate_limit_error", "This organization has reached its limit.", code)
    )
    async with client_of(server) as client:
        with pytest.raises(llmopt.QuotaExhausted):
            await client.chat(MODEL, [QUESTION])
    assert len(server.requests) == 1


async def test_an_answer_that_breaks_off_has_the_words_before_it(server: AnthropicEmulator) -> None:
    server.break_stream_after = 3
    async with client_of(server) as client:
        with pytest.raises(llmopt.StreamInterrupted) as broken:
            async with client.stream(MODEL, [QUESTION]) as stream:
                async for _ in stream:
                    pass
    assert broken.value.text == "You said: Where"


async def test_what_the_plugin_writes_for_each_model_is_accepted(server: AnthropicEmulator) -> None:
    """Efforts, sampling and schemas, by the rules of each model; the emulator refuses what the real server refuses."""
    wanted = {"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": False}
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": wanted}}
    async with client_of(server) as client:
        for name in server.models_by_name:
            for effort in ("none", "minimal", "high"):
                await client.chat(
                    f"claude/{name}", [QUESTION], reasoning_effort=effort, response_format=schema
                )
            if server.models_by_name[name].sampling:
                await client.chat(f"claude/{name}", [QUESTION], temperature=0.5, stop="x", max_tokens=5)
            for choice in ("auto", "none"):
                await client.chat(
                    f"claude/{name}", [QUESTION], tools=TOOLS, tool_choice=choice, parallel_tool_calls=False
                )
    assert len(server.requests) == 5 * len(server.models_by_name) + 3
