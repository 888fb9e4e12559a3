"""Waiting for something that another process does."""

from __future__ import annotations

import os
from collections.abc import Callable


def until(happened: Callable[[], object], alive: Callable[[], object]) -> None:
    """Look again and again, giving the processor to others, until it happened.

    Raises:
        AssertionError: whoever it was waited for is gone.
    """
    while not happened():
        assert alive()
        os.sched_yield()
