"""Which texts and options are refused before any I/O."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt import InvalidInput
from llmopt.operations.embed import check_texts_argument, embed_call, text_error


@pytest.mark.parametrize("text", ["a", " ", "\x00", "\u2028", "\ufeff", "é", "👩‍👩‍👧", "a" * 100_000])
def test_i02_odd_texts_can_be_sent(text: str) -> None:
    """White space, NUL, line separators, BOM and emoji are texts like any other."""
    assert text_error(text, 0) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        (b"a", "bytes"),
        (None, "NoneType"),
        (3, "int"),
        (["a"], "list"),
        ("a\ud800b", "surrogate"),
    ],
)
def test_i01_unusable_texts_are_named_by_index(text: object, word: str) -> None:
    """The message says which one and what is wrong with it."""
    fault = text_error(text, 17)
    assert fault is not None
    assert fault.index == 17
    assert "17" in fault.message
    assert word in fault.message


@pytest.mark.parametrize("texts", ["one text", b"bytes", {"a": 1}, None, 5, object()])
def test_i01_what_is_no_list_of_texts_is_refused(texts: Any) -> None:
    """A single text is not taken for a list of characters."""
    with pytest.raises(InvalidInput, match="list of str"):
        check_texts_argument(texts)


@pytest.mark.parametrize("dimensions", [0, -1, True, "5", 1.5, 10**9])
def test_i05_dimensions(dimensions: Any) -> None:
    """Only a positive whole number of sensible size will do."""
    with pytest.raises(InvalidInput, match="dimensions"):
        embed_call("m", dimensions=dimensions, input_type=None, extra=None)


def test_i05_extra_must_be_json() -> None:
    """Cycles, foreign objects and numbers that are not finite are refused."""
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    for extra in (
        {"a": object()},
        cycle,
        {"a": float("nan")},
        {"a": [1, {"b": float("inf")}]},
        {1: "a"},
        ["a"],
    ):
        with pytest.raises(InvalidInput, match="extra"):
            embed_call("m", dimensions=None, input_type=None, extra=extra)  # type: ignore[arg-type] # wrong on purpose


def test_extra_is_a_copy() -> None:
    """What the caller does with the mapping later changes nothing."""
    extra = {"user": "x"}
    call = embed_call("m", dimensions=None, input_type=None, extra=extra)
    extra["user"] = "y"
    assert call.extra == {"user": "x"}
