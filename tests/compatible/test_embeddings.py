"""Parsing of OpenAI-compatible embeddings responses."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmopt import InvalidResponse
from llmopt.compatible import embeddings
from llmopt.compatible.embeddings import decode_embeddings
from llmopt.operations.embed_results import in_input_order
from tests.support.scale import scaled

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


def indexed(*items: tuple[Any, float]) -> bytes:
    """A response with vectors of one number; an index of ``...`` is left out."""
    data = [{"embedding": [number]} | ({} if index is ... else {"index": index}) for index, number in items]
    return json.dumps({"data": data}).encode()


def ordered(data: bytes, count: int) -> list[float]:
    rows = decode_embeddings(data)
    assert rows is not None
    return in_input_order(rows, count, None)[:, 0].tolist()


WRITINGS: tuple[Callable[[int], Any], ...] = (int, float, str)


@pytest.mark.row("P03")
@given(
    st.permutations(range(1, 7)), st.integers(0, 6), st.sampled_from(WRITINGS), st.sampled_from([..., None])
)
def test_vectors_are_placed_where_there_is_no_doubt(
    numbers: list[int], left_out: int, write: Callable[[int], Any], absent: Any
) -> None:
    """Numbered in any order and any writing; one index may be missing, and so may all of them."""
    expected = [float(number) for number in sorted(numbers)]
    items = [(absent if number == left_out else write(number - 1), number) for number in numbers]
    assert ordered(indexed(*items), 6) == expected
    assert ordered(indexed(*((absent, number) for number in numbers)), 6) == numbers


@pytest.mark.row("P03")
@pytest.mark.parametrize("index", [..., None, 0, 1, -1, 7, 0.5, "x", "0", 10**30])
def test_the_only_vector_is_that_of_the_only_text(index: Any) -> None:
    """Whatever its index says."""
    assert ordered(indexed((index, 3.0)), 1) == [3.0]


@pytest.mark.row("P03")
@given(
    st.lists(
        st.sampled_from([..., None, -1, 0, 1, 2, 3, 0.5, "0", "-1", "1.0", "\u0661", "", "9" * 30]),
        min_size=2,
        max_size=4,
    )
)
def test_vectors_in_doubt_are_refused(indices: list[Any]) -> None:
    """Each number is on one vector, or at most one vector has none: everything else is an error, and no guess."""
    absent = [index for index in indices if index in (..., None)]
    whole = {"0": 0, "1": 1, "1.0": 1, "2": 2, "3": 3}
    stated = [whole.get(str(index), 99) for index in indices if index not in (..., None)]
    plain = len(set(stated)) == len(stated) and max(stated, default=0) < len(indices)
    if len(absent) == len(indices) or (len(absent) <= 1 and plain):
        return
    with pytest.raises(InvalidResponse) as caught:
        ordered(indexed(*((index, 1.0) for index in indices)), len(indices))
    assert caught.value.reason == "index"


@pytest.mark.row("P03")
@pytest.mark.parametrize("index", [True, [0], {}])
def test_an_index_of_another_type_is_invalid(index: Any) -> None:
    with pytest.raises(InvalidResponse) as caught:
        decode_embeddings(indexed((index, 1.0), (1, 2.0)))
    assert caught.value.reason == "index"


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
        b'{"data": [], "usage": NaN, "x"}',
        b'{"usage": ' + b"[" * 100_000,
        b'{"usage": ' + b"9" * 5_000 + b"}",
    ],
)
def test_no_body_raises_anything_but_invalid_response(data: bytes) -> None:
    with pytest.raises(InvalidResponse):
        decode_embeddings(data)


@pytest.mark.row("P07")
@pytest.mark.parametrize("form", [base64_of, list], ids=["base64", "lists"])
def test_mistakes_outside_of_the_vectors_are_corrected(form: Callable[[list[float]], Any]) -> None:
    """A byte order mark, NaN, and half of a surrogate pair cost nothing that is needed."""
    data = body(form([1.0]), form([2.0]), usage={"prompt_tokens": 7, "cost": math.nan}, model="m\ud83d")
    for start in (b"", b"\xef\xbb\xbf"):
        rows = decode_embeddings(start + data)
        assert rows is not None
        assert rows.vectors.tolist() == [[1.0], [2.0]]
        assert rows.model == "m\N{REPLACEMENT CHARACTER}"
        assert rows.usage is not None


JUNK = st.sampled_from(
    ["0", "1", "null", '"x"', "[]", "{}", "[9.0, 9.0]", '"AAAAQQ=="', '[{"index": 0, "embedding": [8.0]}]']
)


@pytest.mark.row("P07")
@given(
    forms=st.tuples(st.booleans(), st.booleans()),
    junk=st.lists(
        st.tuples(st.sampled_from(["index", "embedding", "data", "usage", "model", "data"]), JUNK), max_size=4
    ),
)
def test_of_duplicate_keys_the_last_counts(forms: tuple[bool, bool], junk: list[tuple[str, str]]) -> None:
    """As in Python and JavaScript: a vector is never read from a value that a later one replaces."""
    vectors = [base64_of([float(number)]) if form else [float(number)] for number, form in enumerate(forms)]
    inner = "".join(f'"{key}": {value}, ' for key, value in junk)
    items = [
        f'{{{inner}"index": {number}, "embedding": {json.dumps(each)}}}'
        for number, each in enumerate(vectors)
    ]
    data = f'{{{inner}"data": [{", ".join(items)}]}}'
    try:
        rows = decode_embeddings(data.encode())
    except InvalidResponse as error:
        assert error.reason in ("json", "index")
        return
    assert rows is not None
    assert rows.vectors.tolist() == [[0.0], [1.0]]


@pytest.mark.row("P04")
def test_nan_in_a_vector_is_named() -> None:
    with pytest.raises(InvalidResponse, match="NaN or Infinity") as caught:
        decode_embeddings(body([1.0, math.nan]))
    assert caught.value.reason == "non_finite"


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


def outcome(data: bytes) -> object:
    """What a body gives, or the words of its error."""
    try:
        rows = decode_embeddings(data)
    except InvalidResponse as error:
        return error.reason, error.message
    if rows is None:
        return None
    indices = None if rows.indices is None else rows.indices.tolist()
    return rows.vectors.shape, rows.vectors.tobytes(), indices, rows.usage, rows.model


KEYS = st.sampled_from(['"embedding":', '"embedding" : ', '"x":{"embedding":"AACAPwAA"},"embedding":'])
PIECES = st.sampled_from(
    [
        '"embedding":',
        '"embedding" : ',
        '\\"embedding\\":',
        '"a\\"embedding":',
        '"index":',
        '"index":0',
        '"data":[',
        '"usage":',
        '"AACAPwAAAEA="',
        '"AACAPwAAAEAAAEBA"',
        '"AACAPw=="',
        '"AACAPwAA"',
        '"AA=="',
        '"AACA\\/w=="',
        '"*"',
        '""',
        '"',
        "[1.0,2.0,3.0]",
        "[1.0,2.0]",
        "[]",
        "[[1.0]]",
        "[1.0,null]",
        "[1e39,1.0,2.0]",
        "null",
        "{",
        "}",
        "]",
        ",",
        " ",
        "\\",
        "\u00e4",
    ]
)
PLAIN = st.sampled_from(['"AACAPwAA"', '"AACAPwAAAEA="', '"AACAPwAAAEAAAEBA"', '"AACA\\/w=="', "[1.0,2.0]"])
ITEMS = st.one_of(
    # All alike, as servers write them, or anything.
    st.builds(lambda key, value, count: [("", key, value)] * count, KEYS, PLAIN, st.integers(1, 4)),
    st.lists(st.tuples(st.just(""), KEYS, PLAIN), min_size=1, max_size=4),
    st.lists(
        st.tuples(st.sampled_from(["", '"x":', '"embedding":"*",', '"embedding":[3.0],']), PIECES, PIECES),
        min_size=1,
        max_size=4,
    ),
)


@pytest.mark.row("P04", "P05", "P06", "P07")
@settings(max_examples=scaled(100, 5_000), deadline=None)
@given(items=ITEMS, before=st.lists(PIECES, max_size=2), after=st.lists(PIECES, max_size=2))
@example([("", '"embedding":', '"*"')], [], [])
@example([('"x":', '{"embedding":"AACAPwAA"},"embedding":', '""')], [], [])
@example([('"x":', '{"embedding":"AACAPw=="},"embedding": ', '"*"')], [], [])
@example([('"a\\"embedding":"AACAPw==",', '"embedding": ', '""')], [], [])
@example([("", '"embedding":', '"AACAPwAAAEA="'), ("", '"embedding":', '"AACAPwAAAA=="')], [], [])
@example([("", '"embedding":', '"AACAPwAA"'), ("", '"embedding":', '"AACAPw=="')], [], [])
def test_vectors_that_are_cut_out_are_those_of_the_whole_body(
    items: list[tuple[str, ...]], before: list[str], after: list[str]
) -> None:
    """Whatever a server sends: the same vectors as without the cut, or the same words."""
    listed = ",".join(f'{{"index":{at},{"".join(item)}}}' for at, item in enumerate(items))
    data = f'{{{"".join(before)}"data":[{listed}]{"".join(after)}}}'.encode()
    found = outcome(data)
    with patch.object(embeddings, "_from_cuts", lambda _: None):
        assert outcome(data) == found


@pytest.mark.parametrize("dimensions", [2, 3, 4, 1_700])
@pytest.mark.parametrize("form", [base64_of, list], ids=["base64", "lists"])
def test_many_vectors_are_read_in_groups(form: Callable[[list[float]], Any], dimensions: int) -> None:
    """With and without padding, in short lists and in long ones."""
    vectors = [[number + at / 7 for at in range(dimensions)] for number in range(1, 30)]
    data = body(*map(form, vectors))
    rows = decode_embeddings(data)
    assert rows is not None
    np.testing.assert_array_equal(rows.vectors, np.array(vectors, dtype=np.float32))
    for size in (8, 5_000, 100_000):
        with patch.multiple(embeddings, _LARGE_BODY=size, _GROUP_BYTES=15_000):
            again = decode_embeddings(data)
        assert again is not None
        assert again.vectors.tobytes() == rows.vectors.tobytes()


def test_the_vectors_of_a_response_can_be_written_to() -> None:
    """They belong to the caller, also where the bytes of a text are their memory."""
    for vectors in ([base64_of([1.0])], [base64_of([1.0])] * 3, [base64_of([1.0, 2.0, 3.0])] * 3, [[1.0]]):
        rows = decode_embeddings(body(*vectors))
        assert rows is not None
        np.add(rows.vectors, 1, out=rows.vectors)
        assert rows.vectors[0, 0] == 2.0
        assert rows.vectors.flags.c_contiguous
