"""How a careful programmer decodes an answer by hand: the decoding of the floor and of the bare HTTP clients.

Base64 straight into float32 rows, lists of numbers through a parser that fills a buffer, and no check of anything.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pybase64
import simdjson
from numpy.typing import NDArray


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int


class _Answer(msgspec.Struct):
    data: list[_Item]


_split = msgspec.json.Decoder(_Answer).decode
_parser = simdjson.Parser()


def body_of(model: str, texts: Any) -> bytes:
    """A request's body."""
    return msgspec.json.encode({"model": model, "input": texts, "encoding_format": "base64"})


def decode(body: bytes) -> NDArray[np.float32]:
    """The rows of an answer."""
    data = _split(body).data
    rows: Any = None
    for item in data:
        raw = bytes(item.embedding)
        if raw[:1] == b'"':
            row: Any = np.frombuffer(pybase64.b64decode(raw[1:-1], validate=True), "<f4")
        else:
            row = np.frombuffer(_parser.parse(raw).as_buffer(of_type="d"))  # type: ignore[union-attr]
        if rows is None:
            rows = np.empty((len(data), row.size), np.float32)
        rows[item.index] = row
    return rows  # type: ignore[no-any-return] # an answer holds at least one


def count_models(body: bytes) -> int:
    """How many models an answer lists, by the standard library."""
    return len(json.loads(body)["data"])
