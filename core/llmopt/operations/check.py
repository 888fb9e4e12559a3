"""A wrong answer must never become a shifted row: what every answer is held against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from llmopt.errors import InvalidResponse
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.order import in_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_FEW: Final = 8_192


def in_input_order(rows: EmbeddedRows, count: int, dimensions: int | None) -> NDArray[np.float32]:
    """The rows in the order of the texts.

    Args:
        rows: what the answer holds.
        count: texts in the request.
        dimensions: length a vector must have, None for any.

    Returns:
        float32, shape (count, d), C-contiguous.

    Raises:
        InvalidResponse: count, indices, type, length or finiteness are wrong; ``reason`` says which.
    """
    import numpy as np

    vectors = rows.vectors
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise _invalid(f"the plugin gave {vectors.dtype} vectors of {vectors.ndim} axes.", "type")
    if vectors.shape[0] != count:
        sent = "1 text was" if count == 1 else f"{count} texts were"
        raise _invalid(f"{sent} sent and {vectors.shape[0]} vectors came back.", "count")
    if vectors.shape[1] == 0:
        raise _invalid("the vectors of the answer are empty.", "dimensions")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise _invalid(
            f"the vectors of the answer have {vectors.shape[1]} numbers, expected {dimensions}.", "dimensions"
        )
    ordered = _ordered(vectors, rows.indices, count)
    if not _surely_finite(ordered):
        finite = np.isfinite(ordered)
        if not finite.all():
            bad = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise _invalid(f"vector {bad} of the answer holds a number that is not finite.", "non_finite")
    return np.ascontiguousarray(ordered)


def _surely_finite(vectors: NDArray[np.float32]) -> bool:
    """A quick look at few numbers: a sum of squares is finite only if all of them are."""
    import numpy as np

    if vectors.size > _FEW:
        return False
    flat = vectors.reshape(-1)
    return math.isfinite(np.vdot(flat, flat))


def _ordered(
    vectors: NDArray[np.float32], indices: NDArray[np.int64] | None, count: int
) -> NDArray[np.float32]:
    import numpy as np

    if indices is None:
        return vectors
    expected = in_order(count)
    if indices is expected:
        return vectors
    if indices.shape != (count,):
        raise _invalid(f"{count} texts were sent, {indices.size} indices came back.", "index")
    if np.array_equal(indices, expected):
        return vectors
    if not np.array_equal(np.sort(indices), expected):
        raise _invalid(f"the indices of the answer are not 0 to {count - 1}, each once.", "index")
    ordered = np.empty_like(vectors)
    ordered[indices] = vectors
    return ordered


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")
