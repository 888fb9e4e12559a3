"""One attempt: what it holds, and how it is settled whichever way it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.outcome import may_be_an_items, request_id
from llmopt.engine.pace import FreeLease, PaceLease
from llmopt.errors import (
    AttemptTimeout,
    DeadlineExceeded,
    InvalidResponse,
    LLMOptError,
    Overloaded,
    ProviderError,
    RateLimited,
)
from llmopt.policies.breaker_pair import deadline_counts
from llmopt.policies.concurrency import Slot, load_of
from llmopt.policies.retry_after import parse_retry_after
from llmopt.values.attempt import Attempt
from llmopt.values.calls import Call
from llmopt.values.http import HttpResponse
from llmopt.values.limits import RateLimits
from llmopt.values.settings import Settings

if TYPE_CHECKING:
    from llmopt.policies.breaker_pair import PairPermit


_STALL_S: Final = 0.5
_STALL: Final = 0.1
"""Lateness of a time-out, in seconds and as a part of it, that a busy event loop does not explain."""
_NO_SLOT: Final = Slot(lambda _: None)
_NO_LEASE: Final = FreeLease()


class Held:
    """What one attempt holds of the policies. Every method is synchronous.

    Leaving its ``with`` block gives everything back, without a word about the server where none was said,
    unless somebody keeps it for an answer that goes on.

    Attributes:
        endpoint: where it goes.
        call: what it asks.
        size: its tokens, what its time-out is learned by.
        timeout: seconds it may take.
        slot: room among the requests in flight; none until it is set.
        lease: leave of the rate limiter, likewise.
        permit: of the circuits, None before they gave it and when they are switched off.
        suspect: whether one of its texts is under suspicion, see `Request.suspect`.
    """

    def __init__(
        self,
        endpoint: LiveEndpoint,
        call: Call,
        size: int,
        *,
        suspect: bool = False,
    ) -> None:
        self.endpoint: Final = endpoint
        self.call: Final = call
        self.size: Final = size
        self.timeout = 0.0
        self.slot = _NO_SLOT
        self.lease: PaceLease = _NO_LEASE
        self.permit: PairPermit | None = None
        self._kept = False
        self._suspect: Final = suspect
        self._counts = True

    def succeeded(
        self, response: HttpResponse, settings: Settings, seconds: float, tokens: int | None
    ) -> bool:
        """A good answer came after so long, and cost so many tokens, None when it does not say.

        Returns:
            Whether its headers taught a limit.
        """
        self.endpoint.guards.took(self.call, self.size, seconds)
        self.completed(tokens)
        # After the cost: what the headers tell of the rest is held against it.
        return self._heard(response, settings)

    def _heard(self, response: HttpResponse, settings: Settings) -> bool:
        if not self.lease.curious:
            return False
        return self.lease.observe(self.endpoint.hooks.rate_limits(response, settings))

    def completed(self, tokens: int | None) -> None:
        """All of a good answer is there, and cost so many tokens, None when it does not say."""
        self.slot.release("success" if self.endpoint.config.flags.concurrency else "neutral")
        if self.permit is not None:
            self.permit.success()
        self.lease.settle(tokens)

    def failed(
        self, error: LLMOptError, settings: Settings, seconds: float, response: HttpResponse | None
    ) -> bool:
        """It ended in an error.

        Returns:
            Whether the headers of the answer, if there is one, taught a limit.
        """
        guards = self.endpoint.guards
        guards.latch(error)
        timed_out = isinstance(error, AttemptTimeout)
        if timed_out and not self._stalled(seconds):
            guards.timed_out(self.call, self.size, self.timeout)
        elif response is not None:
            guards.took(self.call, self.size, seconds)
        if not timed_out or (self._counts and not self._stalled(seconds)):
            self.slot.release(load_of(error) if self.endpoint.config.flags.concurrency else "neutral")
            if self.permit is not None and not (self._suspect and may_be_an_items(error)):
                # A text that cannot be computed says nothing of the server's health.
                self.permit.failed(self._evidence(error, seconds))
        limits = None if response is None else self.endpoint.hooks.rate_limits(response, settings)
        return self._settle(error, limits)

    def _stalled(self, seconds: float) -> bool:
        """Whether the time-out came so late that it was this process that stood still, not the server."""
        return seconds - self.timeout > max(_STALL_S, _STALL * self.timeout)

    def _evidence(self, error: LLMOptError, seconds: float) -> LLMOptError:
        """What the breakers are told: a deadline that was patient enough is as good as a time-out."""
        if isinstance(error, DeadlineExceeded) and deadline_counts(seconds, self.timeout):
            return AttemptTimeout(error.message)
        return error

    def _settle(self, error: LLMOptError, limits: RateLimits | None) -> bool:
        if error.sent == "no":
            self.lease.refund()
            return False
        if isinstance(error, RateLimited):
            return self.lease.penalize(error.retry_after, limits=limits)
        # Refused before any token was read, or else as estimated.
        self.lease.settle(0 if isinstance(error, ProviderError) and not error.retryable else None)
        return limits is not None and self.lease.observe(limits)

    def began(self, response: HttpResponse, settings: Settings, seconds: float) -> bool:
        """The first event of a stream came after so long.

        Returns:
            Whether the headers of the answer taught a limit.
        """
        self.endpoint.guards.took(self.call, self.size, seconds)
        breakers = self.endpoint.guards.breakers(self.call)
        if self.permit is not None and breakers is not None and breakers.on_probation:
            # A circuit that lets one request through to see must not wait for the end of a long answer.
            self.permit.success()
        # Nor those whom the limiter has wait for the first answers.
        self.lease.accept()
        return self._heard(response, settings)

    def left(self, tokens: int) -> None:
        """Its reader had enough of a stream that had cost so many tokens by then."""
        self.lease.settle(tokens)

    def broke(self, error: LLMOptError, settings: Settings, tokens: int) -> None:
        """A stream that had cost so many tokens broke off."""
        if not isinstance(error, RateLimited):
            self.lease.settle(tokens)
        self.failed(error, settings, 0.0, None)

    def admitted(self, permit: PairPermit | None, timeout: float) -> None:
        """The circuits let it through; it has so many seconds from now."""
        self.permit, self.timeout = permit, timeout
        # The first answer of a server that may be loading its model counts for neither breaker nor load.
        self._counts = self.endpoint.guards.warm or self.endpoint.config.timeouts.first is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._kept:
            self.release()

    def keep(self) -> None:
        """Leaving the block gives nothing back: whoever says this does, with `release`."""
        self._kept = True

    def release(self) -> None:
        """Give back what was not given back yet."""
        if self.permit is not None:
            self.permit.neutral()
        self.lease.__exit__()
        self.slot.release()


def explain(
    error: LLMOptError,
    endpoint: LiveEndpoint,
    call: Call,
    response: HttpResponse | None,
    seconds: float,
) -> Attempt:
    """Fill into an error what only the engine knows of it; a line for the history of attempts."""
    error.provider = error.provider or endpoint.config.provider
    error.model = error.model or call.model or None
    error.endpoint = error.endpoint or endpoint.name
    if response is not None:
        error.request_id = error.request_id or request_id(response.headers)
        if isinstance(error, (ProviderError, InvalidResponse)):
            hint = parse_retry_after(response.headers, response.received)
            error.retry_after = hint if hint is not None else error.retry_after
            if error.retry_after is not None and isinstance(error, (RateLimited, Overloaded)):
                error.args = (f"{error.message}; the server asks to wait {error.retry_after:g} s",)
    return Attempt(
        endpoint=endpoint.name,
        outcome=type(error).__name__,
        status=response.status if response is not None else None,
        seconds=seconds,
    )


def should_retry(response: HttpResponse | None) -> bool | None:
    """What the server says of trying again in ``x-should-retry``, None when it says nothing."""
    if response is None:
        return None
    return {"true": True, "false": False}.get(response.headers.get("x-should-retry", "").strip().lower())
