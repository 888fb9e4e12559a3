"""Providers of another shape, by plugins as their authors write them: what they sent comes back as they sent it."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import llmopt
from llmopt.testing import installed
from llmopt.testing.dialect import SampleChat
from llmopt_conformance import SampleError, Samples
from llmopt_conformance.runner import CHECKS
from llmopt_conformance.subject import NotApplicable, Subject
from tests.support.faults import FaultServer
from tests.thirdparty.shapes import contents, messages
from tests.thirdparty.shapes.servers import (
    Conversation,
    content_body,
    content_fault,
    content_stream,
    message_body,
    message_fault,
    message_stream,
)

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
QUESTION = {"role": "user", "content": "Where is the key?"}


def thinking(number: int) -> dict[str, Any]:
    return {"type": "thinking", "thinking": f"Step {number}, I think", "signature": f"EqC{number}=="}


def use(number: int, **given: Any) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": "look", "input": given}


BLOCKS = [
    [thinking(1), {"type": "text", "text": "I look."}, use(1, at="the table")],
    [{"type": "redacted_thinking", "data": "c2VjcmV0"}, thinking(2), use(2), use(3, at="the door")],
    [thinking(3), {"type": "text", "text": "At the door."}],
    [{"type": "text", "text": "You are welcome."}],
]


def called(signature: str = "", **given: Any) -> dict[str, Any]:
    part: dict[str, Any] = {"functionCall": {"name": "look", "args": given}}
    return {**part, "thoughtSignature": signature} if signature else part


PARTS = [
    [{"text": "A plan", "thought": True}, called("EpC1", at="the table")],
    # Only the first of parallel calls is signed, and one has an id of its own.
    [called("EpC2"), called(at="the door"), {"functionCall": {"name": "look", "args": {}, "id": "ab12"}}],
    [{"text": "At the door."}],
    [{"text": "You are welcome."}],
]
SHAPES: dict[str, tuple[ModuleType, Callable[[], Conversation]]] = {
    "messages": (
        messages,
        lambda: Conversation(
            BLOCKS, message_fault, message_body, lambda each: b"".join(message_stream(each))
        ),
    ),
    "contents": (
        contents,
        lambda: Conversation(PARTS, content_fault, content_body, lambda each: b"".join(content_stream(each))),
    ),
}


async def ask(client: llmopt.AsyncClient, told: list[Any], *, streamed: bool) -> llmopt.ChatReply:
    if not streamed:
        return await client.chat("other/m", told, tools=TOOLS)
    async with client.stream("other/m", told, tools=TOOLS) as stream:
        async for _ in stream:
            pass
    return stream.reply


@pytest.mark.parametrize("stored", [False, True], ids=["", "stored as JSON"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_signatures_go_back_over_the_turns_of_a_conversation(
    shape: str, streamed: bool, stored: bool
) -> None:
    """Steps with tools, several calls at once, an answer and another question; the server refuses what was changed."""
    plugin, conversation = SHAPES[shape]
    told: list[Any] = [QUESTION]
    replies: list[llmopt.ChatReply] = []
    async with FaultServer() as server:
        server.default(asked := conversation())
        entry = {"other": {"base_url": server.base_url, "api_key": "test-key"}}
        with installed("other", plugin):
            async with llmopt.AsyncClient({"providers": entry}) as client:
                for _ in range(4):
                    reply = await ask(client, told, streamed=streamed)
                    replies.append(reply)
                    told.append(reply.message)
                    told += [
                        {"role": "tool", "tool_call_id": call.id, "content": f"at {call.arguments}: no"}
                        for call in reply.tool_calls
                    ]
                    if not reply.tool_calls:
                        told.append({"role": "user", "content": "Thank you."})
                    if stored:
                        told = [each.as_dict() if isinstance(each, llmopt.Message) else each for each in told]
                        told = json.loads(json.dumps(told))
    assert len(asked.requests) == 4, "no request was refused"
    reasons = ["tool_calls", "tool_calls", "stop", "stop"]
    assert [reply.finish_reason for reply in replies] == reasons
    assert [len(reply.tool_calls) for reply in replies] == [1, 2 if shape == "messages" else 3, 0, 0]
    given = [json.loads(call.arguments) for call in replies[1].tool_calls]
    assert given[:2] == [{}, {"at": "the door"}]
    assert replies[2].text == "At the door."
    ids = [call.id for reply in replies for call in reply.tool_calls]
    assert len({*ids}) == len(ids), "calls without an id have got one each"
    assert all(ids)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("forgets", ["message", "call"])
async def test_the_servers_of_these_tests_refuse_what_was_left_out(shape: str, forgets: str) -> None:
    """Without this the test above would prove nothing."""
    plugin, conversation = SHAPES[shape]
    async with FaultServer() as server:
        server.default(conversation())
        entry = {"other": {"base_url": server.base_url, "api_key": "test-key"}}
        with installed("other", plugin):
            async with llmopt.AsyncClient({"providers": entry}) as client:
                first = (await client.chat("other/m", [QUESTION], tools=TOOLS)).message.as_dict()
                for part in (first, *first["tool_calls"]):
                    part.pop("provider_data", None)
                result = {"role": "tool", "tool_call_id": first["tool_calls"][0]["id"], "content": "no"}
                told = [QUESTION, first, *([result] if forgets == "message" else [])]
                with pytest.raises(
                    llmopt.BadRequest, match=r"cannot be modified|missing a thought_signature"
                ):
                    await client.chat("other/m", told, tools=TOOLS)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_usage_in_two_parts_is_exact(streamed: bool) -> None:
    """The input with its cache in the first event, the output in the last one; the same as in a whole answer."""
    wanted = llmopt.Usage(
        prompt_tokens=1_125, cached_tokens=1_000, completion_tokens=31, total_tokens=1_156, requests=1
    )
    plugin, conversation = SHAPES["messages"]
    seen: list[Any] = []
    async with FaultServer() as server:
        server.default(conversation())
        entry = {"other": {"base_url": server.base_url, "api_key": "test-key"}}
        with installed("other", plugin):
            async with llmopt.AsyncClient({"providers": entry}, on_event=seen.append) as client:
                reply = await ask(client, [QUESTION], streamed=streamed)
                stats = client.stats()
    assert reply.usage == wanted
    (end,) = [event for event in seen if event.name == "call.end"]
    assert end.usage == wanted
    told = json.dumps(stats)
    assert '"input_tokens": 1125' in told
    assert '"output_tokens": 31' in told


# The kit's checks of chats, over the same plugins.


def message_samples() -> Samples:
    def blocks(answer: SampleChat) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
        made: list[Any] = []
        if answer.reasoning:
            made.append({"type": "thinking", "thinking": answer.reasoning, "signature": "EqQB"})
        made += [{"type": "text", "text": answer.text}] if answer.text else []
        made += [
            {"type": "tool_use", "id": call.id, "name": call.name, "input": json.loads(call.arguments)}
            for call in answer.tool_calls
        ]
        reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        about = {"id": answer.id, "model": answer.model, "stop_reason": reasons[answer.finish_reason]}
        return made, {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}, about

    def stream(answer: SampleChat) -> list[bytes]:
        made, usage, about = blocks(answer)
        return in_pieces(message_stream(made, usage, **about), answer)

    def in_pieces(events: list[bytes], answer: SampleChat) -> list[bytes]:
        found: list[bytes] = []
        for event in events:
            value = json.loads(event.partition(b"data: ")[2])
            delta = value.get("delta", {})
            if delta.get("type") != "text_delta":
                found.append(event)
                continue
            if any(b"text_delta" in each for each in found):
                continue
            for piece in answer.pieces:
                value["delta"] = {"type": "text_delta", "text": piece}
                found.append(b"data: " + json.dumps(value).encode() + b"\n\n")
        return found

    def failed(error: SampleError) -> bytes:
        return json.dumps(
            {"type": "error", "error": {"type": "api_error", "message": error.message}}
        ).encode()

    def chat(answer: SampleChat) -> bytes:
        made, usage, about = blocks(answer)
        return json.dumps(message_body(made, usage, **about)).encode()

    return Samples(
        chat=chat,
        stream=stream,
        error=failed,
        stream_error=lambda error: b"event: error\ndata: " + failed(error) + b"\n\n",
        without=frozenset({"embeddings", "catalog"}),
    )


def test_the_kit_holds_a_plugin_with_state_to_its_checks() -> None:
    """Chats, streams and what comes back, and that the state is a value."""
    subject = Subject(messages, samples=message_samples())
    passed: list[str] = []
    for check in CHECKS:
        if check.id.startswith(
            ("chat.", "stream.", "purity.arguments", "purity.repeats", "request.provider")
        ):
            try:
                check.run(subject)
                passed.append(check.id)
            except NotApplicable:
                pass
    assert {"chat.provider-data", "stream.provider-data", "stream.altered", "purity.arguments"} <= {*passed}
