"""Leave to send one request, with the tokens it was estimated at."""

from __future__ import annotations

from typing import Protocol, Self

from llmopt.values.limits import RateLimits


class Lender(Protocol):
    """Where a lease came from."""

    @property
    def curious(self) -> bool:
        """Whether headers of good answers would tell anything new."""
        ...

    def settle(self, lease: Lease, tokens: float | None) -> None:
        """The request is answered, and cost so many tokens."""

    def refund(self, lease: Lease) -> None:
        """The request was not sent."""

    def accept(self, lease: Lease) -> None:
        """Its answer has begun."""

    def observe(self, limits: RateLimits, lease: Lease) -> bool:
        """The headers of its answer tell this."""
        ...

    def penalize(
        self, retry_after: float | None, lease: Lease, *, limits: RateLimits | None, counted: bool
    ) -> bool:
        """The server refused it for its rate."""
        ...


class Lease:
    """Leave to send one request. It ends once: later words of it have no effect.

    Leaving the ``with`` block without a word settles it at its estimate. Nothing here awaits, so that
    a cancellation cannot come between.

    Attributes:
        tokens: the estimate.
        number: place in the order of all leases of this quota.
        granted_at: when it was granted, on the clock's monotonic seconds.
        requests_mark: requests taken from the quota up to and with this one.
        tokens_mark: tokens likewise.
        waited: seconds spent in line.
        cause: what for, when it came: "requests" or "tokens" (the limit), "pause" (a refusal), "canary" (another request
            is trying whether the refusals are over), "start" (no answer has come yet), or "" for no wait.
        open: whether nothing was said of it so far.
        accepted: whether an answer to it has begun.
    """

    __slots__ = (
        "_lender",
        "accepted",
        "cause",
        "granted_at",
        "number",
        "open",
        "requests_mark",
        "tokens",
        "tokens_mark",
        "waited",
    )

    def __init__(
        self,
        lender: Lender,
        tokens: float,
        granted_at: float,
        number: int,
        requests_mark: float,
        tokens_mark: float,
    ) -> None:
        self._lender = lender
        self.tokens = tokens
        self.granted_at = granted_at
        self.number = number
        self.requests_mark = requests_mark
        self.tokens_mark = tokens_mark
        self.waited = 0.0
        self.cause = ""
        self.open = True
        self.accepted = False

    def __repr__(self) -> str:
        return f"Lease(tokens={self.tokens:g}, waited={self.waited:.3f}, open={self.open})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.open:
            self._lender.settle(self, None)

    @property
    def curious(self) -> bool:
        """Whether the headers of a good answer would tell anything new; see `RateLimiter.curious`."""
        return self._lender.curious

    def settle(self, tokens: float | None = None) -> None:
        """The request was answered. ``tokens`` is what it really cost, None for "as estimated"."""
        self._lender.settle(self, tokens)

    def accept(self) -> None:
        """The answer has begun, and may take long: the request was let through. What it cost is settled later."""
        self._lender.accept(self)

    def refund(self) -> None:
        """The request was not sent: all of it goes back."""
        self._lender.refund(self)

    def observe(self, limits: RateLimits) -> bool:
        """What the headers of the answer tell; True when a limit was learned or has changed.

        Settle first if the cost is known. It may be said of a lease that has ended.
        """
        return self._lender.observe(limits, self)

    def penalize(
        self, retry_after: float | None = None, *, limits: RateLimits | None = None, counted: bool = False
    ) -> bool:
        """The server refused the request for its rate (429), which ends the lease; True as `observe`.

        Args:
            retry_after: seconds it asks to wait, None if it does not say.
            limits: what the headers of the refusal tell, which need no `observe` then.
            counted: whether the server counts the tokens of what it refuses.
        """
        return self._lender.penalize(retry_after, self, limits=limits, counted=counted)
