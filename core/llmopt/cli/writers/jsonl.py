"""A JSON object a line, for each text."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmopt.cli.writers.append import AppendFile
from llmopt.cli.writers.rows import Rows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DIGITS: Final = 9
"""So many tell any two float32 apart."""
_LARGEST_EXACT: Final = 22
"""Up to here a power of ten is a float64 without loss."""
_SMALLEST_EXPONENT: Final = -148
"""Of a float32, as frexp counts; the largest is 128."""


class JsonlWriter:
    """Writes ``{"index": ..., "line": ..., "embedding": [...]}``; a failed row has null and an "error".

    Args:
        path: of a file that is there.
    """

    def __init__(self, path: Path) -> None:
        self._file: Final = AppendFile(path)
        self._encoder: Final = msgspec.json.Encoder()

    def add(self, rows: Rows) -> None:
        """Write rows."""
        numbers = shortest(rows.vectors).tolist()
        # A list, because encode_lines leaks what a `map` gives it (msgspec 0.22).
        records = [_record(rows, position, each) for position, each in enumerate(numbers)]
        self._file.append(self._encoder.encode_lines(records))

    def finish(self) -> None:
        """All is written already."""
        self._file.close()

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


def _record(rows: Rows, position: int, numbers: list[float]) -> dict[str, Any]:
    error = rows.errors.get(position)
    record: dict[str, Any] = {
        "index": rows.start + position,
        "line": rows.lines[position],
        "embedding": numbers if error is None else None,
    }
    if rows.texts is not None:
        record["text"] = rows.texts[position]
    if error is not None:
        record["error"] = error
    return record


def shortest(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """The float64 of nine digits beside each float32: half as long to write, and the same float32 again.

    What is too small or too large for that, or not finite, stays as it is.
    """
    import numpy as np

    exact = vectors.astype(np.float64)
    _, exponents = np.frexp(exact)
    # Clipped, because what frexp counts for a number that is not finite is nowhere written.
    scales = np.take(np.array(_scales()), exponents - _SMALLEST_EXPONENT, mode="clip")
    # A whole number over an exact power of ten is rounded once, to the very float64 of that decimal.
    short = np.rint(exact * scales) / scales
    fits = np.isfinite(short)
    return short if fits.all() else np.where(fits, short, exact)


@cache
def _scales() -> list[float]:
    """For each binary exponent the power of ten that leaves nine digits or ten; NaN where none is exact."""
    powers = [_DIGITS - math.floor(each * math.log10(2)) for each in range(_SMALLEST_EXPONENT, 129)]
    return [10.0**power if 0 <= power <= _LARGEST_EXACT else math.nan for power in powers]
