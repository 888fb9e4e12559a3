"""Sample responses of Gemini's API, for the kit."""

from __future__ import annotations

import json
from typing import Any

from llmopt_conformance import SampleChat, SampleError, SamplePage, SampleRows, Samples

_REASONS = {"stop": "STOP", "length": "MAX_TOKENS", "tool_calls": "STOP"}
_STATUSES = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 429: "RESOURCE_EXHAUSTED"}


def _rows(answer: SampleRows) -> bytes:
    embeddings = [{"values": list(row)} for _, row in answer.rows]
    return json.dumps(
        {"embeddings": embeddings, "usageMetadata": {"promptTokenCount": answer.tokens}}
    ).encode()


def _page(page: SamplePage) -> bytes:
    models = [
        {"name": f"models/{model}", "supportedGenerationMethods": ["generateContent"]}
        for model in page.models
    ]
    return json.dumps({"models": models, **({"nextPageToken": page.cursor} if page.cursor else {})}).encode()


def _failed(error: SampleError) -> dict[str, Any]:
    status = _STATUSES.get(error.status, "INTERNAL")
    return {"error": {"code": max(error.status, 400), "message": error.message, "status": status}}


def _error(error: SampleError) -> bytes:
    return json.dumps(_failed(error)).encode()


def _whole(answer: SampleChat, parts: list[dict[str, Any]], **candidate: Any) -> dict[str, Any]:
    usage = {
        "promptTokenCount": answer.prompt_tokens,
        "candidatesTokenCount": answer.completion_tokens,
        "totalTokenCount": answer.prompt_tokens + answer.completion_tokens,
    }
    return {
        "candidates": [{"content": {"role": "model", "parts": parts}, "index": 0, **candidate}],
        "usageMetadata": usage,
        "modelVersion": answer.model,
        "responseId": answer.id,
    }


def _thought(answer: SampleChat) -> list[dict[str, Any]]:
    return [{"text": answer.reasoning, "thought": True}] if answer.reasoning else []


def _calls(answer: SampleChat) -> list[dict[str, Any]]:
    """The first of parallel calls is signed."""
    calls = [
        {"functionCall": {"name": call.name, "args": json.loads(call.arguments), "id": call.id}}
        for call in answer.tool_calls
    ]
    return [{**call, **({"thoughtSignature": "EpC1"} if not n else {})} for n, call in enumerate(calls)]


def _chat(answer: SampleChat) -> bytes:
    text = [{"text": answer.text}] if answer.text else []
    parts = [*_thought(answer), *text, *_calls(answer)]
    return json.dumps(_whole(answer, parts, finishReason=_REASONS[answer.finish_reason])).encode()


def _stream(answer: SampleChat) -> list[bytes]:
    parts = [*_thought(answer), *({"text": piece} for piece in answer.pieces), *_calls(answer)]
    chunks = [_whole(answer, [part]) for part in parts]
    chunks.append(_whole(answer, [{"text": ""}], finishReason=_REASONS[answer.finish_reason]))
    return [b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks]


GOOGLE = Samples(
    embeddings=_rows,
    catalog=_page,
    error=_error,
    chat=_chat,
    stream=_stream,
    stream_error=lambda error: b"data: " + _error(error) + b"\r\n\r\n",
    indexed=False,
)
