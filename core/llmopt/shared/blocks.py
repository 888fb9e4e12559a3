"""What this process may spend of a quota that several processes share: blocks that it reserves ahead in their store.

A round trip to the store for each request would double llmopt's CPU time per request, so requests and tokens are
reserved in blocks, as capacity leases are in Google's Doorman. Four processes of 250 requests a second each with blocks
of 25 requests need 0.04 round trips per request and share evenly (measured with Valkey over loopback). A block is
100 ms of this process's own demand, but a quarter of the burst at most, and one request at least. The next block is
reserved when less than one is left, so a request waits for the store only if none is left at all.

While the store does not answer, this process goes on with its part of the limit: its part of what was granted to all
in the last seconds, and at least an equal part. What it spends so is reserved afterwards, because the store cannot
know of it; a burst at most, as the bucket in the store is full by then.

It decides only: no I/O, no awaiting, no lock and no clock, because the time is an argument. The rate limiter of the
quota calls it under its own lock, `llmopt.shared.sharing` carries out what it decides.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from attrs import frozen

from llmopt.errors import LLMOptError
from llmopt.policies.adaptive_rate import BURST_S
from llmopt.shared.state import Reservation, SharedCost, SharedRate, SharedRates
from llmopt.values.calls import Priority

_Pair = tuple[float, float]
"""Requests and tokens."""
_NOTHING: Final = (0.0, 0.0)
_BOTH: Final = (0, 1)
_BLOCK_S: Final = 0.1
_BURST_PART: Final = 0.25
_MARGIN: Final = 0.1
"""Part of the burst that is not used: requests overtake each other on their way to the provider's own bucket."""
_DEMAND_S: Final = 1.0
"""Time constant of the demand."""
_MEMORY_S: Final = 20.0
"""Time constant of what was granted."""
_UNEVEN: Final = 1.5
"""A part of at most 1.5 times an equal one counts as equal. Without this, four equal processes together sent 1.06 to 1.14 of
the limit, because each that had got a little more kept it and each that had got less took its equal part."""
IDLE_S: Final = 0.4
"""A process that had no request for this time returns its blocks. It checks at the same interval, so that blocks are back
within a second."""
_MAX_AHEAD_S: Final = 1.0
_POLL_S: Final = 0.25
"""When a waiting request is tried again, if the answer of the store does not come first."""
_MIN_RETRY_S: Final = 0.01
_EPSILON: Final = 1e-6


@frozen
class Waiting:
    """The requests in the limiter's queue.

    Attributes:
        requests: their number.
        first: cost of the first, its tokens as estimated.
        priority: of the first.
    """

    requests: int = 0
    first: _Pair = _NOTHING
    priority: Priority = "interactive"


@frozen(kw_only=True)
class Block:
    """A block to reserve; the first fields are arguments of `SharedState.reserve`.

    Attributes:
        debt: the part of it that was spent already, while the store did not answer.
        asked_at: monotonic seconds of the decision.
    """

    want: SharedCost
    least: SharedCost
    rates: SharedRates
    max_ahead_s: float
    priority: Priority
    debt: _Pair
    asked_at: float


class SharedBlocks:
    """The blocks of one quota.

    Args:
        now: monotonic seconds.
        on_need: is called when the store should be asked, and not again before `asked` was called. It returns whether
            a task will ask.
        required: whether nothing may be spent while the store does not answer.

    Attributes:
        failing: whether the store did not answer the last time.
        clients: number of clients that use the quota, by the store.
        retry_at: when to ask again, after a failure or an answer that granted nothing.
        news_at: when to read again what others have published.
        pause: seconds of a pause that the store is to be told of.
        error: why no request may be sent, None if it may.
    """

    def __init__(self, now: float, on_need: Callable[[], bool], *, required: bool = False) -> None:
        self.failing = False
        self.clients = 2  # until the store has told
        self.retry_at = self.news_at = -math.inf
        self.pause = 0.0
        self.error: LLMOptError | None = None
        self._on_need = on_need
        self._pending = False
        self._required = required
        self._limits: _Pair = (math.inf, math.inf)
        self._level = [0.0, 0.0]
        self._booked: deque[tuple[float, _Pair]] = deque()  # from when it may be spent, and how much
        self._taken = [0.0, 0.0]  # decays with _DEMAND_S, so it is the demand per second
        self._sent = 0.0  # requests; decays likewise
        self._taken_at = -math.inf
        self._decayed_at = now
        self._first: _Pair = _NOTHING  # cost of the request that waits
        self._inflow_at = now  # until when this process's own part was counted, while the store fails
        self._debt = [0.0, 0.0]
        self._total: _Pair = (0.0, 0.0)  # granted to all by the last answer
        self._granted_at = now
        self._granted = [[0.0, 0.0], [0.0, 0.0]]  # to this process, and to all; decays with _MEMORY_S

    def __repr__(self) -> str:
        requests, tokens = self._level
        return f"SharedBlocks(requests={requests:.6g}, tokens={tokens:.6g}, failing={self.failing})"

    # Spending

    def set_limits(self, requests: float, tokens: float) -> None:
        """The known limits per second; infinite for none."""
        self._limits = requests, tokens

    def wait_time(self, now: float, cost: _Pair) -> float:
        """Seconds until a request of this cost should be tried again; 0 if it can be spent now."""
        self._first = cost
        self._advance(now)
        level = list(self._level)
        short = self._short(cost, level)
        if short == _NOTHING:
            return 0.0
        for at, amounts in self._booked:
            _add(level, amounts)
            if self._short(cost, level) == _NOTHING:
                return max(_EPSILON, at - now)
        self._need()
        if not self.failing or self._required:
            return _POLL_S
        return max(_EPSILON, *(short[i] / (self._limits[i] * self._part(i)) for i in _BOTH if short[i]))

    def take(self, now: float, cost: _Pair) -> None:
        """Spend a request, even if less is left."""
        self._decay(now)
        self._taken_at = now
        self._first = _NOTHING
        self._sent += 1
        for i in _BOTH:
            self._taken[i] += cost[i]
            if self._limits[i] < math.inf:
                self._level[i] -= cost[i]
        mark, _ = self._marks(Waiting())
        have = self._have()
        if have[0] < mark[0] or have[1] < mark[1] or now >= self.news_at:
            self._need()

    def give_back(self, requests: float, tokens: float) -> None:
        """A request cost less than was taken for it (more, if negative)."""
        for i, amount in enumerate((requests, tokens)):
            if self._limits[i] < math.inf:
                self._level[i] = max(self._level[i] + amount, -self._burst(i))

    def report_pause(self, seconds: float) -> None:
        """The provider has asked for a pause, which all clients are to keep."""
        self.pause = max(self.pause, seconds)
        self._need()

    def _need(self) -> None:
        if not self._pending:
            self._pending = self._on_need()

    def asked(self) -> None:
        """Nobody asks the store any more: call ``on_need`` again when it is needed."""
        self._pending = False

    # Asking the store

    def next_block(self, now: float, waiting: Waiting) -> Block | None:
        """The block to reserve now, None if enough is left or if it is too early to ask again."""
        self._advance(now)
        self._decay(now)
        if now < self.retry_at or self._limits == (math.inf, math.inf):
            return None
        have = self._have()
        least = self._short(waiting.first, have) if waiting.requests else _NOTHING
        active = waiting.requests > 0 or self.failing or now < self._taken_at + IDLE_S
        mark, target = self._marks(waiting) if active else (_NOTHING, _NOTHING)
        if least == _NOTHING and not self.failing and have[0] >= mark[0] and have[1] >= mark[1]:
            return None
        debt, want, ahead = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
        for i in _BOTH:
            if self._limits[i] < math.inf:
                debt[i] = min(self._debt[i], self._burst(i) * self._part(i))
                # Less than a request is as good as nothing: with it subtracted, two of three processes that had it got
                # half of what the third one got.
                lacks = target[i] if least[i] else target[i] - have[i]
                want[i] = max(least[i], lacks, 0.0) + debt[i]
                # Room for one such request of each client: of requests that are large beside the limit, those of the
                # others come first. With 1 s alone, two of four clients got a twentieth of what the others got.
                ahead[i] = (least[i] * self.clients + debt[i]) / self._limits[i]
        return Block(
            want=SharedCost(*want),
            least=SharedCost(least[0] + debt[0], least[1] + debt[1]),
            rates=self.rates,
            max_ahead_s=_MAX_AHEAD_S + max(ahead),
            priority=waiting.priority,
            debt=(debt[0], debt[1]),
            asked_at=now,
        )

    def granted(self, now: float, block: Block, answer: Reservation) -> None:
        """The store has answered."""
        self._advance(now)
        self.failing = False
        self.clients = max(1, answer.clients)
        amounts = answer.granted.requests, answer.granted.tokens
        if amounts == _NOTHING:
            self.retry_at = now + max(_MIN_RETRY_S, answer.delay_s)
            return
        self._count(now, amounts, (answer.total.requests, answer.total.tokens))
        self._debt = [0.0, 0.0]
        self._booked.append((now + answer.delay_s, (amounts[0] - block.debt[0], amounts[1] - block.debt[1])))
        self._advance(now)

    def failed(self, now: float, asked_at: float, retry_in: float) -> None:
        """The store did not answer what it was asked at ``asked_at``: go on with this process's own part."""
        self._advance(now)
        self.retry_at = now + retry_in
        if not self.failing:
            self.failing = True
            # From the question on, or from when all is spent that was reserved ahead: until then nothing lacks.
            self._inflow_at = max(asked_at, self._booked[-1][0] if self._booked else asked_at)
            self._advance(now)

    def release(self, now: float, *, idle: bool = True) -> SharedCost | None:
        """All that is left, for the store; None for nothing, and with ``idle`` also while requests are sent."""
        self._advance(now)
        back = [max(0.0, amount) for amount in self._have()]
        if self.failing or max(back) <= _EPSILON or (idle and now < self._taken_at + IDLE_S):
            return None
        self._booked.clear()
        self._level = [min(0.0, level) for level in self._level]
        return SharedCost(*back)

    @property
    def empty(self) -> bool:
        """Whether nothing is left."""
        return max(self._have()) <= _EPSILON

    @property
    def rates(self) -> SharedRates:
        """The limits, as the store gets them."""
        requests, tokens = (
            SharedRate(self._limits[i], self._burst(i)) if self._limits[i] < math.inf else None for i in _BOTH
        )
        return SharedRates(requests=requests, tokens=tokens)

    # Levels and sizes

    def _marks(self, waiting: Waiting) -> tuple[_Pair, _Pair]:
        """The level below which a block is reserved, and the level that it brings."""
        marks, targets = [0.0, 0.0], [0.0, 0.0]
        for i in _BOTH:
            if self._limits[i] < math.inf:
                one = self._taken[i] / self._sent if self._sent > _EPSILON else 0.0
                demand = min(
                    self._taken[i] / _DEMAND_S + waiting.requests * waiting.first[i], self._limits[i]
                )
                block = min(demand * _BLOCK_S, self._burst(i) * _BURST_PART)
                marks[i], targets[i] = max(one, block), max(one, 2 * block)
        return (marks[0], marks[1]), (targets[0], targets[1])

    def _burst(self, i: int) -> float:
        return max(1.0, self._limits[i] * BURST_S[i] * (1 - _MARGIN))

    def _have(self) -> list[float]:
        have = list(self._level)
        for _, amounts in self._booked:
            _add(have, amounts)
        return have

    def _short(self, cost: _Pair, level: list[float]) -> _Pair:
        """What lacks of each quantity; 0 for one without a limit."""
        short = [cost[i] - level[i] if self._limits[i] < math.inf else 0.0 for i in _BOTH]
        return short[0] if short[0] > _EPSILON else 0.0, short[1] if short[1] > _EPSILON else 0.0

    def _decay(self, now: float) -> None:
        weight = math.exp((self._decayed_at - now) / _DEMAND_S)
        self._decayed_at = now
        self._sent *= weight
        self._taken = [self._taken[0] * weight, self._taken[1] * weight]

    def _advance(self, now: float) -> None:
        """Count what may be spent by now."""
        while self._booked and self._booked[0][0] <= now + _EPSILON:
            _add(self._level, self._booked.popleft()[1])
        elapsed = now - self._inflow_at
        if not self.failing or self._required or elapsed <= 0:
            return
        self._inflow_at = now
        for i, first in enumerate(self._first):
            if self._limits[i] < math.inf:
                # Never more than a burst, or what the request that waits needs.
                room = max(self._burst(i) * self._part(i), first) - self._level[i]
                inflow = max(0.0, min(elapsed * self._limits[i] * self._part(i), room))
                self._level[i] += inflow
                self._debt[i] += inflow

    # The part of this process

    def _count(self, now: float, own: _Pair, total: _Pair) -> None:
        weight = math.exp((self._granted_at - now) / _MEMORY_S)
        # A store that has lost its state counts from 0 again.
        before = self._total if total[0] >= self._total[0] and total[1] >= self._total[1] else _NOTHING
        for i in _BOTH:
            self._granted[0][i] = self._granted[0][i] * weight + own[i]
            self._granted[1][i] = self._granted[1][i] * weight + max(own[i], total[i] - before[i])
        self._granted_at, self._total = now, total

    def _part(self, i: int) -> float:
        """This process's part of what was granted lately, at least an equal one."""
        own, everybody, equal = self._granted[0][i], self._granted[1][i], 1 / self.clients
        part = own / everybody if everybody else 0.0
        return part if part > _UNEVEN * equal else equal


def _add(level: list[float], amounts: _Pair) -> None:
    level[0] += amounts[0]
    level[1] += amounts[1]
