"""The decoding of the floor and of the bare HTTP clients: llmopt's own ways, and no check of anything.

Base64 straight into float32 rows; lists of numbers cut out at their brackets and read by a parser that fills a buffer.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pybase64
from numpy.typing import NDArray

from llmopt.compatible.embeddings import cut_lists, rows_of_lists


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Answer(msgspec.Struct):
    data: list[_Item]


_split = msgspec.json.Decoder(_Answer).decode


def body_of(model: str, texts: Any) -> bytes:
    """A request's body."""
    return msgspec.json.encode({"model": model, "input": texts, "encoding_format": "base64"})


def decode(body: bytes) -> NDArray[np.float32]:
    """The rows of an answer."""
    cut = cut_lists(body)
    if cut is not None:
        data = _split(cut[0]).data
        # In the order of the answer: a look at the indices, and a copy only where they are in another one.
        assert [item.index for item in data] == list(range(len(data)))
        return rows_of_lists(body, cut[1])
    data = _split(body).data
    rows: Any = None
    for item in data:
        text = memoryview(item.embedding)[1:-1]
        row = np.frombuffer(pybase64.b64decode(text, validate=True), "<f4")
        if rows is None:
            rows = np.empty((len(data), row.size), np.float32)
        rows[item.index] = row
    return rows  # type: ignore[no-any-return] # an answer holds at least one


def count_models(body: bytes) -> int:
    """How many models an answer lists, by the standard library."""
    return len(json.loads(body)["data"])
