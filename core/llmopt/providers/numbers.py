"""Lists of numbers in an answer, cut out before anything else looks at it.

They are nearly all of its bytes, and a parser of JSON would go through them only to find their ends. Numbers know no
brackets, so the ends are found by searching for those; what is left is short. Each list then goes through a parser
that fills a buffer: 0.8 ns a byte, where splitting and parsing took twice that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
