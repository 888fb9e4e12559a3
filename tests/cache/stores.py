"""Helpers of the cache tests: keys, items, and a disk store that is closed at the end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from llmopt.cache.disk import DiskStore
from llmopt.cache.store import CacheItem


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def item(
    number: int, value: bytes | None = None, *, group: str = "g", until: float | None = None
) -> CacheItem:
    return CacheItem(
        key=key(number),
        group=group,
        value=b"value %d" % number if value is None else value,
        expires_at=time.time() + 1000 if until is None else until,
    )


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[DiskStore]:
    store = DiskStore(folder, **options)
    try:
        yield store
    finally:
        await store.aclose()


async def works(folder: Path) -> bool:
    """Whether a second store reads what the first has written."""
    async with opened(folder) as store:
        await store.put([item(77)])
    async with opened(folder) as store:
        return await store.get([key(77)]) == [b"value 77"]
