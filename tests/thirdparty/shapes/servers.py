"""How the servers of these plugins answer: their bodies and streams, and refusals of what the real ones refuse.

The forms and the refusals are those of recorded exchanges; docs/development/provider-facts.md names the providers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from attrs import define, field

from tests.support.faults import Answer, Request, json_answer
from tests.support.faults.response import Framing

Json = dict[str, Any]


def refused(message: str) -> Answer:
    """A request that is not in order."""
    return json_answer({"error": {"type": "invalid_request_error", "message": message}}, status=400)


@define
class Conversation:
    """A server with its answers in order: that to the n-th step of a conversation follows n answers of its own.

    Attributes:
        answers: what it says in each step, in its own form.
        fault_of: what is wrong with a request behind these answers; "" for nothing.
        body: an answer as the value of a response.
        stream: an answer as the bytes of a stream.
    """

    answers: Sequence[Any]
    fault_of: Callable[[Json, Sequence[Any]], str]
    body: Callable[[Any], Json]
    stream: Callable[[Any], bytes]
    requests: list[Json] = field(factory=list)

    def __call__(self, request: Request) -> Answer:
        """Answer one request."""
        asked = request.json()
        self.requests.append(asked)
        turns = asked.get("messages", asked.get("contents"))
        told = [turn for turn in turns if turn["role"] in ("assistant", "model")]
        if fault := self.fault_of(asked, self.answers[: len(told)]):
            return refused(fault)
        answer = self.answers[len(told)]
        if asked.get("stream") or "stream" in request.path:
            return Answer(200, self.stream(answer), [("content-type", "text/event-stream")], Framing.CHUNKED)
        return json_answer(self.body(answer))


# Anthropic's Messages API.

USAGE = {
    "input_tokens": 25,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 1_000,
    "output_tokens": 31,
}


def message_body(blocks: Sequence[Json], usage: Mapping[str, Any] = USAGE, **more: Any) -> Json:
    """A whole answer."""
    calls = any(block["type"] == "tool_use" for block in blocks)
    reason = "tool_use" if calls else "end_turn"
    return {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": blocks,
            "stop_reason": reason, "stop_sequence": None, "usage": dict(usage), **more}  # fmt: skip


def message_stream(blocks: Sequence[Json], usage: Mapping[str, Any] = USAGE, **more: Any) -> list[bytes]:
    """The events of the same answer: the tokens of the input in the first, those of the output in the last."""
    whole = message_body(blocks, usage, **more)
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: list[Json] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(blocks):
        empty, deltas = _pieces(block)
        events += [
            {"type": "content_block_start", "index": index, "content_block": empty},
            {"type": "ping"},
            *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": index},
        ]
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    told = {"output_tokens": usage["output_tokens"]}
    events += [{"type": "message_delta", "delta": delta, "usage": told}, {"type": "message_stop"}]
    return [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in events]


def _pieces(block: Json) -> tuple[Json, list[Json]]:
    """A block without its content, and the content in pieces."""
    match block["type"]:
        case "text":
            halves = _halves(block["text"])
            return {**block, "text": ""}, [{"type": "text_delta", "text": half} for half in halves]
        case "thinking":
            thinking = [{"type": "thinking_delta", "thinking": half} for half in _halves(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*thinking, signed]
        case "tool_use":
            written = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
            pieces = ["", *_halves(written)] if written else [""]
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
            return {**block, "input": {}}, deltas
    return block, []


def _halves(text: str) -> list[str]:
    middle = (len(text) + 1) // 2
    return [half for half in (text[:middle], text[middle:]) if half]


def message_fault(asked: Json, answers: Sequence[Any]) -> str:
    """What the real server refuses: changed blocks, and calls without results."""
    turns = asked["messages"]
    if "max_tokens" not in asked:
        return "max_tokens: Field required"
    told = [turn["content"] for turn in turns if turn["role"] == "assistant"]
    for number, (found, wanted) in enumerate(zip(told, answers, strict=True)):
        if found != wanted:
            return f"messages.{number}: blocks in the latest assistant message cannot be modified"
    for turn, following in pairwise(turns):
        called = [block["id"] for block in turn["content"] if block["type"] == "tool_use"]
        answered = [block.get("tool_use_id") for block in following["content"]]
        if called and answered[: len(called)] != called:
            return "tool_use ids were found without tool_result blocks immediately after"
    return ""


# Gemini's generateContent.


def content_body(parts: Sequence[Json], usage: Mapping[str, Any] | None = None) -> Json:
    """A whole answer. The finish reason of calls is STOP."""
    candidate = {"content": {"role": "model", "parts": list(parts)}, "finishReason": "STOP", "index": 0}
    told = usage or {
        "promptTokenCount": 9,
        "candidatesTokenCount": 7,
        "thoughtsTokenCount": 20,
        "totalTokenCount": 36,
    }
    return {"candidates": [candidate], "usageMetadata": dict(told), "modelVersion": "m", "responseId": "r"}


def content_stream(parts: Sequence[Json], usage: Mapping[str, Any] | None = None) -> list[bytes]:
    """The same part by part, with a usage in each whose fields come and go, and an empty part at the end."""
    whole = content_body(parts, usage)
    last = whole["usageMetadata"]
    early = {"promptTokenCount": 90, "thoughtsTokenCount": last["thoughtsTokenCount"], "totalTokenCount": 110}
    late = {name: count for name, count in last.items() if name != "thoughtsTokenCount"}
    values = [
        {
            **whole,
            "candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}],
            "usageMetadata": early,
        }
        for part in parts
    ]
    end = {"content": {"role": "model", "parts": [{"text": ""}]}, "finishReason": "STOP"}
    values.append({**whole, "candidates": [end], "usageMetadata": late})
    return [f"data: {json.dumps(value)}\r\n\r\n".encode() for value in values]


def content_fault(asked: Json, answers: Sequence[Any]) -> str:
    """What the real server refuses: a step without its signature, and other results than were called for."""
    turns = asked["contents"]
    told = [turn["parts"] for turn in turns if turn["role"] == "model"]
    for found, wanted in zip(told, answers, strict=True):
        # Thoughts are summaries, which do not come back.
        if found != [part for part in wanted if not part.get("thought")]:
            return "Function call is missing a thought_signature in functionCall parts."
    for turn, following in pairwise(turns):
        called = [part["functionCall"] for part in turn["parts"] if "functionCall" in part]
        answered = [part.get("functionResponse", {}) for part in following["parts"]]
        if called and [(each["name"], each.get("id")) for each in called] != [
            (each.get("name"), each.get("id")) for each in answered
        ]:
            return "number of function response parts is equal to the number of function call parts"
    return ""
