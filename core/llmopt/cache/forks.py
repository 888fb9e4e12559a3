"""What must stand still while this process forks."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final, Protocol
from weakref import WeakSet


class Forked(Protocol):
    """Is told of a fork before and after it."""

    def before_fork(self) -> None:
        """Come to rest, and hold still."""

    def after_fork_in_parent(self) -> None:
        """Go on."""

    def after_fork_in_child(self) -> None:
        """Begin anew."""


_WATCHED: Final[WeakSet[Forked]] = WeakSet()
_RESTING: Final[list[Forked]] = []
"""Who was told of the fork that is under way: others may be made or collected meanwhile."""


def watch_forks(watched: Forked) -> None:
    """Have an object told of every fork as long as it lives."""
    _WATCHED.add(watched)


def _before() -> None:
    for each in list(_WATCHED):
        # Whatever goes wrong with one, the program must be able to fork.
        with suppress(Exception):
            each.before_fork()
            _RESTING.append(each)


def _in_parent() -> None:
    while _RESTING:
        _RESTING.pop().after_fork_in_parent()


def _in_child() -> None:
    while _RESTING:
        _RESTING.pop().after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
