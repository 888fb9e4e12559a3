"""Which core a client and which core its server runs on, so that neither takes time from the other.

Without `os.sched_setaffinity` (macOS, Windows) and on a machine with one core nothing is pinned. Reads /proc and /sys.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

_SIBLINGS: Final = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def client_and_server_cores() -> tuple[int, int] | None:
    """Return two cores that this process may use, None if there are not two.

    Two hardware threads of one physical core share its caches and units, so the second is avoided where there is another.
    """
    if sys.platform != "linux":
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return None
    client, *others = cores
    physical = _siblings(client)
    return client, next((core for core in others if _siblings(core) != physical), others[0])


def _siblings(core: int) -> str:
    try:
        return Path(_SIBLINGS.format(core)).read_text()
    except OSError:
        return str(core)


def pin(core: int | None) -> None:
    """Keep this process on a core, with the threads that it has already; its later threads inherit it."""
    if core is None or sys.platform != "linux":
        return
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def allow_many_sockets() -> None:
    """Raise the limit of open files as far as it may be raised: thousands of connections need one each."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
