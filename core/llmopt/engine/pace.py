"""How an attempt is paced: the place of a rate limiter in the pipeline."""

from __future__ import annotations

from typing import Protocol, Self

from llmopt.policies.deadline import Deadline


class PaceLease(Protocol):
    """Leave to send one request now. Leaving the ``with`` block settles it to its estimate."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def settle(self, tokens: int) -> None:
        """The request cost so many tokens."""

    def refund(self) -> None:
        """Nothing was sent."""

    def penalize(self, retry_after: float | None) -> None:
        """The server answered that it was too much."""


class Pace(Protocol):
    """Gives leave, in order."""

    def try_acquire(self, tokens: int) -> PaceLease | None:
        """Leave at once, None when there is a wait."""

    async def acquire(self, tokens: int, *, deadline: Deadline) -> PaceLease:
        """Leave, when it is this caller's turn."""
        ...


class FreeLease:
    """Leave that costs nothing."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def settle(self, tokens: int) -> None:
        """Nothing to settle."""

    def refund(self) -> None:
        """Nothing to give back."""

    def penalize(self, retry_after: float | None) -> None:
        """Nobody to slow down: the retry waits by itself."""


class Unpaced:
    """No pacing."""

    __slots__ = ("_lease",)

    def __init__(self) -> None:
        self._lease = FreeLease()

    def try_acquire(self, tokens: int) -> PaceLease:  # noqa: ARG002 - free of charge
        """Always."""
        return self._lease

    async def acquire(self, tokens: int, *, deadline: Deadline) -> PaceLease:  # noqa: ARG002 - as above
        """Always."""
        return self._lease
