"""`llmopt.reading`: each value in a line, and an error with its name, whatever a server sends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llmopt import HttpResponse, InvalidResponse, ServerEvent, Usage, reading
from llmopt.values.embeddings import NOT_TOLD

HOSTILE = [
    None,
    True,
    0,
    -1,
    1.5,
    10**400,
    "",
    "secret",
    [],
    [1],
    ["secret"],
    {},
    {"secret": "secret"},
    [None],
    [{}, 1],
]


class Shape(msgspec.Struct):
    names: list[str]


READERS: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "text": (lambda value: reading.text(value, "name"), [None, "", "secret"]),
    "objects": (lambda value: reading.objects(value, "name"), [[]]),
    "optional": (lambda value: reading.objects(value, "name", optional=True), [None, []]),
    "arguments": (reading.arguments, [None, "", "secret", {}, {"secret": "secret"}]),
    "as_type": (lambda value: reading.as_type(value, Shape), []),
    "vectors": (lambda value: reading.vectors([value]), []),
}


@pytest.mark.parametrize("name", READERS)
def test_a_value_of_a_wrong_type_is_an_error_that_names_it_and_hides_it(name: str) -> None:
    """Nothing else is ever raised, and nothing is dropped."""
    read, good = READERS[name]
    accepted = []
    for value in HOSTILE:
        try:
            read(value)
        except InvalidResponse as error:
            assert error.sent == "yes"
            assert "secret" not in error.message
            assert name not in ("text", "objects") or "`name`" in error.message
        else:
            accepted.append(value)
    expected = {"vectors": [[], [1]]}.get(name, good)
    assert [each for each in accepted if type(each) is not bool] == expected


def test_counts_are_lenient() -> None:
    """What is not plausible is not told, and never an error."""
    assert [reading.count(each) for each in (0, 7, 10**12)] == [0, 7, 10**12]
    assert {reading.count(each) for each in (None, True, -1, 1.0, "7", 10**13, [7])} == {NOT_TOLD}
    assert Usage(prompt_tokens=reading.count("x")) == Usage()


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{", b"\xff", b"[" * 100_000])
def test_a_body_or_an_event_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidResponse) as caught:
        reading.body(HttpResponse(status=200, body=body))
    assert caught.value.reason == "json"
    with pytest.raises(InvalidResponse) as caught:
        reading.event(ServerEvent(data=body.decode(errors="replace")))
    assert caught.value.reason == "json"


def test_good_values_are_read() -> None:
    assert reading.body(HttpResponse(status=200, body=b'{"a": 1}')) == {"a": 1}
    assert reading.event(ServerEvent(data='{"a": 1}')) == {"a": 1}
    assert reading.arguments({"a": 1}) == '{"a":1}'
    assert reading.as_type({"names": ["a"]}, Shape) == Shape(["a"])
    assert reading.objects([{"a": 1}], "name") == [{"a": 1}]
    rows = reading.vectors([[1, 2.5], [3, 4]])
    assert (rows.dtype.name, rows.tolist()) == ("float32", [[1.0, 2.5], [3.0, 4.0]])


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "type"),
        ([[1.0], [1.0, 2.0]], "dimensions"),
        ([[10**400]], "dimensions"),
        ([[True]], "type"),
        ([["1"]], "type"),
    ],
)
def test_rows_that_are_no_vectors_are_refused(rows: list[Any], reason: str) -> None:
    with pytest.raises(InvalidResponse) as caught:
        reading.vectors(rows)
    assert caught.value.reason == reason
