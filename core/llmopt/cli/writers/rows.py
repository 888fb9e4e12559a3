"""What a writer is given: a stretch of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@frozen(kw_only=True, eq=False)
class Rows:
    """Results that follow each other.

    Attributes:
        start: index of the first one.
        lines: for each the number of its line in the input.
        vectors: float32, shape (rows, dimensions), (rows, 0) when all failed; a failed row is NaN.
        errors: the sentence of each failed row, by its position here.
        texts: the texts, where they are written too.
    """

    start: int
    lines: Sequence[int]
    vectors: NDArray[np.float32] = field(repr=False)
    errors: Mapping[int, str] = field(factory=dict)
    texts: Sequence[str] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def dimensions(self) -> int:
        """Numbers in a vector, 0 when all rows failed."""
        return int(self.vectors.shape[1])
