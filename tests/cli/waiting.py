"""Waits for something that another process does."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Callable

_CHECK_EVERY_MS = 5


def until(happened: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    """Wait until something happened that a process does.

    Between two checks the test waits for the end of the process, which leaves the processor to it.

    Raises:
        AssertionError: the process ended first.
    """
    end = select.poll()
    descriptor = os.pidfd_open(process.pid)
    try:
        end.register(descriptor, select.POLLIN)
        while not happened():
            assert not end.poll(_CHECK_EVERY_MS) or happened(), "the process ended"
    finally:
        os.close(descriptor)
