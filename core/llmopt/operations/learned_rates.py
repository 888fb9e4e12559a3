"""Learned rate limits, kept for the next process: what headers stated, and what was measured by 429s.

A process begins with what the one before it learned, and its first answers correct that (`llmopt.policies.quota`). Only
limits are kept, never how much of them is left. The key of a record names the credential by a keyed hash, because limits
are those of an account; where a function gives the credential, nothing is kept.

The cache store is awaited in a task of the event loop, so that no call waits for it; the store has a thread of its own.
The loops of several threads may share a `LearnedRates` without a lock: at worst two of them write the same. Age is
measured by the wall clock, and the time between two writes by the monotonic one.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import field, frozen

from llmopt.cache.store import CacheItem, SafeStore, read_record, write_record
from llmopt.engine.endpoint import LiveEndpoint
from llmopt.policies.clock import Now
from llmopt.policies.quota import LearnedLimits
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.tasks import TaskSet, require_asyncio
from llmopt.values.calls import Call

_SAVE_INTERVAL_S: Final = 10.0
"""A rate measured by 429s changes with each of them."""
_MAX_PER_MINUTE: Final = 1e9


_KIND: Final = b"LOB1"
"""The first four bytes of a record."""


@frozen
class SavedRecord:
    """One JSON object in a cache store, of what was learned.

    Attributes:
        store: where it is.
        key: its key there.
        group: entries that are cleared together.
        ttl_s: seconds until it expires.
        wall: the calendar's clock.
    """

    store: SafeStore
    key: bytes = field(repr=False)
    group: str
    ttl_s: float
    wall: Callable[[], float]

    async def read(self) -> Mapping[str, Any]:
        """The object; empty if there is none, or another version wrote something else."""
        (value,) = await self.store.get([self.key])
        record = None if value is None else read_record(_KIND, self.key, value)
        # Expired entries may still be in the store.
        if record is None or not 0 <= self.wall() - record.created < self.ttl_s:
            return {}
        try:
            saved = msgspec.json.decode(record.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        return saved if isinstance(saved, Mapping) else {}

    async def write(self, state: Mapping[str, Any]) -> None:
        """Replace the object. Of two processes the later one wins."""
        now = self.wall()
        value = write_record(_KIND, self.key, now, b"", msgspec.json.encode(state))
        item = CacheItem(key=self.key, group=self.group, value=value, expires_at=now + self.ttl_s)
        await self.store.put([item])


class LearnedRates:
    """The learned rate limits of one model of a provider, by endpoint.

    Args:
        endpoints: gives the endpoints of the provider.
        open_record: gives the record; None where nothing is kept.
        now: the monotonic clock.
    """

    def __init__(
        self,
        endpoints: Callable[[], Sequence[LiveEndpoint]],
        open_record: Callable[[], Awaitable[SavedRecord | None]],
        now: Now,
    ) -> None:
        self._endpoints: Final = endpoints
        self._open_record: Final = open_record
        self._now: Final = now
        self._tasks: Final = TaskSet()
        self._call: Call | None = None
        self._saved: dict[str, list[float | None]] = {}
        self._saved_at = -math.inf

    def restore_soon(self, call: Call) -> None:
        """Before the first request of a call: begin to read what an earlier process learned."""
        if self._call is None:
            require_asyncio()
            self._call = call
            self._tasks.start(self._restore(call))

    def save_soon(self) -> None:
        """Begin to save what was learned, unless that was done just now; then `aclose` does it."""
        now = self._now()
        if self._call is not None and now >= self._saved_at + _SAVE_INTERVAL_S:
            self._saved_at = now
            self._tasks.start(self._save(self._call))

    async def aclose(self) -> None:
        """End what runs on this event loop, and save what is not saved yet."""
        await self._tasks.aclose()
        if self._call is not None:
            await self._save(self._call)

    async def _restore(self, call: Call) -> None:
        record = await self._open_record()
        if record is None:
            return
        saved = await record.read()
        for name, limiter in self._limiters(call):
            learned = _limits(saved.get(name))
            if learned is not None:
                limiter.restore(learned)
                self._saved[name] = list(learned)

    async def _save(self, call: Call) -> None:
        record = await self._open_record()
        if record is None:
            return
        learned = dict(self._saved)
        for name, limiter in self._limiters(call):
            if any(limiter.learned):
                learned[name] = list(limiter.learned)
        if learned != self._saved:
            self._saved = learned
            await record.write(learned)

    def _limiters(self, call: Call) -> Iterator[tuple[str, RateLimiter]]:
        """The limiters of the endpoints, by the number of the endpoint."""
        for endpoint in self._endpoints():
            limiter = endpoint.policies.rate_limiter(call)
            if isinstance(limiter, RateLimiter):
                yield str(endpoint.config.index), limiter


def _limits(saved: object) -> LearnedLimits | None:
    """The limits of one endpoint; None if they are not what this version writes.

    A later version may append to them.
    """
    if not isinstance(saved, list) or len(saved) < len(LearnedLimits._fields):
        return None
    numbers = saved[: len(LearnedLimits._fields)]
    valid = (each is None or (type(each) in (int, float) and 0 < each <= _MAX_PER_MINUTE) for each in numbers)
    return LearnedLimits(*numbers) if all(valid) else None
