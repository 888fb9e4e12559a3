"""What llmopt uses of the operating system and does not find on every one: forks, locks, owners, polling, signals.

The rest of the code calls these functions on every system; what happens where a part is missing is decided here. Importing
this touches nothing. `register_at_fork` changes the process, and the others do one system call each; none of them waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Final

_END_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")

NO_FOLLOW: Final[int] = getattr(os, "O_NOFOLLOW", 0)
"""The flag of ``os.open`` that refuses a symbolic link; nothing without `has_private_files`, which guards its use."""


def register_at_fork(
    after_in_child: Callable[[], object],
    *,
    before: Callable[[], object] = lambda: None,
    after_in_parent: Callable[[], object] = lambda: None,
) -> None:
    """`os.register_at_fork`; nothing where processes do not fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=after_in_parent, after_in_child=after_in_child)


def has_private_files() -> bool:
    """Whether files have owners and permissions, and can be locked: without them nothing is cached on disk."""
    try:
        import fcntl  # noqa: F401 - only whether it is there
    except ImportError:
        return False
    return hasattr(os, "geteuid")


def is_own(status: os.stat_result) -> bool:
    """Whether a file belongs to the user of this process. Needs `has_private_files`."""
    return status.st_uid == os.geteuid()


def try_lock(file: int) -> bool:
    """Lock an open file against other processes, unless one has locked it. Needs `has_private_files`.

    flock belongs to the open file, not to the process: it also excludes two stores of one process.
    """
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: int) -> None:
    """Undo `try_lock`."""
    import fcntl

    fcntl.flock(file, fcntl.LOCK_UN)


def readable_check(descriptor: int) -> Callable[[], object]:
    """Return a function whose result is true if the socket is readable now; it costs one system call."""
    import select

    if not hasattr(select, "poll"):  # Windows, where select takes any number
        return lambda: select.select([descriptor], [], [], 0)[0]
    # poll and not select: select fails for descriptors above 1023 (FD_SETSIZE).
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return partial(poll.poll, 0)


def end_signals() -> list[int]:
    """The signals that ask a program to end, as far as the system has them."""
    import signal

    return [getattr(signal, name) for name in _END_SIGNALS if hasattr(signal, name)]
