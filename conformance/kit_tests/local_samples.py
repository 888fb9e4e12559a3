"""Sample responses of TEI and Ollama in their native formats, for the kit."""

from __future__ import annotations

import json
from typing import Any

from llmopt_conformance import SampleChat, SampleError, SamplePage, SampleRows, Samples


def _tei_rows(answer: SampleRows) -> bytes:
    return json.dumps([list(row) for _, row in answer.rows]).encode()


_TEI_TYPES = {424: "Backend", 429: "Overloaded", 500: "Backend", 503: "Unhealthy"}


def _tei_error(error: SampleError) -> bytes:
    kind = _TEI_TYPES.get(error.status, "Validation")
    return b"" if error.status == 401 else json.dumps({"error": error.message, "error_type": kind}).encode()


def _ollama_rows(answer: SampleRows) -> bytes:
    rows = [list(row) for _, row in answer.rows]
    return json.dumps(
        {"model": answer.model, "embeddings": rows, "prompt_eval_count": answer.tokens}
    ).encode()


def _ollama_page(page: SamplePage) -> bytes:
    return json.dumps({"models": [{"name": model, "model": model} for model in page.models]}).encode()


def _ollama_message(
    answer: SampleChat, text: str, thinking: str = "", *, calls: bool = False
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls and answer.tool_calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in answer.tool_calls
        ]
    return {"model": answer.model, "created_at": "2026-11-21T10:00:00Z", "message": message}


def _ollama_last(answer: SampleChat) -> dict[str, Any]:
    counts = {"prompt_eval_count": answer.prompt_tokens, "eval_count": answer.completion_tokens}
    return {"done": True, "done_reason": answer.finish_reason, "total_duration": 900_000_000, **counts}


def _ollama_chat(answer: SampleChat) -> bytes:
    whole = _ollama_message(answer, answer.text, answer.reasoning, calls=True)
    return json.dumps({**whole, **_ollama_last(answer)}).encode()


def _ollama_stream(answer: SampleChat) -> list[bytes]:
    lines = [_ollama_message(answer, "", answer.reasoning)] if answer.reasoning else []
    lines += (_ollama_message(answer, piece) for piece in answer.pieces)
    if answer.tool_calls:
        lines.append(_ollama_message(answer, "", calls=True))
    lines = [
        *({**each, "done": False} for each in lines),
        {**_ollama_message(answer, ""), **_ollama_last(answer)},
    ]
    return [json.dumps(each).encode() + b"\n" for each in lines]


def _ollama_stream_error(error: SampleError) -> bytes:
    return _ollama_error(error) + b"\n"


def _ollama_error(error: SampleError) -> bytes:
    return json.dumps({"error": error.message}).encode()


TEI = Samples(
    base_url="http://127.0.0.1:3000",
    options={"flavour": "tei"},
    embeddings=_tei_rows,
    error=_tei_error,
    indexed=False,
    ignores={"model"},
    without={"catalog"},
)
OLLAMA = Samples(
    base_url="http://127.0.0.1:11434",
    options={"flavour": "ollama"},
    embeddings=_ollama_rows,
    catalog=_ollama_page,
    error=_ollama_error,
    chat=_ollama_chat,
    stream=_ollama_stream,
    stream_error=_ollama_stream_error,
    stream_type="application/x-ndjson",
    says={"reasoning", "tool_calls", "finish_reason", "usage", "model"},
    indexed=False,
    ignores={"input_type"},
)
