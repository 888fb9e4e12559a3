"""Read what a server sent, for plugins with a wire format of their own: each value in a line, and never in silence.

A parser takes whatever the server sends, which may be anything. A value of a wrong type is an `InvalidResponse` with
its name, because text that is dropped is an answer that is wrong; null and an absent key are the same. Counts alone are
lenient: an answer without a plausible usage is still an answer. The readers of the common dialect use these too.

Pure: no I/O, no clock, no state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.values.chat import ServerEvent
from llmopt.values.embeddings import NOT_TOLD
from llmopt.values.http import HttpResponse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["arguments", "as_type", "body", "count", "event", "invalid", "objects", "text", "vectors"]

_T = TypeVar("_T")
MAX_TOKENS: Final = 10**12
"""Larger counts are nonsense, and one of them would spoil all sums and the token estimator."""


def invalid(message: str, reason: str = "type") -> InvalidResponse:
    """The error for a response that cannot be read.

    Args:
        message: what is wrong, without a value of the response.
        reason: what is wrong in a word: "json", "type", "count", "dimensions", "index", "truncated".
    """
    return InvalidResponse(message, reason=reason, sent="yes")


def body(response: HttpResponse) -> dict[str, Any]:
    """The body of a response, which is a JSON object.

    Raises:
        InvalidResponse: it is not.
    """
    value = response.json
    if not isinstance(value, dict):
        raise invalid("the response is not a JSON object.", "json")
    return value


def event(sent: ServerEvent) -> dict[str, Any]:
    """The data of an event of a stream, or a line of it, which is a JSON object.

    Raises:
        InvalidResponse: it is not.
    """
    try:
        return msgspec.json.decode(sent.data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        said = f"an event of the stream ({len(sent.data)} characters) is not a JSON object."
        raise invalid(said, "json") from None


def as_type(value: object, kind: type[_T]) -> _T:
    """A value as a `msgspec.Struct`, or as any other type that msgspec converts to.

    Raises:
        InvalidResponse: it has another form; the message has the path and the types, and no value.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise invalid(f"the response has another form: {error}.") from None


def text(value: object, name: str) -> str:
    """Text; "" for null.

    Args:
        value: as it was sent.
        name: its key, for the message.

    Raises:
        InvalidResponse: it is neither.
    """
    if value is None:
        return ""
    if not isinstance(value, str):
        raise wrong_type(name)
    return value


def objects(value: object, name: str, *, optional: bool = False) -> Sequence[Mapping[str, Any]]:
    """A list of JSON objects.

    Args:
        value: as it was sent.
        name: its key, for the message.
        optional: whether null stands for an empty list.

    Raises:
        InvalidResponse: it is no list, or something else is in it.
    """
    if value is None and optional:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise wrong_type(name)
    return value


def count(value: object) -> int:
    """A count of tokens as `llmopt.Usage` takes it: "not told" where it is not plausible."""
    return value if type(value) is int and 0 <= value <= MAX_TOKENS else NOT_TOLD


def arguments(value: object) -> str:
    """The arguments of a tool call as JSON text; some servers send an object instead of text.

    Raises:
        InvalidResponse: it is neither.
    """
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else text(value, "arguments")


def vectors(rows: Sequence[object]) -> NDArray[np.float32]:
    """Lists of numbers as an array, a row for each; the core refuses what is not finite.

    `llmopt.compatible.rows_from_raw` is faster: it takes lists that nothing has parsed.

    Raises:
        InvalidResponse: there is no row, something else than a number is in one, or their lengths differ.
    """
    import numpy as np

    # A bool is an int for Python, and no number for JSON.
    if not rows or not all(isinstance(row, list) and {*map(type, row)} <= {int, float} for row in rows):
        raise invalid("the response holds no vectors of numbers.")
    try:
        with np.errstate(over="ignore"):
            return np.array(rows, dtype=np.float32).reshape(len(rows), -1)
    except (OverflowError, ValueError):
        said = "the vectors of the response differ in length, or hold a number that is too large."
        raise invalid(said, "dimensions") from None


def wrong_type(name: str) -> InvalidResponse:
    """The error for a value of a wrong type."""
    return invalid(f"`{name}` of the response has a wrong type.")
