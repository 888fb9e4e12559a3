"""How an attempt is paced: the place of the rate limiter in the pipeline, and none for those who want none."""

from __future__ import annotations

from typing import Protocol, Self

from llmopt.policies.deadline import Deadline
from llmopt.values.limits import RateLimits


class PaceLease(Protocol):
    """Leave to send one request now. Leaving the ``with`` block settles it to its estimate."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def curious(self) -> bool:
        """Whether `observe` would learn from headers now; they need not be read otherwise."""
        ...

    def settle(self, tokens: float | None) -> None:
        """The request cost so many tokens, None for as many as estimated."""

    def accept(self) -> None:
        """The answer has begun; what it cost is settled when it ends."""

    def refund(self) -> None:
        """Nothing was sent."""

    def observe(self, limits: RateLimits) -> bool:
        """The headers of the answer tell this; True when a limit was learned or has changed."""
        ...

    def penalize(self, retry_after: float | None, *, limits: RateLimits | None) -> bool:
        """The server answered that it was too much; True as `observe`."""
        ...


class Pace(Protocol):
    """Gives leave, in order."""

    @property
    def paused(self) -> float:
        """Seconds that nothing goes out because the server refused; 0 when that is not so."""
        ...

    @property
    def free(self) -> bool:
        """Whether a small request would go at once."""
        ...

    @property
    def told(self) -> tuple[float | None, float | None]:
        """Requests and tokens a minute that headers told of; None where they did not."""
        ...

    def try_acquire(self, tokens: float) -> PaceLease | None:
        """Leave at once, None when there is a wait."""
        ...

    async def acquire(self, tokens: float, *, deadline: Deadline, patience: float) -> PaceLease:
        """Leave, when it is this caller's turn; `RateLimited` before a pause longer than its patience."""
        ...


class FreeLease:
    """Leave that costs nothing."""

    __slots__ = ()

    curious = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def settle(self, tokens: float | None) -> None:
        """Nothing to settle."""

    def accept(self) -> None:
        """Nobody waits for that."""

    def refund(self) -> None:
        """Nothing to give back."""

    def observe(self, limits: RateLimits) -> bool:  # noqa: ARG002 - nothing is learned
        """Nobody to tell."""
        return False

    def penalize(self, retry_after: float | None, *, limits: RateLimits | None) -> bool:  # noqa: ARG002 - as above
        """Nobody to slow down: the retry waits by itself."""
        return False


class Unpaced:
    """No pacing."""

    __slots__ = ("_lease",)

    paused = 0.0
    free = True
    told = (None, None)

    def __init__(self) -> None:
        self._lease = FreeLease()

    def try_acquire(self, tokens: float) -> PaceLease:  # noqa: ARG002 - free of charge
        """Always."""
        return self._lease

    async def acquire(
        self,
        tokens: float,  # noqa: ARG002 - as above
        *,
        deadline: Deadline,  # noqa: ARG002
        patience: float,  # noqa: ARG002
    ) -> PaceLease:
        """Always."""
        return self._lease
