"""Sizes of long tests: a part for every change, all of it at night.

``LLMOPT_TESTS=nightly python -m pytest`` runs every offset, seed and example; `.ci/nightly` sets it.
"""

from __future__ import annotations

import os
from typing import Final

import pytest

NIGHTLY: Final = os.environ.get("LLMOPT_TESTS") == "nightly"
nightly_only: Final = pytest.mark.skipif(
    not NIGHTLY, reason="runs at night; a shorter test proves the same in every run"
)


def scaled(quick: int, nightly: int) -> int:
    """Select a number of calls, seeds or examples, or the distance between two offsets."""
    return nightly if NIGHTLY else quick
