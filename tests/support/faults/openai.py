"""OpenAI-shaped answers whose vectors identify their text."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.support.faults.request import Request
from tests.support.faults.response import Answer, Framing, Header, json_answer

Vector = NDArray[np.float32]
Payload = dict[str, Any]
MODEL = "text-embedding-3-small"


def vector_for(text: Any, dimensions: int = 4) -> Vector:
    """Return the vector of a text (or of a list of token numbers): from its hash, so no two texts share one.

    The numbers are odd multiples of 2**-16 between -1 and 1: exact in float32, finite, and never zero, so that they
    come through base64 and through decimal JSON without a rounding.
    """
    key = text if isinstance(text, str) else json.dumps(text)
    digest = hashlib.shake_256(key.encode("utf-8", "surrogatepass")).digest(2 * dimensions)
    whole: Vector = np.frombuffer(digest, dtype="<i2").astype(np.float32)
    return (whole * 2 + 1) / np.float32(65536)


def tokens_of(text: Any) -> int:
    """Count tokens as this server does: one per started four bytes, at least one; token numbers count themselves."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // 4)) if isinstance(text, str) else len(text)


def inputs_of(request: Request) -> list[Any]:
    """Return the items of an embeddings request: texts, or lists of token numbers; of a batch of Gemini's too."""
    asked = request.json()
    if "requests" in asked:
        return [part["text"] for item in asked["requests"] for part in item["content"]["parts"]]
    return _items(asked["input"])


def embeddings_payload(
    request: Request,
    *,
    dimensions: int = 4,
    vectors: Callable[[Any, int], Vector] = vector_for,
    encoding: str | None = None,
) -> Payload:
    """Return the JSON value that answers an embeddings request.

    Args:
        request: the request; its own `dimensions` win over the argument.
        dimensions: numbers per vector.
        vectors: makes the vector of an item.
        encoding: "float" or "base64", whatever the request asked for.
    """
    asked = request.json()
    size = asked.get("dimensions", dimensions)
    form = encoding or asked.get("encoding_format", "float")
    items = _items(asked["input"])
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vectors(item, size), form)}
        for index, item in enumerate(items)
    ]
    tokens = sum(map(tokens_of, items))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": asked.get("model", MODEL), "usage": usage}


def embeddings_answer(
    request: Request,
    *,
    dimensions: int = 4,
    vectors: Callable[[Any, int], Vector] = vector_for,
    encoding: str | None = None,
    framing: Framing = Framing.LENGTH,
) -> Answer:
    """Answer an embeddings request correctly; see `embeddings_payload`. `bytes()` of it is the wire form."""
    payload = embeddings_payload(request, dimensions=dimensions, vectors=vectors, encoding=encoding)
    return json_answer(payload, framing=framing)


def models_payload(ids: Iterable[str] = (MODEL,)) -> Payload:
    """Return the JSON value of a catalog of these models."""
    data = [{"id": name, "object": "model", "created": 1700000000, "owned_by": "faults"} for name in ids]
    return {"object": "list", "data": data}


def chat_payload(words: Iterable[str]) -> Payload:
    """Return the JSON value of a chat reply of these words."""
    said = "".join(words)
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1, "completion_tokens": tokens_of(said), "total_tokens": 1 + tokens_of(said)}
    return {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def stream_events(words: Iterable[str], *, done: bool = True) -> list[bytes]:
    """Return the events of a chat stream, one per word; without `done` the finish and `[DONE]` are missing."""
    events = [_event({"role": "assistant", "content": ""}, None)]
    events += [_event({"content": word}, None) for word in words]
    return [*events, _event({}, "stop"), b"data: [DONE]\n\n"] if done else events


def stream_answer(words: Iterable[str], *, done: bool = True, framing: Framing = Framing.CHUNKED) -> Answer:
    """Return a chat stream as one answer."""
    body = b"".join(stream_events(words, done=done))
    return Answer(200, body, [("content-type", "text/event-stream")], framing)


def error_answer(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    headers: Iterable[Header] = (),
) -> Answer:
    """Return an error in OpenAI's envelope."""
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json_answer({"error": error}, status=status, headers=headers)


def answer_openai(request: Request) -> Answer:
    """Answer like a healthy provider: embeddings, catalog, and a chat of two words, by the end of the path."""
    if request.path.endswith("/embeddings"):
        return embeddings_answer(request)
    if request.path.endswith("/models"):
        return json_answer(models_payload())
    if request.path.endswith("/chat/completions"):
        words = ["Hello", " world"]
        return stream_answer(words) if request.json().get("stream") else json_answer(chat_payload(words))
    return error_answer(404, f"no such path: {request.path}")


def _items(given: Any) -> list[Any]:
    single = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    return [given] if single else list(given)


def _written(vector: Vector, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


def _event(delta: dict[str, str], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    event = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(event).encode() + b"\n\n"
