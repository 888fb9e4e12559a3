"""A simulated store of shared limits: for tests of several clients, and as a model for implementers of a real store.

::

    store = SimulatedStore(clock, delay_s=(0.001, 0.02), loss=0.01)
    clients = [llmopt.AsyncClient(config, shared=store.connect(), clock=clock) for _ in range(4)]
    store.stop()      # connections are refused
    store.start(keep=False)      # it is back, and has forgotten everything

Its algorithm is that of `SimulatedStore.reserve`: a token bucket for each quantity whose level may fall below 0, which is
the same as GCRA (ITU-T I.371) with its theoretical arrival time in place of the level. A real store does this in
one script on the server, by the server's clock.

No network, and no clock but the one that is passed in; a delay is a sleep on it. All connections of a store share its state,
without a lock: use them on one event loop, or in threads that take turns. Random numbers are seeded.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Final, Literal

from attrs import define, field, frozen

from llmopt.policies.clock import Clock
from llmopt.shared.state import Reservation, SharedCost, SharedRate, SharedRates, SharedRecord
from llmopt.values.calls import Priority

_MEMBER_S: Final = 60.0
_SPARE_TTL_S: Final = 60.0


@define
class _Bucket:
    """The state of one quota: what a real store keeps in one hash."""

    levels: list[float]
    at: float
    total: list[float] = field(factory=lambda: [0.0, 0.0])
    paused_until: float = 0.0
    expires_at: float = 0.0
    members: dict[str, float] = field(factory=dict)


@frozen
class _Record:
    state: Mapping[str, str | float]
    version: int
    expires_at: float


class SimulatedStore:
    """The server that several clients reach.

    Args:
        clock: the time.
        delay_s: shortest and longest time of one way of a call, in seconds.
        loss: part of the calls that never return; half of these are lost before they take effect, half after.
        skew_s: how much the store's own clock is ahead. It must not matter.
        seed: of the random numbers.

    Attributes:
        calls: number of calls that reached the server, by method.
        down: "refuses" connections, or "hangs" without an answer; "" if it works.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        delay_s: tuple[float, float] = (0.0, 0.0),
        loss: float = 0.0,
        skew_s: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._clock: Final = clock
        self._delay_s: Final = delay_s
        self._loss: Final = loss
        self._skew_s: Final = skew_s
        self._random: Final = random.Random(seed)
        self._buckets: Final[dict[bytes, _Bucket]] = {}
        self._records: Final[dict[bytes, _Record]] = {}
        self._versions = 0
        self._connections = 0
        self.calls: Final[dict[str, int]] = {}
        self.down: Literal["", "refuses", "hangs"] = ""

    def connect(self) -> SimulatedConnection:
        """A connection of one client: an `llmopt.SharedState`."""
        self._connections += 1
        return SimulatedConnection(self, f"client-{self._connections}")

    def stop(self, *, hangs: bool = False) -> None:
        """Refuse all calls from now on, or with ``hangs`` never answer them."""
        self.down = "hangs" if hangs else "refuses"

    def start(self, *, keep: bool = True) -> None:
        """Answer again; without ``keep`` everything is forgotten."""
        self.down = ""
        if not keep:
            self._buckets.clear()
            self._records.clear()

    def now(self) -> float:
        """The store's own time."""
        return self._clock.now() + self._skew_s

    async def travel(self, method: str) -> None:
        """The way of a call to the server.

        Raises:
            ConnectionError: the server is down.
        """
        lost = self._random.random() < self._loss / 2
        await self._clock.sleep(self._random.uniform(*self._delay_s))
        if self.down == "refuses":
            raise ConnectionError("the simulated store is down")
        if self.down or lost:
            await asyncio.Event().wait()
        self.calls[method] = self.calls.get(method, 0) + 1

    async def travel_back(self) -> None:
        """The way of the answer."""
        lost = self._random.random() < self._loss / 2
        await self._clock.sleep(self._random.uniform(*self._delay_s))
        if lost or self.down:
            await asyncio.Event().wait()

    # What a real store does in one atomic step each

    def reserve(
        self,
        member: str,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        max_ahead_s: float,
    ) -> Reservation:
        """See `llmopt.SharedState.reserve`."""
        now, limits = self.now(), (rates.requests, rates.tokens)
        bucket = self._bucket(quota, limits)
        bucket.members[member] = now
        clients = sum(seen > now - _MEMBER_S for seen in bucket.members.values())
        pause = max(0.0, bucket.paused_until - now)
        total = SharedCost(*bucket.total)
        if pause:
            return Reservation(delay_s=pause, pause_s=pause, clients=clients, total=total)
        wait = 0.0
        for cost in (want, least):
            amounts = cost.requests, cost.tokens
            waits = (
                (amount - level) / limit.per_second
                for amount, level, limit in zip(amounts, bucket.levels, limits, strict=True)
                if limit is not None
            )
            wait = max(0.0, max(waits, default=0.0))
            if wait <= max_ahead_s:
                for i, amount in enumerate(amounts):
                    bucket.levels[i] -= amount
                    bucket.total[i] += amount
                bucket.expires_at = now + wait + _SPARE_TTL_S + _time_to_full(bucket, limits)
                return Reservation(
                    granted=cost, delay_s=wait, clients=clients, total=SharedCost(*bucket.total)
                )
        return Reservation(delay_s=wait - max_ahead_s, clients=clients, total=total)

    def refund(self, quota: bytes, cost: SharedCost, rates: SharedRates) -> None:
        """See `llmopt.SharedState.refund`."""
        limits = rates.requests, rates.tokens
        bucket = self._bucket(quota, limits)
        for i, amount in enumerate((cost.requests, cost.tokens)):
            bucket.levels[i] = self.capped(bucket.levels[i] + amount, limits[i])

    def pause(self, quota: bytes, seconds: float) -> None:
        """See `llmopt.SharedState.pause`."""
        bucket = self._bucket(quota, (None, None))
        bucket.paused_until = max(bucket.paused_until, self.now() + seconds)
        bucket.expires_at = max(bucket.expires_at, bucket.paused_until + _SPARE_TTL_S)

    def publish(self, name: bytes, state: Mapping[str, str | float], ttl_s: float) -> None:
        """See `llmopt.SharedState.publish`."""
        self._versions += 1
        self._records[name] = _Record(dict(state), self._versions, self.now() + ttl_s)

    def read(self, name: bytes) -> SharedRecord | None:
        """See `llmopt.SharedState.read`."""
        record = self._records.get(name)
        if record is None or record.expires_at <= self.now():
            return None
        return SharedRecord(state=record.state, version=record.version, left_s=record.expires_at - self.now())

    @staticmethod
    def capped(level: float, limit: SharedRate | None) -> float:
        """A bucket never holds more than its burst."""
        return min(level, _burst(limit))

    def _bucket(self, quota: bytes, limits: tuple[SharedRate | None, SharedRate | None]) -> _Bucket:
        """The bucket of a quota, filled up to now."""
        now = self.now()
        bucket = self._buckets.get(quota)
        if bucket is None or bucket.expires_at <= now:
            bucket = self._buckets[quota] = _Bucket([_burst(limit) for limit in limits], now)
            bucket.expires_at = now + _SPARE_TTL_S
        for i, limit in enumerate(limits):
            if limit is not None:
                filled = bucket.levels[i] + (now - bucket.at) * limit.per_second
                bucket.levels[i] = self.capped(filled, limit)
        if limits != (None, None):
            bucket.at = now
        return bucket


def _burst(limit: SharedRate | None) -> float:
    return 0.0 if limit is None else limit.burst


def _time_to_full(bucket: _Bucket, limits: tuple[SharedRate | None, SharedRate | None]) -> float:
    return max(
        (limit.burst - level) / limit.per_second if limit is not None else 0.0
        for level, limit in zip(bucket.levels, limits, strict=True)
    )


class SimulatedConnection:
    """What one client has of a `SimulatedStore`; make it with `SimulatedStore.connect`.

    Args:
        store: the server.
        member: a name of its own.
    """

    def __init__(self, store: SimulatedStore, member: str) -> None:
        self._store: Final = store
        self._member: Final = member

    async def reserve(
        self,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        *,
        max_ahead_s: float,
        priority: Priority,  # noqa: ARG002 - both priorities wait in one queue here
    ) -> Reservation:
        """See `llmopt.SharedState.reserve`."""
        await self._store.travel("reserve")
        answer = self._store.reserve(self._member, quota, want, least, rates, max_ahead_s)
        await self._store.travel_back()
        return answer

    async def refund(self, quota: bytes, cost: SharedCost, rates: SharedRates) -> None:
        """See `llmopt.SharedState.refund`."""
        await self._store.travel("refund")
        self._store.refund(quota, cost, rates)
        await self._store.travel_back()

    async def pause(self, quota: bytes, seconds: float) -> None:
        """See `llmopt.SharedState.pause`."""
        await self._store.travel("pause")
        self._store.pause(quota, seconds)
        await self._store.travel_back()

    async def publish(self, name: bytes, state: Mapping[str, str | float], ttl_s: float) -> None:
        """See `llmopt.SharedState.publish`."""
        await self._store.travel("publish")
        self._store.publish(name, state, ttl_s)
        await self._store.travel_back()

    async def read(self, name: bytes) -> SharedRecord | None:
        """See `llmopt.SharedState.read`."""
        await self._store.travel("read")
        record = self._store.read(name)
        await self._store.travel_back()
        return record

    async def aclose(self) -> None:
        """Nothing to close."""
