"""One attempt: what it holds, and how it is settled whichever way it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.outcome import may_be_an_items, request_id
from llmopt.errors import (
    AttemptTimeout,
    DeadlineExceeded,
    InvalidResponse,
    LLMOptError,
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
    from llmopt.engine.pace import PaceLease
    from llmopt.policies.breaker_pair import PairPermit


_STALL_S: Final = 0.5
_STALL: Final = 0.1
"""Lateness of a time-out, in seconds and as a part of it, that a busy event loop does not explain."""


class Held:
    """What one attempt holds of the policies. Every method is synchronous.

    Attributes:
        endpoint: where it goes.
        call: what it asks.
        size: its tokens, what its time-out is learned by.
        timeout: seconds it may take.
        suspect: whether one of its texts is under suspicion, see `Request.suspect`.
    """

    def __init__(
        self,
        endpoint: LiveEndpoint,
        call: Call,
        size: int,
        timeout: float,
        *,
        slot: Slot,
        lease: PaceLease,
        permit: PairPermit | None,
        suspect: bool = False,
    ) -> None:
        self.endpoint: Final = endpoint
        self.call: Final = call
        self.size: Final = size
        self.timeout: Final = timeout
        self._slot: Final = slot
        self._lease: Final = lease
        self._permit: Final = permit
        self._suspect: Final = suspect
        # The first answer of a server that may be loading its model counts for neither breaker nor load.
        self._counts: Final = endpoint.guards.warm or endpoint.config.timeouts.first is None

    def succeeded(
        self, response: HttpResponse, settings: Settings, seconds: float, tokens: int | None
    ) -> bool:
        """A good answer came after so long, and cost so many tokens, None when it does not say.

        Returns:
            Whether its headers taught a limit.
        """
        self.endpoint.guards.took(self.call, self.size, seconds)
        self._slot.release("success" if self.endpoint.config.flags.concurrency else "neutral")
        if self._permit is not None:
            self._permit.success()
        # The cost first: what the headers tell of the rest is held against it.
        self._lease.settle(tokens)
        return self._lease.observe(self.endpoint.hooks.rate_limits(response, settings))

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
            self._slot.release(load_of(error) if self.endpoint.config.flags.concurrency else "neutral")
            if self._permit is not None and not (self._suspect and may_be_an_items(error)):
                # A text that cannot be computed says nothing of the server's health.
                self._permit.failed(self._evidence(error, seconds))
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
            self._lease.refund()
            return False
        if isinstance(error, RateLimited):
            return self._lease.penalize(error.retry_after, limits=limits)
        # Refused before any token was read, or else as estimated.
        self._lease.settle(0 if isinstance(error, ProviderError) and not error.retryable else None)
        return limits is not None and self._lease.observe(limits)


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
