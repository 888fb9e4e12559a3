"""The common dialect from the server's side: how answers are written."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from pybase64 import b64encode

from llmopt.testing.samples import SampleError, SamplePage, SampleRows, Samples


def vector_of(text: str, dimensions: int) -> tuple[float, ...]:
    """A vector of length 1 that is always the same for a text, and another for another text."""
    size = 4 * dimensions
    noise = b"".join(sha256(f"{part}:{text}".encode()).digest() for part in range(size // 32 + 1))
    numbers = [number / 2**31 - 1 for number in struct.unpack(f"<{dimensions}I", noise[:size])]
    length = sum(number * number for number in numbers) ** 0.5 or 1.0
    return single(number / length for number in numbers)


def single(numbers: Any) -> tuple[float, ...]:
    """Numbers as float32 has them, so that they come back exactly."""
    listed = list(numbers)
    return struct.unpack(f"<{len(listed)}f", struct.pack(f"<{len(listed)}f", *listed))


def encoded(vector: Sequence[float]) -> str:
    """A vector as base64 of little-endian float32."""
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def embeddings_body(answer: SampleRows) -> bytes:
    """An embeddings answer."""
    data = [
        {"object": "embedding", "index": index, "embedding": encoded(row) if answer.base64 else list(row)}
        for index, row in answer.rows
    ]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens}
    return _json({"object": "list", "data": data, "model": answer.model, "usage": usage})


def catalog_body(page: SamplePage) -> bytes:
    """A page of a list of models."""
    data = [
        {"id": model, "object": "model", "created": 1_790_000_000, "owned_by": "kit"} for model in page.models
    ]
    more = {} if page.cursor is None else {"has_more": True, "last_id": page.cursor}
    return _json({"object": "list", "data": data, **more})


def error_body(error: SampleError, *, code: str | None = None, kind: str = "api_error") -> bytes:
    """An error."""
    return _json({"error": {"message": error.message, "type": kind, "param": None, "code": code}})


class Dialect:
    """How answers are written for one plugin: its own samples, or the common dialect.

    Args:
        samples: the author's.
    """

    def __init__(self, samples: Samples) -> None:
        self.embeddings = samples.embeddings or embeddings_body
        self.catalog = samples.catalog or catalog_body
        self.error = samples.error or error_body


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
