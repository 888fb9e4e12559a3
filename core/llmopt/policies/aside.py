"""Work that takes long, done in a thread of its own while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar, TypeVarTuple, Unpack

R = TypeVar("R")
_Args = TypeVarTuple("_Args")


async def aside(function: Callable[[Unpack[_Args]], R], *args: *_Args) -> R:
    """What a function gives, called in a thread that is there for this alone.

    Not in the loop's own executor, as `asyncio.to_thread`: that is the program's, which may have filled it for
    minutes. A thread costs a tenth of a millisecond, a part of what it is there for. Who is cancelled does not wait for it.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix="llmopt")
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, copy_context().run, function, *args)
    finally:
        executor.shutdown(wait=False)
