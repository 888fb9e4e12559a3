"""Rate headers of Mistral: three generations are in use, each with its own prefix.

The monthly numbers of the oldest one are left out: they are no matter of pacing.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt import HttpResponse, RateLimit, RateLimits, compatible

_MINUTE_S: Final = 60.0


def rates_of(response: HttpResponse) -> RateLimits:
    """Read requests and tokens per minute from a response."""
    requests = compatible.rate_limit(
        response.headers,
        limit=("x-ratelimit-limit-req-minute",),
        remaining=("x-ratelimit-remaining-req-minute",),
        wall_now=response.received,
    )
    tokens = compatible.rate_limit(
        response.headers,
        limit=(
            "x-ratelimit-limit-tokens-minute",
            "ratelimitbysize-limit",
            "x-ratelimitbysize-limit-minute",
        ),
        remaining=(
            "x-ratelimit-remaining-tokens-minute",
            "ratelimitbysize-remaining",
            "x-ratelimitbysize-remaining-minute",
        ),
        reset=("ratelimitbysize-reset",),
        wall_now=response.received,
    )
    return RateLimits(requests=_renewed(requests, response), tokens=_renewed(tokens, response))


def _renewed(limit: RateLimit | None, response: HttpResponse) -> RateLimit | None:
    """Add the reset time, which the newest generation does not state: the start of the next minute."""
    if limit is None or limit.reset_s is not None:
        return limit
    return evolve(limit, reset_s=_MINUTE_S - response.received % _MINUTE_S)
