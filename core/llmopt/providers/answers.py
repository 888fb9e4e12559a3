"""Embedding answers in the common dialect: from bytes to one float32 array.

The list is split by a typed decode that leaves each vector as the bytes it came in; base64 then
goes straight into its row, and a list of numbers through a parser that fills a buffer. No Python
object is made for a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.values.embeddings import EmbeddedRows, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_TOKENS: Final = 10**12
_ABSURDLY_LARGE: Final = 1e18
_ABSURDLY_SMALL: Final = 1e-18
_NOT_A_NUMBER: Final = re.compile(rb"[\[,:]\s*-?(?:NaN|Infinity)\b")
_QUOTE: Final = 0x22
_BRACKET: Final = 0x5B


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
    answer = _decode(body)
    if answer.error:
        return None
    if answer.data is None:
        raise _invalid("the answer has no list `data`.", "json")
    return EmbeddedRows(
        vectors=rows_from_raw([item.embedding for item in answer.data]),
        indices=_indices(answer.data, ordered=ordered),
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


def _indices(items: list[_Item], *, ordered: bool) -> NDArray[np.int64] | None:
    import numpy as np

    found = [item.index for item in items]
    if all(index is msgspec.UNSET for index in found) and ordered:
        return None
    if not all(type(index) is int for index in found):
        raise _invalid("an item of the answer has no index, so its text cannot be told.", "index")
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError:
        raise _invalid("an index of the answer is absurdly large.", "index") from None


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
    read = _RowReader()
    first = read(raws[0], 0)
    _check_byte_order(first)
    rows = np.empty((len(raws), first.size), dtype=np.float32)
    rows[0] = first
    for number, raw in enumerate(raws[1:], start=1):
        row = read(raw, number)
        if row.size != first.size:
            raise _invalid(
                f"vector {number} of the answer has {row.size} numbers, vector 0 has {first.size}.",
                "dimensions",
            )
        rows[number] = row
    return rows


def _check_byte_order(row: NDArray[np.floating[Any]]) -> None:
    """Refuse numbers of a size that no embedding has: big-endian bytes read as little-endian look so.

    One row tells: a server does not change its byte order within an answer.
    """
    import numpy as np

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
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total if total is not None else prompt + completion,
        cached_tokens=_detail(value, "cached_tokens", *_OF_PROMPTS)
        or _count(value.get("num_cached_tokens"))
        or 0,
        reasoning_tokens=_detail(value, "reasoning_tokens", "completion_tokens_details"),
    )


_OF_PROMPTS: Final = ("prompt_tokens_details", "prompt_token_details")
"""Both spellings occur, in one and the same answer even."""


def _detail(usage: dict[str, Any], name: str, *groups: str) -> int:
    counts = (_count(group.get(name)) for key in groups if isinstance(group := usage.get(key), dict))
    return next(filter(None, counts), 0)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")
