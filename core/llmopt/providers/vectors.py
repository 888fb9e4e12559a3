"""Vectors as they stand in an answer, base64 or lists, as rows of one float32 array."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmopt.errors import InvalidResponse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
