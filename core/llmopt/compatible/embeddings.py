"""Embeddings in the OpenAI-compatible dialect: the request body, and the response as one float32 array.

No Python object is made for a number. The texts of the vectors are cut out of the body before anything parses it. Base64
of all vectors is decoded in one step, into the array's own memory; lists of numbers are read by simdjson into a
buffer, several at a time. Anything unusual goes through a slower path that reads vector by vector and can say which one
is wrong. Neither library releases the GIL, so that a second thread would not decode any faster.

No I/O and no clock. numpy, simdjson and pybase64 are imported at first use. The engine calls the hook
`parse_embeddings` on the event loop, for large responses in a worker thread. Nothing that changes is shared; responses
in order share the read-only indices that `in_order` caches for the process.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
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
    if (fast := _from_cuts(body)) is not None:
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


def _from_cuts(body: bytes) -> EmbeddedRows | None:
    """The fast path; None if the body needs the other one, which can say what is wrong with it."""
    cut, left, read = _cut_strings(body), _CUT_STRING, _rows_of_base64
    if cut is None:
        cut, left, read = cut_lists(body), _CUT_LIST, rows_of_lists
    if cut is None:
        return None
    rest, texts = cut
    try:
        decoded = _decoder.decode(rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    items = decoded.data or ()
    # A bracket in a string, or a vector in another form: the slow path reads such a body correctly.
    if decoded.error or list(map(_embedding_of, items)) != [left] * len(texts):
        return None
    vectors = read(texts)
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


# Vectors: cut out of the body before anything parses it.
#
# They are nearly all of its bytes, and a JSON parser would read them only to find where they end. Neither base64 contains
# quotes nor numbers brackets, so a search for those finds the ends; the rest is short.

_LARGE_BODY: Final = 8 << 20
"""Bytes. In a larger body, lists are converted to float32 in blocks of this size, not one by one: numpy releases the GIL for
each conversion, and with many short ones other threads failed to get it for up to 70 ms."""
_GROUP_BYTES: Final = 96 << 10
_SHORT_LIST: Final = 12 << 10
"""Bytes. Lists shorter than this are parsed in groups: 512 of 8 kB take 7.8 ms instead of 8.4. Groups of 512 kB take as long
as single lists, because the parser's tape leaves the processor's cache; longer lists gain nothing."""
_MAX_FIRST_OFFSET: Final = 1024
"""Bytes before the first vector, from the list of items on; a body without one there has another form."""
_STRING_START: Final = re.compile(rb'"embedding"\s*:\s*"')
_BEFORE_KEY: Final = b"{, \t\r\n"
"""One of these is before a key. Where a string ends or holds a quote, one of them cannot be before it in any JSON."""
_CUT_STRING: Final = msgspec.Raw(b'"*"')
_CUT_LIST: Final = msgspec.Raw(b"[]")
_Cut = tuple[bytes, list[memoryview]]


def _cut_strings(body: bytes) -> _Cut | None:
    """Cut the strings in ``embedding`` out of a body, with ``*`` in their place.

    What was cut may be no base64, or be of another object, so the caller decodes it and looks for each ``"*"`` in the items.
    None if there is none at the beginning, or if another value is ``"*"``.
    """
    first = _STRING_START.search(body, 0, _MAX_FIRST_OFFSET)
    if first is None or body[first.start() - 1] not in _BEFORE_KEY:
        return None
    # A server writes all its items alike. One that is written in another way stays in the rest.
    cut = _cut(body, first.end(), body[first.start() - 1 : first.end()], b'"', b"*")
    return cut if cut is not None and cut[0].count(b'"*"') == len(cut[1]) else None


def cut_lists(body: bytes) -> _Cut | None:
    """Cut the lists of numbers out of a body.

    Args:
        body: any bytes; usually JSON.

    Returns:
        The body with ``[]`` in place of each list inside the outermost one, and the text between the brackets of each
        list. None if there are no such lists. A bracket inside a string yields one list too many, so the caller compares
        their number with the number of items. A list in a list is cut at its first end, so that `rows_of_lists` cannot
        read it.
    """
    outer = body.find(b"[")
    start = body.find(b"[", outer + 1, outer + 1 + _MAX_FIRST_OFFSET) if outer >= 0 else -1
    return _cut(body, start + 1, b"[", b"]", b"") if start >= 0 else None


def _cut(body: bytes, start: int, before: bytes, after: bytes, left: bytes) -> _Cut | None:
    view, rest, texts, at = memoryview(body), [], [], 0
    while start >= len(before):
        end = body.find(after, start)
        if end < 0:
            return None
        rest.append(body[at:start])
        texts.append(view[start:end])
        at, start = end, body.find(before, end) + len(before)
    rest.append(body[at:])
    return left.join(rest), texts


def rows_of_lists(texts: Sequence[memoryview]) -> NDArray[np.float32] | None:
    """Read lists of numbers into the rows of one array.

    Args:
        texts: what is between the brackets of each list; at least one.

    Returns:
        float32, shape (len(texts), d). None if a list holds anything but numbers, or has another length.
    """
    import numpy as np
    import simdjson

    parse, count, length, widths = simdjson.Parser().parse, len(texts), len(texts[0]) + 1, set[int]()
    block = max(1, (_GROUP_BYTES if count * length < _LARGE_BODY else _LARGE_BODY) // length)
    group = _GROUP_BYTES // length if length < _SHORT_LIST else 1

    def read(begin: int, end: int) -> memoryview:
        # A list inside one of these would leave a bracket open.
        lists: Any = parse(b"[[%b]]" % b"],[".join(texts[begin:end]))
        widths.update(map(len, lists))
        return memoryview(lists.as_buffer(of_type="d"))

    rows = None
    try:
        # A number beyond float32 becomes infinity, which the check for finite numbers reports; no warning is due.
        with np.errstate(over="ignore"):
            for begin in range(0, count, block):
                end = min(begin + block, count)
                numbers = b"".join([read(at, min(at + group, end)) for at in range(begin, end, group)])
                if len(widths) > 1:
                    return None
                if rows is None:
                    rows = np.empty((count, *widths), np.float32)
                rows[begin:end].reshape(-1)[:] = np.frombuffer(numbers)
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
_PADDING: Final = ord("=")


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
    texts, rows = list(map(bytes, raws)), None
    starts, inner = {text[:1] for text in texts}, [memoryview(text)[1:-1] for text in texts]
    if starts == {b'"'}:
        rows = _rows_of_base64(inner)
    elif starts == {b"["} and all(text.find(b"[", 1) < 0 for text in texts):
        rows = rows_of_lists(inner)
    if rows is None:
        rows = _any_form(texts)
    check_byte_order(rows[0])
    return rows


def _any_form(texts: Sequence[bytes]) -> NDArray[np.float32]:
    """Decode vectors one by one."""
    import numpy as np

    rows = np.empty((len(texts), _vector(texts[0], 0).size), dtype=np.float32)
    for number, text in enumerate(texts):
        row = _vector(text, number)
        if row.size != rows.shape[1]:
            raise invalid(
                f"vector {number} of the response has {row.size} numbers, vector 0 has {rows.shape[1]}.",
                "dimensions",
            )
        rows[number] = row
    return rows


def _rows_of_base64(texts: Sequence[memoryview]) -> NDArray[np.float32] | None:
    """Decode vectors in base64 to the rows of one array; None unless all are base64 of the same length."""
    import numpy as np
    import pybase64

    decode, count, length = pybase64.b64decode, len(texts), len(texts[0])
    try:
        if count == 1:
            data = pybase64.b64decode_as_bytearray(texts[0], validate=True)
            size = len(data)
        elif {*map(len, texts)} != {length}:
            return None
        elif length and texts[0][-1] != _PADDING and count * length < _LARGE_BODY:
            # Without padding, base64 goes on with the next text: one step, in half of the time, straight into the array's
            # memory. A large body is not copied for that.
            data = pybase64.b64decode_as_bytearray(b"".join(texts), validate=True)
            # Of no text more than this, and so of all.
            size = length // 4 * 3
        else:
            size = len(decode(texts[0], validate=True))
            data = bytearray(size * count)
            space = memoryview(data)
            for number, text in enumerate(texts):
                # Raises ValueError for a vector of another size, too.
                space[number * size : (number + 1) * size] = decode(text, validate=True)
    except ValueError:
        return None
    if not size or size % 4 or len(data) != size * count or sys.byteorder != "little":
        return None
    return np.ndarray((count, size // 4), np.float32, data)


def check_byte_order(row: NDArray[np.floating[Any]]) -> None:
    """Refuse magnitudes that no embedding has: they are big-endian bytes read as little-endian.

    One row is enough, because a server does not change its byte order within a response.
    """
    if row.size <= _MAX_NORM_SIZE and _MIN_SQUARED_NORM < row.dot(row) < _MAX_SQUARED_NORM:
        # The squared norm bounds the largest number: one pass over the row instead of three.
        return
    import numpy as np

    largest = float(np.abs(row).max(initial=0.0))
    # Another check reports NaN and infinity, with the position of the vector.
    if not np.isfinite(largest):
        return
    if largest > _MAX_MAGNITUDE or 0.0 < largest < _MIN_MAGNITUDE:
        raise invalid(
            "the numbers of the response look like big-endian bytes; expected little-endian.", "base64"
        )


def _vector(text: bytes, number: int) -> NDArray[np.floating[Any]]:
    if text[:1] == b'"':
        return _from_base64(text, number)
    if text[:1] == b"[":
        return _from_list(text, number)
    raise invalid(f"vector {number} of the response is neither base64 nor a list.", "type")


def _from_base64(text: bytes, number: int) -> NDArray[np.floating[Any]]:
    import numpy as np
    from pybase64 import b64decode

    try:
        # JSON may escape a slash as \\/.
        escaped = b"\\" in text
        data = b64decode(msgspec.json.decode(text, type=str) if escaped else text[1:-1], validate=True)
    except ValueError:
        raise invalid(f"vector {number} of the response is not base64.", "base64") from None
    if len(data) % 4:
        raise invalid(
            f"vector {number} of the response has {len(data)} bytes, not a multiple of 4.", "base64"
        )
    return np.frombuffer(data, dtype="<f4")


def _from_list(text: bytes, number: int) -> NDArray[np.floating[Any]]:
    import numpy as np
    from simdjson import Parser

    # The parser's buffer flattens nested lists, so they are refused here.
    if text.count(b"[") != 1:
        raise invalid(f"vector {number} of the response holds a value that is not a number.", "type")
    try:
        values: Any = Parser().parse(text)
        numbers = np.frombuffer(values.as_buffer(of_type="d"))
    except (ValueError, TypeError, RuntimeError) as error:
        reason = "non_finite" if "NUMBER_ERROR" in str(error) else "type"
        said = f"vector {number} of the response holds a value that is not a finite number."
        raise invalid(said, reason) from None
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)
