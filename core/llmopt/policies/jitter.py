"""Random numbers for jitter: llmopt's own, and different ones in every process.

Not the ``random`` module's functions: an application that seeds them must find its own sequence
undisturbed. But like those they are seeded anew in a forked child, or parent and children, which
share a server, would also share every delay.
"""

from __future__ import annotations

import os
import random
from typing import Final
from weakref import WeakSet

_SOURCES: Final[WeakSet[random.Random]] = WeakSet()


def new_source() -> random.Random:
    """A source of random numbers, seeded by the system."""
    source = random.Random()
    _SOURCES.add(source)
    return source


def _reseed() -> None:
    for source in list(_SOURCES):
        source.seed()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed)
