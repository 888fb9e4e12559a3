"""How one client shares limits, pauses and open circuits with other processes, through a `SharedState`.

A task of each quota asks the store for blocks while they are needed, so that no request waits for a round trip while a
block is left (`llmopt.shared.blocks` decides). It also sends the pauses that the provider has asked for, and reads once
a second what others have published: limits that headers stated, and circuits that opened. A circuit that opened
elsewhere lets one probe through here, and closes again if the probes succeed: the fault may be that process's own.

The store is awaited in tasks of the running event loop, for 0.25 s at most. After two failures in a row it gets one
call a second. A `Sharing` belongs to one client, whose event loops may run in several threads; each quota is changed
under the lock of its rate limiter, the count of failures without one: a lost count costs one more call. The clock is
passed in. A random number in the name of this process tells it from others.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from attrs import define

from llmopt import errors
from llmopt.log import LIMITS, WARNING
from llmopt.policies.clock import Clock
from llmopt.policies.quota import LearnedLimits
from llmopt.policies.tasks import TaskSet, running_loop
from llmopt.shared.blocks import IDLE_S, Block, SharedBlocks, Waiting
from llmopt.shared.limiter import SharedRateLimiter
from llmopt.shared.state import Reservation, SharedOptions, SharedRecord
from llmopt.values.events import BreakerChanged, SharedDegraded

if TYPE_CHECKING:
    from llmopt.config.resolve import Endpoint
    from llmopt.policies.circuit_breaker import CircuitBreakerRegistry
    from llmopt.policies.wait_queue import WaitQueue

T = TypeVar("T")
P = ParamSpec("P")
_TIMEOUT_S: Final = 0.25
_PROBE_S: Final = 1.0
_FAILURES: Final = 2
"""Consecutive failures after which the store counts as down: one lost packet is no outage."""
_NEWS_S: Final = 1.0
_LIMITS_TTL_S: Final = 3_600.0
_NOTHING: Final = type(None)
_RECORD: Final[Any] = (SharedRecord, type(None))


@define(eq=False)
class _Quota:
    """One shared quota of this client.

    Attributes:
        name: its name in the store.
        limiter: its rate limiter.
        origin: of the endpoint.
        blocks: what may be spent of it.
        watched: whether a task looks whether blocks are left over.
        limits_version: of the limits that were read last.
        limits: those that were read or published last.
    """

    name: bytes
    limiter: SharedRateLimiter
    origin: str
    blocks: SharedBlocks
    watched: bool = False
    limits_version: int = 0
    limits: tuple[float | None, float | None] = (None, None)

    def next_step(self, now: float, queue: WaitQueue) -> Block | float | None:
        """The block to reserve, or seconds until it is worth asking, or None if there is nothing to ask for."""
        first = queue.first()
        waiting = (
            Waiting()
            if first is None
            else Waiting(len(queue), (first.requests, first.tokens), first.priority)
        )
        block = self.blocks.next_block(now, waiting)
        if block is None and self.blocks.retry_at > now and (waiting.requests or self.blocks.failing):
            return self.blocks.retry_at - now
        if block is None:
            self.blocks.asked()
        return block


class _NoAnswerError(Exception):
    """The store did not answer."""


class Sharing:
    """The shared state of one client.

    Args:
        options: the store, and how it is used.
        clock: the time.
        emit: emits an event, see `llmopt.engine.telemetry.Telemetry.emit`.

    Attributes:
        circuits: the client's circuits; the engine sets them.
    """

    circuits: CircuitBreakerRegistry

    def __init__(self, options: SharedOptions, clock: Clock, emit: Callable[..., None]) -> None:
        self._options: Final = options
        self._store: Final = options.store
        self._clock: Final = clock
        self._emit: Final[Callable[..., None]] = emit
        self._me: Final = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._tasks: Final = TaskSet()
        self._quotas: Final[list[_Quota]] = []
        self._circuit_versions: Final[dict[str, int]] = {}
        self._failures = 0
        self._cause = ""
        self._probe_at = -math.inf
        self._down_at = 0.0
        self._closed = False

    def limiter(
        self, endpoint: Endpoint, group: str, rpm: float | None, tpm: float | None, firm: tuple[bool, bool]
    ) -> SharedRateLimiter:
        """The limiter of a quota that all clients share which have the same key for the same origin and group.

        Args:
            endpoint: of the requests.
            group: what the provider limits together, such as a model.
            rpm: configured requests per minute, None for none.
            tpm: configured tokens per minute, likewise.
            firm: see `llmopt.policies.rate_limiter.RateLimiter`.
        """
        credential = endpoint.credential.fingerprint(self._options.secret)
        name = self._digest("quota", endpoint.origin, credential, group)
        blocks = SharedBlocks(
            self._clock.now(), lambda: self._start(self._run(quota)), required=self._options.required
        )
        limiter = SharedRateLimiter(clock=self._clock, rpm=rpm, tpm=tpm, firm=firm, blocks=blocks)
        quota = _Quota(name, limiter, endpoint.origin, blocks)
        self._quotas.append(quota)
        return limiter

    @property
    def down(self) -> bool:
        """Whether the store does not answer."""
        return self._failures >= _FAILURES

    def stats(self) -> dict[str, Any]:
        """Whether the store answers, why not, and how many clients use it, as far as this one knows."""
        clients = max((quota.blocks.clients for quota in self._quotas), default=1)
        return {"degraded": self.down, "cause": self._cause if self.down else "", "clients": clients}

    async def aclose(self) -> None:
        """Return all blocks, and close the store if the client has made it."""
        self._closed = True
        await self._tasks.aclose()
        with suppress(Exception):
            async with asyncio.timeout(_TIMEOUT_S):
                await asyncio.gather(*(self._return(quota, idle=False) for quota in self._quotas))
        if self._options.owned:
            with suppress(Exception):
                async with asyncio.timeout(_TIMEOUT_S):
                    await self._store.aclose()

    def _digest(self, *parts: str) -> bytes:
        return hmac.digest(self._options.secret, "\0".join(parts).encode(), "sha256")

    # Calls of the store

    async def _call(
        self, expected: type[T], method: Callable[P, Awaitable[T]], *args: P.args, **options: P.kwargs
    ) -> T:
        """Call a method of the store.

        Raises:
            _NoAnswerError: it did not answer, or not with what is expected, or is not asked now because it is down.
        """
        now = self._clock.now()
        if self.down:
            if now < self._probe_at:
                raise _NoAnswerError
            self._probe_at = now + _PROBE_S
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                answer = await method(*args, **options)
            if not isinstance(answer, expected):
                raise TypeError
        except Exception as error:  # noqa: BLE001 - a store is foreign code, and may raise anything
            self._failed(type(error).__name__)
            raise _NoAnswerError from None
        self._answered()
        return answer

    def _failed(self, cause: str) -> None:
        self._failures += 1
        self._cause = cause
        if self._failures == _FAILURES:
            self._down_at = self._clock.now()
            self._probe_at = self._down_at + _PROBE_S
            what = (
                "calls fail" if self._options.required else "each process keeps to its own part of the limits"
            )
            self._report(f"the shared store does not answer ({cause}): {what} until it does")

    def _answered(self) -> None:
        was_down, self._failures = self.down, 0
        if was_down:
            seconds = self._clock.now() - self._down_at
            self._report(f"the shared store answers again after {seconds:.1f} s", seconds)

    def _report(self, text: str, seconds: float = 0.0) -> None:
        LIMITS.write(WARNING, "shared.degraded", text, {"degraded": self.down, "cause": self._cause})
        self._emit(SharedDegraded, provider="", degraded=self.down, cause=self._cause, seconds=seconds)

    # The task of a quota

    def _start(self, work: Coroutine[Any, Any, None]) -> bool:
        # Called under the limiter's lock, and on the way of a request: only a task is made here.
        if self._closed or running_loop() is None:
            work.close()
            return False
        self._tasks.start(work)
        return True

    async def _run(self, quota: _Quota) -> None:
        """Ask for blocks and send pauses until nothing is needed; then see to what is left over."""
        try:
            while (step := quota.limiter.exchange(quota.next_step)) is not None or quota.blocks.pause:
                pause, quota.blocks.pause = quota.blocks.pause, 0.0
                if pause:
                    with suppress(_NoAnswerError):
                        await self._call(_NOTHING, self._store.pause, quota.name, pause)
                if isinstance(step, Block):
                    await self._reserve(quota, step)
                elif step is not None:
                    await self._clock.sleep(step)
                self._start_news(quota)
        finally:
            quota.blocks.asked()
        self._start_news(quota)
        if not quota.watched:
            quota.watched = self._start(self._watch(quota))

    async def _reserve(self, quota: _Quota, block: Block) -> None:
        answer: Reservation | None = None
        with suppress(_NoAnswerError):
            answer = await self._call(
                Reservation,
                self._store.reserve,
                quota.name,
                block.want,
                block.least,
                block.rates,
                max_ahead_s=block.max_ahead_s,
                priority=block.priority,
            )

        def record(now: float, _: object) -> None:
            quota.blocks.error = self._error()
            if answer is not None:
                quota.blocks.granted(now, block, answer)
            else:
                quota.blocks.failed(now, block.asked_at, max(0.0, self._probe_at - now) if self.down else 0.0)

        quota.limiter.exchange(record)
        if answer is not None and answer.pause_s > 0:
            quota.limiter.pause(answer.pause_s)

    def _error(self) -> errors.LLMOptError | None:
        if not (self.down and self._options.required):
            return None
        return errors.SharedStateUnavailable(
            f"the shared store does not answer ({self._cause}), and required = true in [shared] forbids to send "
            "requests without it; nothing was sent."
        )

    async def _watch(self, quota: _Quota) -> None:
        """Return blocks that are left over, a short time after the last request."""
        try:
            while not quota.blocks.empty:
                await self._clock.sleep(IDLE_S)
                await self._return(quota, idle=True)
        finally:
            quota.watched = False

    async def _return(self, quota: _Quota, *, idle: bool) -> None:
        back = quota.limiter.exchange(
            lambda now, queue: None if idle and len(queue) else quota.blocks.release(now, idle=idle)
        )
        if back is not None:
            with suppress(_NoAnswerError):
                await self._call(_NOTHING, self._store.refund, quota.name, back, quota.blocks.rates)

    # Limits and circuits

    def _start_news(self, quota: _Quota) -> None:
        # A task of its own: no block waits for it.
        now = self._clock.now()
        if now >= quota.blocks.news_at:
            quota.blocks.news_at = now + _NEWS_S
            self._start(self._exchange_news(quota))

    async def _exchange_news(self, quota: _Quota) -> None:
        with suppress(_NoAnswerError):
            await self._exchange_limits(quota)
            await self._read_circuits(quota.origin)

    async def _exchange_limits(self, quota: _Quota) -> None:
        """Publish the limits that headers have stated, or learn those that others have published."""
        name = self._digest("limits", quota.name.hex())
        own = quota.limiter.learned[:2]
        if own != quota.limits:
            state = {key: value for key, value in zip(("rpm", "tpm"), own, strict=True) if value is not None}
            await self._call(_NOTHING, self._store.publish, name, state, _LIMITS_TTL_S)
            quota.limits = own
            return
        record = await self._call(_RECORD, self._store.read, name)
        if record is not None and record.version != quota.limits_version:
            quota.limits_version = record.version
            rpm, tpm = _limit(record.state.get("rpm")), _limit(record.state.get("tpm"))
            quota.limiter.restore(LearnedLimits(rpm, tpm, None, None))
            quota.limits = quota.limiter.learned[:2]

    def circuit_changed(self, change: BreakerChanged) -> None:
        """Tell the others that a circuit has opened here."""
        if change.new != "open" or not change.cause or not change.break_duration_s:
            return
        circuit = self._digest("circuit", change.circuit).hex()
        self._start(
            self._publish_circuit(change, {"circuit": circuit, "cause": change.cause, "by": self._me})
        )

    async def _publish_circuit(self, change: BreakerChanged, state: dict[str, str | float]) -> None:
        name = self._digest("circuits", change.endpoint)
        with suppress(_NoAnswerError):
            await self._call(_NOTHING, self._store.publish, name, state, change.break_duration_s)

    async def _read_circuits(self, origin: str) -> None:
        """Let the circuits of an origin that have opened elsewhere be tested here."""
        record = await self._call(_RECORD, self._store.read, self._digest("circuits", origin))
        if record is None or self._circuit_versions.get(origin) == record.version:
            return
        self._circuit_versions[origin] = record.version
        circuit, cause, by = (str(record.state.get(key)) for key in ("circuit", "cause", "by"))
        if by != self._me:
            error = errors.ServerError(f"{cause:.40} in another process ({by:.80})")
            self.circuits.suspect(lambda name: self._digest("circuit", name).hex() == circuit, error)


def _limit(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and 0 < value < math.inf else None
