"""Corrections of what is not quite JSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.values.lenient_json import corrected_json, decode_json, join_halves, without_halves

PIECES = ["a", "\\", '"', "u", "ud83d", "\ud83d", "\ude00", "\U0001f600", "é", "NaN", "-Infinity"]
TEXTS = st.lists(st.sampled_from(PIECES)).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


def meant(value: Any) -> Any:
    """The value without what JSON cannot hold."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, list):
        return [meant(each) for each in value]
    return {meant(key): meant(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.row("P07")
@given(VALUES, st.booleans(), st.booleans())
def test_values_of_python_and_javascript_are_read(value: Any, ascii_only: bool, bom: bool) -> None:
    """Halves of surrogate pairs, escaped or encoded; NaN and infinite numbers; a byte order mark."""
    text = json.dumps(value, ensure_ascii=ascii_only)
    data = b"\xef\xbb\xbf" * bom + text.encode("utf-8", "surrogatepass")
    assert decode_json(data) == meant(value)


@given(VALUES)
def test_json_is_left_as_it_is(value: Any) -> None:
    """Nothing that a strict parser reads is changed."""
    data = msgspec.json.encode(meant(value))
    assert corrected_json(data) == data
    assert corrected_json(json.dumps(meant(value)).encode()) == json.dumps(meant(value)).encode()


@given(st.binary())
def test_other_bytes_raise_what_a_strict_parser_raises(data: bytes) -> None:
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        decode_json(data)


@pytest.mark.parametrize(
    "data", [b"nan", b"[NaN,]", b'"NaN', b"NaNa", b"1NaN", b"- Infinity", b'"\\ud83', b"\xef\xbb"]
)
def test_other_mistakes_are_none_that_is_corrected(data: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_json(data)


@given(TEXTS)
def test_halves_are_joined_or_replaced(text: str) -> None:
    """The same in text and in bytes; text without halves stays."""
    assert join_halves(text) == meant(text)
    assert without_halves(text.encode("utf-8", "surrogatepass")).decode() == meant(text)
