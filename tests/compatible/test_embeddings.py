"""Parsing of OpenAI-compatible embeddings responses."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import InvalidResponse
from llmopt.compatible.embeddings import decode_embeddings

numbers = st.floats(-(2.0**50), 2.0**50, width=32, allow_nan=False, allow_infinity=False)


def base64_of(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def body(*embeddings: Any, **more: Any) -> bytes:
    data = [{"index": index, "embedding": value} for index, value in enumerate(embeddings)]
    return json.dumps({"data": data, **more}).encode()


@given(
    st.lists(st.lists(numbers, min_size=3, max_size=3).map(lambda row: [1.0, *row]), min_size=1, max_size=5),
    st.booleans(),
)
def test_base64_and_lists_give_the_same_vectors(vectors: list[list[float]], mixed: bool) -> None:
    """Also mixed in one response."""
    forms = [base64_of(vector) if mixed or index % 2 else vector for index, vector in enumerate(vectors)]
    rows = decode_embeddings(body(*forms))
    assert rows is not None
    assert rows.vectors.dtype == np.float32
    np.testing.assert_array_equal(rows.vectors, np.array(vectors, dtype=np.float32))


def test_base64_with_an_escaped_slash() -> None:
    """JSON allows a slash to be written with a backslash."""
    text = base64_of([-1.5, 3.0e17, 1e-40])
    escaped = body(text).replace(b"/", b"\\/")
    rows = decode_embeddings(escaped)
    assert rows is not None
    assert rows.vectors[0].tolist() == np.array([-1.5, 3.0e17, 1e-40], dtype=np.float32).tolist()


@pytest.mark.row("P04", "P06")
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("A===", "base64"),
        ("AAAA", "base64"),
        ("ä", "base64"),
        ("AAAAAA==!", "base64"),
        ([1, [2]], "type"),
        ([1, None], "type"),
        ([1, "2"], "type"),
        ([True], "type"),
        ({}, "type"),
        (None, "type"),
        (3, "type"),
    ],
)
def test_an_unreadable_vector_is_invalid(value: Any, reason: str) -> None:
    """The error has the reason."""
    with pytest.raises(InvalidResponse) as caught:
        decode_embeddings(body([1.0], value))
    assert caught.value.reason == reason


@pytest.mark.row("P04", "P07")
@pytest.mark.parametrize("text", ["[1, NaN]", "[Infinity]", "[1e999]", "[1,]", "[", "[1 2]"])
def test_a_vector_with_an_invalid_json_number_is_invalid(text: str) -> None:
    """Python's json module would accept some of these."""
    with pytest.raises(InvalidResponse):
        decode_embeddings(b'{"data":[{"index":0,"embedding":' + text.encode() + b"}]}")


@pytest.mark.row("P05")
def test_vectors_of_different_lengths_are_invalid() -> None:
    with pytest.raises(InvalidResponse) as caught:
        decode_embeddings(body([1.0, 2.0], [1.0]))
    assert caught.value.reason == "dimensions"


@pytest.mark.row("P03")
@pytest.mark.parametrize("index", ["0", 0.5, 1.0, True, None, -(10**30), [0]])
def test_an_index_is_a_whole_number(index: Any) -> None:
    """Any other value is invalid."""
    data = json.dumps({"data": [{"index": index, "embedding": [1.0]}]}).encode()
    with pytest.raises(InvalidResponse) as caught:
        decode_embeddings(data)
    assert caught.value.reason == "index"


@pytest.mark.row("P03")
def test_a_missing_index_is_invalid() -> None:
    """A plugin whose provider answers in order returns ``EmbeddedRows`` without indices instead."""
    data = json.dumps({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}).encode()
    with pytest.raises(InvalidResponse):
        decode_embeddings(data)


@pytest.mark.row("P07", "P12")
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"data": {}}',
        b'{"data": [3]}',
        b'{"data": [{"index": 0}]}',
        b"<html></html>",
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"data": []} x',
        b'{"model": "\\ud800"}',
        b'{"usage": ' + b"[" * 100_000,
        b'{"usage": ' + b"9" * 5_000 + b"}",
    ],
)
def test_no_body_raises_anything_but_invalid_response(data: bytes) -> None:
    with pytest.raises(InvalidResponse):
        decode_embeddings(data)


def test_an_error_with_status_200_gives_none() -> None:
    """The caller turns it into a failure."""
    assert decode_embeddings(b'{"error": {"message": "no"}, "data": []}') is None
    assert decode_embeddings(body([1.0], error=None)) is not None


@pytest.mark.row("P08")
@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "x",
        {"prompt_tokens": -1},
        {"prompt_tokens": "3"},
        {"total_tokens": 10**13},
        {"prompt_tokens": True},
    ],
)
def test_implausible_usage_is_ignored(usage: Any) -> None:
    rows = decode_embeddings(body([1.0], usage=usage))
    assert rows is not None
    assert rows.usage is None


def test_usage_with_only_a_total() -> None:
    """Some providers report nothing else."""
    rows = decode_embeddings(body([1.0], usage={"total_tokens": 5}))
    assert rows is not None
    assert rows.usage is not None
    assert (rows.usage.prompt_tokens, rows.usage.total_tokens) == (5, 5)


@pytest.mark.row("P01")
def test_an_empty_list_is_valid() -> None:
    """The engine compares the count with the request."""
    rows = decode_embeddings(b'{"data": []}')
    assert rows is not None
    assert rows.vectors.shape == (0, 0)
