"""Sizes of long tests: a part for every change, all of it at night.

``LLMOPT_TESTS=nightly python -m pytest`` runs every offset, seed and example; `.ci/nightly` sets it.
"""

from __future__ import annotations

import pytest

from tests.support.nightly import NIGHTLY, scaled

__all__ = ["NIGHTLY", "nightly_only", "scaled"]

nightly_only = pytest.mark.skipif(
    not NIGHTLY, reason="runs at night; a shorter test proves the same in every run"
)
