"""Embedding answers in the common dialect: from bytes to one float32 array.

Base64: the answer is split by a typed decode that leaves each vector as the bytes it came in, and these go
straight into their row. Lists of numbers: see `llmopt.compatible.embeddings`. No Python object is made for a number.
What is unusual in any way is decoded by the typed decode and vector by vector, which can say what is wrong.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.values.embeddings import EmbeddedRows, Usage, in_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Lists of numbers in an answer, cut out before anything else looks at it.
#
# They are nearly all of its bytes, and a parser of JSON would go through them only to find their ends. Numbers know no
# brackets, so the ends are found by searching for those; what is left is short. Each list then goes through a parser
# that fills a buffer: 0.8 ns a byte, where splitting and parsing took twice that.

Span = tuple[int, int]
_LONG = 8 << 20
_BLOCK = 8 << 20
"""Bytes of lists whose numbers a long answer has narrowed together. For that numpy lets go of the interpreter's lock, and
if it does so for every list, for microseconds, then whoever waits for the lock does not get it: 70 ms were seen."""
_BEFORE_THE_FIRST = 1024
"""Bytes between the list of items and the first list of numbers; an answer that has none there is in another form."""


def cut_lists(body: bytes) -> tuple[bytes, list[Span]] | None:
    """An answer without its numbers, and where they stood; None when it holds no lists, or lists in lists.

    Args:
        body: JSON, or anything.

    Returns:
        The body with ``[]`` for each list inside the outermost one, and the places of these lists, brackets
        included. A bracket in a text makes a list too many: compare with what the rest says.
    """
    outer = body.find(b"[")
    start = body.find(b"[", outer + 1, outer + 1 + _BEFORE_THE_FIRST) if outer >= 0 else -1
    if start < 0:
        return None
    rest, spans, at = [], [], 0
    while start >= 0:
        end = body.find(b"]", start)
        following = body.find(b"[", start + 1)
        if end < 0 or 0 <= following < end:
            return None
        rest.append(body[at : start + 1])
        spans.append((start, end + 1))
        at, start = end, following
    rest.append(body[at:])
    return b"".join(rest), spans


def rows_of_lists(body: bytes, spans: Sequence[Span]) -> NDArray[np.float32] | None:
    """Lists of numbers as rows of one array; None where one is something else, or of another length.

    Args:
        body: the answer.
        spans: at least one, as `cut_lists` gives them.
    """
    import numpy as np
    import simdjson

    parse = simdjson.Parser().parse

    def read(span: Span) -> memoryview:
        # In one expression: the parser starts anew only when its last value is gone.
        return memoryview(parse(body[span[0] : span[1]]).as_buffer(of_type="d"))  # type: ignore[union-attr] # a list

    count, (start, end) = len(spans), spans[0]
    together = 1 if len(body) < _LONG else min(count, max(1, _BLOCK // (end - start)))
    try:
        lists: Iterator[memoryview] = map(read, spans)
        first = next(lists)
        lists, size = chain((first,), lists), first.nbytes
        rows = np.empty((count, size // 8), np.float32)
        wide = np.empty((together, size // 8), np.float64)
        space = wide.data.cast("B")
        with np.errstate(over="ignore"):
            for begin in range(0, count, together):
                some = min(together, count - begin)
                for at in range(0, some * size, size):
                    # A list of another length does not go in.
                    space[at : at + size] = next(lists)
                rows[begin : begin + some] = wide[:some]
    except (ValueError, TypeError, RuntimeError):
        return None
    return rows


# Vectors as they stand in an answer, base64 or lists, as rows of one float32 array.

_ABSURDLY_LARGE: Final = 1e18
_ABSURDLY_SMALL: Final = 1e-18
_LEAST_SQUARES: Final = 1e-30
_MOST_SQUARES: Final = 1e30
_FEW: Final = 8_192
_QUOTE: Final = 0x22
_BRACKET: Final = 0x5B


def rows_from_raw(raws: Sequence[msgspec.Raw]) -> NDArray[np.float32]:
    """Vectors as they stand in JSON, as rows of one array.

    Returns:
        float32, shape (len(raws), dimensions), C-contiguous; (0, 0) for no vectors.

    Raises:
        InvalidResponse: a vector is neither base64 nor a flat list of numbers, or lengths differ.
    """
    import numpy as np

    if not raws:
        return np.empty((0, 0), dtype=np.float32)
    rows, done = _plain_base64(raws)
    if rows is None or done < len(raws):
        rows = _any_form(raws, rows, done)
    check_byte_order(rows[0])
    return rows


def _any_form(
    raws: Sequence[msgspec.Raw], rows: NDArray[np.float32] | None, start: int
) -> NDArray[np.float32]:
    """The vectors from ``start`` on, and those before as they are in ``rows``."""
    import numpy as np

    read = _RowReader()
    if rows is None:
        first = read(raws[0], 0)
        rows = np.empty((len(raws), first.size), dtype=np.float32)
        rows[0] = first
        start = 1
    for number in range(start, len(raws)):
        row = read(raws[number], number)
        if row.size != rows.shape[1]:
            raise _invalid(
                f"vector {number} of the answer has {row.size} numbers, vector 0 has {rows.shape[1]}.",
                "dimensions",
            )
        rows[number] = row
    return rows


def _plain_base64(raws: Sequence[msgspec.Raw]) -> tuple[NDArray[np.float32] | None, int]:
    """Decode base64 into rows, up to the first vector that is anything else; the rows, and how many are done."""
    import numpy as np
    from pybase64 import b64decode

    rows = None
    done = size = 0
    space = memoryview(b"")
    try:
        for done, raw in enumerate(raws):
            text = memoryview(raw)
            if text[0] != _QUOTE:
                return rows, done
            data = b64decode(text[1:-1], validate=True)
            if rows is None:
                size = len(data)
                if not size or size % 4 or sys.byteorder != "little":
                    return None, 0
                rows = np.empty((len(raws), size // 4), dtype=np.float32)
                space = rows.data.cast("B")
            # Another length than the row's is an error here, too.
            space[size * done : size * (done + 1)] = data
    except ValueError:
        return rows, done
    return rows, len(raws)


def check_byte_order(row: NDArray[np.floating[Any]]) -> None:
    """Refuse numbers of a size that no embedding has: big-endian bytes read as little-endian look so.

    One row tells: a server does not change its byte order within an answer.
    """
    import numpy as np

    if row.size <= _FEW and _LEAST_SQUARES < np.vdot(row, row) < _MOST_SQUARES:
        # By the sum of the squares its largest number cannot be out of bounds; this is one look instead of three.
        return
    largest = float(np.abs(row).max(initial=0.0))
    if not np.isfinite(largest):
        return
    if largest > _ABSURDLY_LARGE or 0.0 < largest < _ABSURDLY_SMALL:
        raise _invalid(
            "the numbers of the answer look like big-endian bytes; little-endian is expected.", "base64"
        )


class _RowReader:
    """Reads one vector after the other with one parser and its one buffer."""

    def __init__(self) -> None:
        import numpy as np
        import pybase64
        import simdjson

        self._np = np
        self._unbase64 = pybase64.b64decode
        self._parser = simdjson.Parser()

    def __call__(self, raw: msgspec.Raw, number: int) -> NDArray[np.floating[Any]]:
        view = memoryview(raw)
        if view and view[0] == _QUOTE:
            return self._from_base64(view, number)
        if view and view[0] == _BRACKET:
            return self._from_list(bytes(view), number)
        raise _invalid(f"vector {number} of the answer is neither base64 nor a list.", "type")

    def _from_base64(self, view: memoryview, number: int) -> NDArray[np.floating[Any]]:
        text = bytes(view[1:-1])
        # JSON may write a slash with a backslash before it.
        if b"\\" in text:
            text = msgspec.json.decode(view, type=str).encode()
        try:
            data = self._unbase64(text, validate=True)
        except ValueError:
            raise _invalid(f"vector {number} of the answer is not base64.", "base64") from None
        if len(data) % 4:
            raise _invalid(
                f"vector {number} of the answer has {len(data)} bytes, no whole number of float32.",
                "base64",
            )
        return self._np.frombuffer(data, dtype="<f4")

    def _from_list(self, text: bytes, number: int) -> NDArray[np.floating[Any]]:
        # The parser's buffer flattens nested lists, so they are told apart here.
        if text.count(b"[") != 1:
            raise _invalid(f"vector {number} of the answer holds something else than numbers.", "type")
        try:
            values: Any = self._parser.parse(text)
            numbers = self._np.frombuffer(values.as_buffer(of_type="d"), dtype=self._np.float64)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = "non_finite" if "NUMBER_ERROR" in str(error) else "type"
            raise _invalid(
                f"vector {number} of the answer holds something else than finite numbers.", reason
            ) from None
        with self._np.errstate(over="ignore"):
            return numbers.astype(self._np.float32)


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")


_MAX_TOKENS: Final = 10**12
_NOT_A_NUMBER: Final = re.compile(rb"[\[,:]\s*-?(?:NaN|Infinity)\b")


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | msgspec.UnsetType | None = msgspec.UNSET


class _Answer(msgspec.Struct):
    data: list[_Item] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Answer)


def decode_embeddings(body: bytes, *, ordered: bool = False) -> EmbeddedRows | None:
    """Decode ``{"data": [{"index": 0, "embedding": ...}], "model": ..., "usage": ...}``.

    Args:
        body: the answer, UTF-8 JSON. Each vector may be base64 (little-endian float32) or a list.
        ordered: whether the provider answers in order, so that no index need be there.

    Returns:
        The rows, in the order of the answer; None when the object carries a true ``error``.

    Raises:
        InvalidResponse: the body is not such an object, or a vector is unreadable, or vectors
            differ in length. ``reason`` is "json", "index", "type", "base64" or "dimensions".
    """
    found = _from_lists(body, ordered=ordered)
    if found is not None:
        return found
    answer = _decode(body)
    if answer.error:
        return None
    if answer.data is None:
        raise _invalid("the answer has no list `data`.", "json")
    vectors = rows_from_raw([item.embedding for item in answer.data])
    return _embedded(answer, answer.data, vectors, ordered=ordered)


def _from_lists(body: bytes, *, ordered: bool) -> EmbeddedRows | None:
    """The quick way for lists of numbers; None when it does not lead there."""
    cut = cut_lists(body)
    if cut is None:
        return None
    rest, spans = cut
    try:
        answer = _decoder.decode(rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    items = answer.data or ()
    if answer.error or len(items) != len(spans) or any(bytes(item.embedding) != b"[]" for item in items):
        return None
    vectors = rows_of_lists(body, spans)
    if vectors is None:
        return None
    check_byte_order(vectors[0])
    return _embedded(answer, items, vectors, ordered=ordered)


def _embedded(
    answer: _Answer, items: Sequence[_Item], vectors: NDArray[np.float32], *, ordered: bool
) -> EmbeddedRows:
    return EmbeddedRows(
        vectors=vectors,
        indices=_indices(items, ordered=ordered),
        usage=read_usage(answer.usage),
        model=answer.model if isinstance(answer.model, str) else None,
    )


def _decode(body: bytes) -> _Answer:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        # The message of a validation error names types and the path, never a value.
        reason = "index" if ".index" in str(error) else "json"
        raise _invalid(f"the answer has another form than embeddings: {error}.", reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _not_json(body) from None


def _not_json(body: bytes) -> InvalidResponse:
    if _NOT_A_NUMBER.search(body):
        return _invalid(
            "the answer holds NaN or Infinity among its numbers, which no vector has.", "non_finite"
        )
    start = body[:64].lstrip().lower()
    if not start:
        return _invalid("the answer is empty.", "json")
    if start.startswith(b"<"):
        return _invalid(
            "the answer is HTML, not JSON: is base_url right, and does a proxy or a login page answer for it?",
            "json",
        )
    return _invalid(f"the answer ({len(body)} bytes) is not JSON, or was cut off.", "json")


def _indices(items: Sequence[_Item], *, ordered: bool) -> NDArray[np.int64] | None:
    import numpy as np

    found = [item.index for item in items]
    if found == list(range(len(found))):
        return in_order(len(found))
    if all(index is msgspec.UNSET for index in found) and ordered:
        return None
    if not all(type(index) is int for index in found):
        raise _invalid("an item of the answer has no index, so its text cannot be told.", "index")
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError:
        raise _invalid("an index of the answer is absurdly large.", "index") from None


def read_usage(value: object) -> Usage | None:
    """The ``usage`` object, tolerantly: None unless it holds believable counts."""
    if not isinstance(value, dict):
        return None
    total = _count(value.get("total_tokens"))
    prompt = _count(value.get("prompt_tokens"))
    completion = _count(value.get("completion_tokens")) or 0
    if total is None and prompt is None:
        return None
    prompt = prompt if prompt is not None else max(0, (total or 0) - completion)
    total = total if total is not None else prompt + completion
    if value.keys() <= _PLAIN:
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=_detail(value, "cached_tokens", *_OF_PROMPTS)
        or _count(value.get("num_cached_tokens"))
        or 0,
        reasoning_tokens=_detail(value, "reasoning_tokens", "completion_tokens_details"),
    )


_PLAIN: Final = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_OF_PROMPTS: Final = ("prompt_tokens_details", "prompt_token_details")
"""Both spellings occur, in one and the same answer even."""


def _detail(usage: dict[str, Any], name: str, *groups: str) -> int:
    counts = (_count(group.get(name)) for key in groups if isinstance(group := usage.get(key), dict))
    return next(filter(None, counts), 0)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None
