"""Whether this is the run at night, and the sizes of long tests. Without pytest, for programs that tests start."""

from __future__ import annotations

import os
from typing import Final

NIGHTLY: Final = os.environ.get("LLMOPT_TESTS") == "nightly"


def scaled(quick: int, nightly: int) -> int:
    """Select a number of calls, seeds or examples, or the distance between two offsets."""
    return nightly if NIGHTLY else quick
