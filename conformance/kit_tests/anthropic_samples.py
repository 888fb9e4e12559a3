"""Sample responses of Anthropic's Messages API, for the kit."""

from __future__ import annotations

import json
from typing import Any

from llmopt_conformance import SampleChat, SampleError, SamplePage, Samples

_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_TYPES = {401: "authentication_error", 402: "billing_error", 404: "not_found_error", 429: "rate_limit_error"}


def _page(page: SamplePage) -> bytes:
    data = [{"type": "model", "id": model, "display_name": model} for model in page.models]
    last = page.models[-1] if page.models else None
    about = {"has_more": page.cursor is not None, "first_id": last, "last_id": page.cursor or last}
    return json.dumps({"data": data, **about}).encode()


def _error(error: SampleError) -> bytes:
    kind = _TYPES.get(error.status, "api_error")
    fault = {"details": None, "type": kind, "message": error.message}
    return json.dumps({"type": "error", "error": fault, "request_id": "req_kit"}).encode()


def _blocks(answer: SampleChat) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.reasoning:
        blocks.append({"type": "thinking", "thinking": answer.reasoning, "signature": "EqQBCkYIBxgC"})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text})
    for call in answer.tool_calls:
        given = json.loads(call.arguments)
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": given})
    return blocks


def _message(answer: SampleChat, **changes: Any) -> dict[str, Any]:
    return {
        "id": answer.id,
        "type": "message",
        "role": "assistant",
        "model": answer.model,
        "content": _blocks(answer),
        "stop_reason": _REASONS[answer.finish_reason],
        "stop_sequence": None,
        "usage": {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens},
        **changes,
    }


def _chat(answer: SampleChat) -> bytes:
    return json.dumps(_message(answer)).encode()


def _stream(answer: SampleChat) -> list[bytes]:
    used = {"input_tokens": answer.prompt_tokens, "output_tokens": 1}
    begun = _message(answer, content=[], stop_reason=None, usage=used)
    events: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
    for index, block in enumerate(_blocks(answer)):
        empty, deltas = _pieces(block, answer)
        events.append({"type": "content_block_start", "index": index, "content_block": empty})
        events += ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": _REASONS[answer.finish_reason], "stop_sequence": None}
    usage = {"output_tokens": answer.completion_tokens}
    events += [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]
    return [_event(event["type"], json.dumps(event).encode()) for event in events]


def _pieces(block: dict[str, Any], answer: SampleChat) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A block without its content, and its content in pieces."""
    if block["type"] == "thinking":
        thought = {"type": "thinking_delta", "thinking": block["thinking"]}
        signed = {"type": "signature_delta", "signature": block["signature"]}
        return {**block, "thinking": "", "signature": ""}, [thought, signed]
    if block["type"] == "text":
        return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in answer.pieces]
    text = json.dumps(block["input"]) if block["input"] else ""
    pieces = ["", text[:3], text[3:]] if text else [""]
    return {**block, "input": {}}, [{"type": "input_json_delta", "partial_json": each} for each in pieces]


def _event(kind: str, data: bytes) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


ANTHROPIC = Samples(
    catalog=_page,
    error=_error,
    chat=_chat,
    stream=_stream,
    stream_error=lambda error: _event("error", _error(error)),
)
