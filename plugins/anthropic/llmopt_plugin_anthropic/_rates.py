"""Rate headers of Anthropic: requests, tokens of the input, tokens of the output.

``anthropic-ratelimit-tokens-*`` is the tightest of the limits of tokens, or the sum of both; it counts where there is no
other. All of them fill continuously, and the reset is the moment when they are full.
"""

from __future__ import annotations

from llmopt import HttpResponse, RateLimit, RateLimits, compatible


def rates_of(response: HttpResponse) -> RateLimits:
    """Read the limits that a response states."""
    return RateLimits(
        requests=_limit(response, "requests"),
        tokens=_limit(response, "input-tokens") or _limit(response, "tokens"),
        output_tokens=_limit(response, "output-tokens"),
    )


def _limit(response: HttpResponse, what: str) -> RateLimit | None:
    limit, remaining, reset = (
        (f"anthropic-ratelimit-{what}-{word}",) for word in ("limit", "remaining", "reset")
    )
    return compatible.rate_limit(
        response.headers, limit=limit, remaining=remaining, reset=reset, wall_now=response.received
    )
