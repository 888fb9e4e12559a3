"""Recognises that this process or machine is out of descriptors, memory, disk space, ports or threads.

Such an exception says nothing about the server: it becomes `OutOfResources`, which no circuit breaker counts, and loses
its traceback. Any other exception is left alone. No I/O, no awaiting, no clock and no state: it looks up the modules
that are loaded, and imports none.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from llmopt.errors import LLMOptError, OutOfResources

_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")
_MEMORY: Final = ("memory", "this process is out of memory; send smaller batches or fewer at once")
_THREADS: Final = ("threads", "no further thread can be started; raise `ulimit -u` or the memory limit")
_RESOURCES: Final[Mapping[int, tuple[str, str]]] = {
    errno.EMFILE: ("descriptors", "too many open files; raise `ulimit -n` or lower pool_size"),
    errno.ENFILE: ("descriptors", "too many open files on this machine"),
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: ("buffers", "no buffer space is left for sockets on this machine"),
    # For an address of IPv6, the system reports a machine without IPv6 in the same way.
    errno.EADDRNOTAVAIL: (
        "ports",
        "no local address or port is free; lower max_concurrency or keep connections",
    ),
    errno.ENOSPC: ("disk", "no space is left on the disk"),
    errno.EDQUOT: ("disk", "the disk quota is used up"),
}


def out_of_resources(
    error: BaseException, what: str = "the request could not be made"
) -> OutOfResources | None:
    """The error for an exception that is a lack of something on this machine, None for any other.

    Args:
        error: any exception.
        what: begins the message: what could not be done.
    """
    lacking = _lacking(error)
    if lacking is None:
        return None
    resource, reason = lacking
    failure = OutOfResources(f"{what}: {reason}.", resource=resource)
    # Without its traceback: the frames may hold headers and texts.
    failure.__cause__ = error.with_traceback(None)
    return failure


@contextmanager
def local_errors(what: str) -> Iterator[None]:
    """Raise `OutOfResources` for a lack of something in the block; ``what`` begins its message."""
    try:
        yield
    except Exception as error:
        if (failure := out_of_resources(error, what)) is None:
            raise
        raise failure from failure.__cause__


def as_llmopt_error(error: Exception) -> LLMOptError | None:
    """The error to raise for an exception of a request, None for one that is a bug."""
    return error if isinstance(error, LLMOptError) else out_of_resources(error)


def _lacking(error: BaseException) -> tuple[str, str] | None:
    if isinstance(error, MemoryError):
        return _MEMORY
    if _is_a(error, "socket", "gaierror") or _is_a(error, "ssl", "SSLError"):
        # Their numbers are not the system's.
        return None
    if isinstance(error, OSError):
        # An address that reached another machine says more than that IPv6 is missing here.
        rows = [_RESOURCES.get(number) for number in system_numbers(error)]
        return rows[0] if rows and all(rows) else None
    if isinstance(error, ImportError):
        # The loader of shared libraries reports the system's text, without its number.
        return next((row for number, row in _RESOURCES.items() if os.strerror(number) in str(error)), None)
    return _THREADS if isinstance(error, RuntimeError) and "start new thread" in str(error) else None


def system_numbers(error: OSError) -> list[int]:
    """The error's number; asyncio joins the errors of several addresses into one text ("Multiple exceptions: ...")."""
    return [int(text) for text in _ERRNO.findall(str(error))] if error.errno is None else [error.errno]


def _is_a(error: BaseException, module: str, name: str) -> bool:
    # Both modules are slow to import, and the client is made without them. Who raises such an error has loaded them.
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(error, kind)
