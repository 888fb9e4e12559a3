"""The order in which an answer's rows stand."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@lru_cache(maxsize=32)
def in_order(count: int) -> NDArray[np.int64]:
    """0 to ``count`` - 1: one array for all answers of that size, which nobody can write to.

    Nearly every answer is in order, and who compares its indices sees by identity that they are.
    """
    import numpy as np

    indices = np.arange(count, dtype=np.int64)
    indices.flags.writeable = False
    return indices
