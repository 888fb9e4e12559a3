"""Embeddings in the OpenAI-compatible dialect: the request body, and the response as one float32 array.

No Python object is made for a number. Base64 vectors: a typed msgspec decode leaves each one as raw bytes, which are
decoded straight into its row. Lists of numbers: their text is cut out of the body before anything parses it, and
simdjson reads each list into a buffer. Anything unusual goes through a slower path that reads vector by vector and
can say which one is wrong.

No I/O and no clock. numpy, simdjson and pybase64 are imported at first use. The engine calls the hook
`parse_embeddings` on the event loop, for large responses in a worker thread. Nothing that changes is shared; responses
in order share the read-only indices that `in_order` caches for the process.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.hookspecs import hookimpl
from llmopt.reading import MAX_TOKENS, count, invalid
from llmopt.values.calls import EmbedCall
from llmopt.values.embeddings import NOT_TOLD, EmbeddedRows, Usage, in_order
from llmopt.values.http import Failure, HttpResponse
from llmopt.values.lenient_json import corrected_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def embed_body(call: EmbedCall, *, encoding_format: str | None = None) -> dict[str, Any]:
    """The body of an embeddings request, without the keys that the call leaves open."""
    body: dict[str, Any] = {"model": call.model, "input": call.texts}
    if encoding_format is not None:
        body["encoding_format"] = encoding_format
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    if call.input_type is not None:
        body["input_type"] = call.input_type
    # Last, so that ``extra`` can replace any key for a server that deviates.
    return {**body, **call.extra}


@hookimpl(trylast=True)
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """Read the vectors of a response, or the error that a 2xx response holds.

    Raises:
        InvalidResponse: the body is neither.
    """
    rows = decode_embeddings(response.body)
    return rows if rows is not None else Failure.from_response(response, model=call.model)


_NOT_A_NUMBER: Final = re.compile(rb"[\[,:]\s*-?(?:NaN|Infinity)\b")


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | float | str | None = None


class _Response(msgspec.Struct):
    data: list[_Item] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Response)


def decode_embeddings(body: bytes) -> EmbeddedRows | None:
    """Decode ``{"data": [{"index": 0, "embedding": ...}], "model": ..., "usage": ...}``.

    Args:
        body: UTF-8 JSON. Each vector is base64 (little-endian float32) or a list of numbers.

    Returns:
        The rows in the order of the body; None if the object has a truthy ``error``.

    Raises:
        InvalidResponse: the body is another object, a vector cannot be read, or vectors differ in length.
            ``reason`` is "json", "index", "type", "base64", "non_finite" or "dimensions".
    """
    fast = _from_lists(body)
    if fast is not None:
        return fast
    try:
        decoded = _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _wrong_form(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _decode_corrected(body)
    if decoded.error:
        return None
    if decoded.data is None:
        raise invalid("the response has no list `data`.", "json")
    vectors = rows_from_raw(list(map(_embedding_of, decoded.data)))
    return _embedded(decoded, decoded.data, vectors)


def _from_lists(body: bytes) -> EmbeddedRows | None:
    """The fast path for lists of numbers; None if the body needs the other path."""
    cut = cut_lists(body)
    if cut is None:
        return None
    rest, spans = cut
    try:
        decoded = _decoder.decode(rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    items = decoded.data or ()
    # A bracket in a string, or a vector that is not a list: the slow path reads such a body correctly.
    if decoded.error or len(items) != len(spans) or any(bytes(item.embedding) != b"[]" for item in items):
        return None
    vectors = rows_of_lists(body, spans)
    if vectors is None:
        return None
    check_byte_order(vectors[0])
    return _embedded(decoded, items, vectors)


def _embedded(decoded: _Response, items: Sequence[_Item], vectors: NDArray[np.float32]) -> EmbeddedRows:
    return EmbeddedRows(
        vectors=vectors,
        indices=_indices(items),
        usage=read_usage(decoded.usage),
        model=decoded.model if isinstance(decoded.model, str) else None,
    )


def _decode_corrected(body: bytes) -> EmbeddedRows | None:
    corrected = corrected_json(body)
    if corrected == body:
        raise _not_json(body)
    try:
        return decode_embeddings(corrected)
    except InvalidResponse as error:
        # NaN in a vector has become null, which hides the cause.
        raise (_not_json(body) if _NOT_A_NUMBER.search(body) else error) from None


def _wrong_form(error: msgspec.ValidationError) -> InvalidResponse:
    # The message of a validation error names types and the path, never a value.
    reason = "index" if ".index" in str(error) else "json"
    return invalid(f"the response is no embeddings response: {error}.", reason)


def _not_json(body: bytes) -> InvalidResponse:
    if _NOT_A_NUMBER.search(body):
        return invalid("the response holds NaN or Infinity, which no vector has.", "non_finite")
    start = body[:64].lstrip().lower()
    if not start:
        return invalid("the response body is empty.", "json")
    if start.startswith(b"<"):
        return invalid(
            "the response is HTML, not JSON; check base_url, and whether a proxy or a login page answers.",
            "json",
        )
    return invalid(f"the response ({len(body)} bytes) is not JSON, or is incomplete.", "json")


# In C: an answer may have thousands of items.
_index_of: Final = attrgetter("index")
_embedding_of: Final = attrgetter("embedding")


def _indices(items: Sequence[_Item]) -> NDArray[np.int64] | None:
    """The position of each vector's text; None where the vectors are in the order of the texts."""
    import numpy as np

    indices = list(map(_index_of, items))
    # One comparison in C instead of a look at each index, as nearly all responses are in order.
    if indices == list(range(len(indices))):
        return in_order(len(indices))
    # Of one vector the text is known, and a server that numbers none keeps their order.
    if len(indices) == 1 or indices.count(None) == len(indices):
        return None
    try:
        # Not strict: some servers number in text, or with a decimal point.
        numbers = msgspec.convert(indices, list[int | None], strict=False)
        if None in numbers:
            _number_the_last(numbers)
        return np.array(numbers, dtype=np.int64)
    except (msgspec.ValidationError, OverflowError):
        raise invalid("an index of the response is no whole number of 64 bits.", "index") from None


def _number_the_last(numbers: list[int | None]) -> None:
    """Give the one vector without a number the only number that is left; Protocol Buffers leave out 0."""
    left = set(range(len(numbers))).difference(numbers)
    # A vector under a guessed index would belong to another text.
    if len(left) > 1:
        raise invalid("some items of the response have no index, so their texts are unknown.", "index")
    numbers[numbers.index(None)] = left.pop()


def read_usage(value: object) -> Usage | None:
    """Read a ``usage`` object leniently: None unless it holds plausible counts."""
    if not isinstance(value, dict):
        return None
    # As `count` reads them, but for every response, and so without a call for each.
    told = {name: n for name, n in value.items() if type(n) is int and 0 <= n <= MAX_TOKENS}
    total = told.get("total_tokens", NOT_TOLD)
    prompt = told.get("prompt_tokens", NOT_TOLD)
    completion = told.get("completion_tokens", NOT_TOLD)
    if total is NOT_TOLD and prompt is NOT_TOLD:
        # Some gateways tell the input in another event of the stream.
        return Usage(completion_tokens=completion) if completion else None
    if prompt is NOT_TOLD:
        prompt = max(0, total - completion)
    if total is NOT_TOLD:
        total = prompt + completion
    if value.keys() <= _BASIC_KEYS:
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=_detail(value, "cached_tokens", *_PROMPT_DETAILS)
        or told.get("num_cached_tokens", NOT_TOLD),
        reasoning_tokens=_detail(value, "reasoning_tokens", "completion_tokens_details"),
    )


_BASIC_KEYS: Final = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_PROMPT_DETAILS: Final = ("prompt_tokens_details", "prompt_token_details")
"""Servers use both spellings, some of them in one response."""


def _detail(usage: dict[str, Any], name: str, *groups: str) -> int:
    counts = (count(group.get(name)) for key in groups if isinstance(group := usage.get(key), dict))
    return max(counts, default=NOT_TOLD)


# Lists of numbers: cut out of the body before anything parses it.
#
# They are nearly all of its bytes, and a JSON parser would read them only to find where they end. Numbers contain no
# brackets, so a search for brackets finds the ends; the rest is short. Reading each list into a buffer then takes
# 0.8 ns per byte, half of what splitting with a JSON parser and then reading took.

Span = tuple[int, int]
_LARGE_BODY: Final = 8 << 20
_BLOCK_BYTES: Final = 8 << 20
"""Bytes of lists that a large body converts to float32 in one step. numpy releases the GIL for each conversion; with one
for every list, a few microseconds long, other threads failed to get the GIL for up to 70 ms."""
_MAX_FIRST_OFFSET: Final = 1024
"""Bytes between the list of items and the first list of numbers; a body without one there has another form."""


def cut_lists(body: bytes) -> tuple[bytes, list[Span]] | None:
    """Cut the lists of numbers out of a body.

    Args:
        body: any bytes; usually JSON.

    Returns:
        The body with ``[]`` in place of each list inside the outermost one, and the start and end of each list,
        brackets included. None if there are no such lists, or if they are nested. A bracket inside a string
        yields one list too many, so the caller compares their number with the number of items.
    """
    outer = body.find(b"[")
    start = body.find(b"[", outer + 1, outer + 1 + _MAX_FIRST_OFFSET) if outer >= 0 else -1
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
    """Read lists of numbers into the rows of one array.

    Args:
        body: the response body.
        spans: at least one, as `cut_lists` returns them.

    Returns:
        float32, shape (len(spans), d). None if a list holds anything but numbers, or has another length.
    """
    import numpy as np
    import simdjson

    parse = simdjson.Parser().parse

    def read(span: Span) -> memoryview:
        # One expression: the parser refuses new input while a value of the last one is still referenced.
        return memoryview(parse(body[span[0] : span[1]]).as_buffer(of_type="d"))  # type: ignore[union-attr] # a list

    count, (start, end) = len(spans), spans[0]
    block = 1 if len(body) < _LARGE_BODY else min(count, max(1, _BLOCK_BYTES // (end - start)))
    try:
        lists: Iterator[memoryview] = map(read, spans)
        first = next(lists)
        lists, size = chain((first,), lists), first.nbytes
        rows = np.empty((count, size // 8), np.float32)
        wide = np.empty((block, size // 8), np.float64)
        space = wide.data.cast("B")
        # A number beyond float32 becomes infinity, which the check for finite numbers reports; no warning is
        # due.
        with np.errstate(over="ignore"):
            for begin in range(0, count, block):
                filled = min(block, count - begin)
                for at in range(0, filled * size, size):
                    # Raises ValueError for a list of another length.
                    space[at : at + size] = next(lists)
                rows[begin : begin + filled] = wide[:filled]
    except (ValueError, TypeError, RuntimeError):
        return None
    return rows


# Raw JSON values, base64 or lists, into the rows of one float32 array.

# Bytes in the wrong order put the exponent's bits anywhere: magnitudes near 1 become huge or tiny.
_MAX_MAGNITUDE: Final = 1e18
_MIN_MAGNITUDE: Final = 1e-18
_MIN_SQUARED_NORM: Final = 1e-30
_MAX_SQUARED_NORM: Final = 1e30
_MAX_NORM_SIZE: Final = 8_192
_QUOTE: Final = 0x22
_BRACKET: Final = 0x5B


def rows_from_raw(raws: Sequence[msgspec.Raw]) -> NDArray[np.float32]:
    """Decode vectors that a typed decode left as raw JSON.

    Args:
        raws: base64 strings (little-endian float32) or flat lists of numbers.

    Returns:
        float32, shape (len(raws), dimensions), C-contiguous; (0, 0) for no vectors.

    Raises:
        InvalidResponse: a vector is neither, or lengths differ.
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
    """Decode the vectors from ``start`` on, one by one; ``rows`` holds the ones before."""
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
            raise invalid(
                f"vector {number} of the response has {row.size} numbers, vector 0 has {rows.shape[1]}.",
                "dimensions",
            )
        rows[number] = row
    return rows


def _plain_base64(raws: Sequence[msgspec.Raw]) -> tuple[NDArray[np.float32] | None, int]:
    """Decode base64 into rows up to the first vector that is not base64; return the rows and their number."""
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
            # Raises ValueError for a vector of another length, too.
            space[size * done : size * (done + 1)] = data
    except ValueError:
        return rows, done
    return rows, len(raws)


def check_byte_order(row: NDArray[np.floating[Any]]) -> None:
    """Refuse magnitudes that no embedding has: they are big-endian bytes read as little-endian.

    One row is enough, because a server does not change its byte order within a response.
    """
    import numpy as np

    if row.size <= _MAX_NORM_SIZE and _MIN_SQUARED_NORM < np.vdot(row, row) < _MAX_SQUARED_NORM:
        # The squared norm bounds the largest number: one pass over the row instead of three.
        return
    largest = float(np.abs(row).max(initial=0.0))
    # Another check reports NaN and infinity, with the position of the vector.
    if not np.isfinite(largest):
        return
    if largest > _MAX_MAGNITUDE or 0.0 < largest < _MIN_MAGNITUDE:
        raise invalid(
            "the numbers of the response look like big-endian bytes; expected little-endian.", "base64"
        )


class _RowReader:
    """Reads vectors one by one, with one parser and one buffer for all."""

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
        raise invalid(f"vector {number} of the response is neither base64 nor a list.", "type")

    def _from_base64(self, view: memoryview, number: int) -> NDArray[np.floating[Any]]:
        text = bytes(view[1:-1])
        # JSON may escape a slash as \\/.
        if b"\\" in text:
            text = msgspec.json.decode(view, type=str).encode()
        try:
            data = self._unbase64(text, validate=True)
        except ValueError:
            raise invalid(f"vector {number} of the response is not base64.", "base64") from None
        if len(data) % 4:
            raise invalid(
                f"vector {number} of the response has {len(data)} bytes, not a multiple of 4.",
                "base64",
            )
        return self._np.frombuffer(data, dtype="<f4")

    def _from_list(self, text: bytes, number: int) -> NDArray[np.floating[Any]]:
        # The parser's buffer flattens nested lists, so they are refused here.
        if text.count(b"[") != 1:
            raise invalid(f"vector {number} of the response holds a value that is not a number.", "type")
        try:
            values: Any = self._parser.parse(text)
            numbers = self._np.frombuffer(values.as_buffer(of_type="d"), dtype=self._np.float64)
        except (ValueError, TypeError, RuntimeError) as error:
            reason = "non_finite" if "NUMBER_ERROR" in str(error) else "type"
            raise invalid(
                f"vector {number} of the response holds a value that is not a finite number.", reason
            ) from None
        with self._np.errstate(over="ignore"):
            return numbers.astype(self._np.float32)
