"""Rate limits in response headers: ``x-ratelimit-*``, its relatives, and the IETF draft.

All formats that servers use are read (docs/development/provider-facts.md), and nothing here raises, whatever a
server sends. A value that makes no sense is treated as missing. The grammar of numbers is narrower than that of Python's
``float``, because llmopt obeys what it reads.

Pure: no I/O, no state, and no clock, because the wall time is an argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import cache
from typing import Final

from llmopt.policies.retry_after import server_time, split_values
from llmopt.values.calls import RateLimit, RateLimits

_MAX_AMOUNT: Final = 1e9
_DAY_S: Final = 86_400.0
_MAX_HEADER: Final = 200
"""Characters; a longer header holds no rate limit."""
_HEADER_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?", re.ASCII)
_UNIT_S: Final = (
    (r"nanoseconds?|ns", 1e-9),
    (r"microseconds?|[uµμ]s", 1e-6),
    (r"milliseconds?|millis|msecs?|ms|毫秒", 1e-3),
    (r"seconds?|secs?|s|秒钟?", 1.0),
    (r"minutes?|mins?|m|分钟?", 60.0),
    (r"hours?|hrs?|h|小时|時間", 3_600.0),
    (r"days?|d|天", 86_400.0),
)
_AMOUNT: Final = r"[0-9]{1,15}(?:\.[0-9]{1,15})?|an?(?= )|one"
_UNIT: Final = "|".join(f"(?:{names})" for names, _ in _UNIT_S)
SPAN: Final = rf"(?:(?:{_AMOUNT})[ -]?(?:{_UNIT})(?![a-z]),?(?: and)? ?){{1,4}}"
"""A duration, as Go writes it or in words: "1m30.5s", "2 minutes and 5 seconds", "an hour", "20-second"."""
_RFC_3339: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_IETF_ITEM: Final = re.compile(r'(?:"[^"]*"|[^",])+')
_IETF_PARAMETER: Final = re.compile(r";\s*([a-z]+)\s*=\s*([0-9.]+)", re.ASCII)
_IETF_NAME: Final = re.compile(r'"([^"]*)"')
# Numbers of this size cannot be seconds to wait, so they are moments (2001-09-09 is 1e9, in ms 1e12).
_MIN_UNIX_SECONDS: Final = 1e8
_MIN_UNIX_MILLISECONDS: Final = 1e11
_MIN_MOMENT_LENGTH: Final = len("100000000")


def parse_rate_limits(headers: Mapping[str, str], wall_now: float) -> RateLimits:
    """The rate limits in the common headers of a response: the ``x-ratelimit-*`` family and the IETF draft.

    A plugin whose provider uses other names builds the same value with `rate_limit`. Limits are per minute, as all
    of this family are. A limit whose header names neither requests nor tokens does not say its window, so only
    what remains and its reset are used.

    Args:
        headers: names in lower case; repeated ones joined with ", ".
        wall_now: seconds since 1970, for resets that are moments, in a response without ``Date``.
    """
    requests = rate_limit(
        headers,
        limit=("x-ratelimit-limit-requests",),
        remaining=("x-ratelimit-remaining-requests", "x-ratelimit-remaining", "ratelimit-remaining"),
        reset=("x-ratelimit-reset-requests", "x-ratelimit-reset", "ratelimit-reset"),
        wall_now=wall_now,
    )
    tokens = rate_limit(
        headers,
        limit=("x-ratelimit-limit-tokens",),
        remaining=("x-ratelimit-remaining-tokens",),
        # The second spelling was seen in real responses.
        reset=("x-ratelimit-reset-tokens", "x-rate-limit-reset-tokens"),
        wall_now=wall_now,
    )
    if requests is None and "ratelimit" in headers:
        requests = parse_ietf(headers["ratelimit"], headers.get("ratelimit-policy", ""))
    return RateLimits(requests=requests, tokens=tokens)


def rate_limit(
    headers: Mapping[str, str],
    *,
    limit: Iterable[str] = (),
    remaining: Iterable[str] = (),
    reset: Iterable[str] = (),
    wall_now: float,
    window_s: float = 60.0,
) -> RateLimit | None:
    """One rate limit from the headers with the given names; None if none of them has a usable value.

    Of several names the first one that is present and valid counts.

    Args:
        headers: names in lower case; repeated ones joined with ", ".
        limit: names of headers with the allowance per window. Less than 1 means "unknown".
        remaining: names of headers with what is left of it.
        reset: names of headers with the time until it is renewed, in any format.
        wall_now: seconds since 1970.
        window_s: seconds that the limit is counted over.
    """
    allowance = _first(headers, limit, _smallest_amount)
    if allowance is not None and allowance < 1:
        allowance = None
    left = _first(headers, remaining, _smallest_amount)
    reset_s = _first(headers, reset, lambda value: _latest_reset(value, headers, wall_now))
    if allowance is None and left is None and reset_s is None:
        return None
    return RateLimit(limit=allowance, remaining=left, reset_s=reset_s, window_s=window_s)


def parse_amount(value: str) -> float | None:
    """A number of requests or tokens, 0 to 1e9, else None."""
    if len(value) > _MAX_HEADER or not _HEADER_NUMBER.fullmatch(value.strip(" \t")):
        return None
    amount = float(value)
    return amount if amount <= _MAX_AMOUNT else None


def parse_reset(value: str, wall_now: float) -> float | None:
    """Seconds until a limit is renewed, None if the value is invalid or more than a day.

    The value is a number of seconds, a Go duration, an RFC 3339 moment, or Unix seconds or milliseconds. A moment in
    the past gives 0.
    """
    text = value.strip(" \t")
    if len(text) > _MAX_HEADER:
        return None
    if _HEADER_NUMBER.fullmatch(text):
        seconds: float | None = _from_number(float(text), wall_now)
    elif (moment := parse_moment(text)) is not None:
        seconds = max(0.0, moment - wall_now)
    else:
        seconds = parse_duration(text)
    return None if seconds is None or seconds > _DAY_S else seconds


def parse_duration(value: str) -> float | None:
    """Seconds of a duration such as ``6m0s``, ``12ms``, ``1m30.951s`` or ``2 minutes``, None if it is none."""
    text = value.strip(" \t").lower()
    if len(text) > _MAX_HEADER or not compiled(SPAN).fullmatch(text):
        return None
    parts = compiled(rf"({_AMOUNT})[ -]?({_UNIT})(?![a-z])").findall(text)
    return sum(_unit_seconds(unit) * (float(n) if n[0].isdecimal() else 1.0) for n, unit in parts)


def _unit_seconds(unit: str) -> float:
    return next(seconds for names, seconds in _UNIT_S if compiled(names).fullmatch(unit))


@cache
def compiled(expression: str) -> re.Pattern[str]:
    """A pattern without case, compiled when it is first needed: a client that meets no refusal should not pay for it."""
    return re.compile(expression, re.IGNORECASE)


def parse_ietf(limits: str, policies: str = "") -> RateLimit | None:
    """The tightest limit of the IETF draft "RateLimit header fields for HTTP", None if there is none.

    Args:
        limits: ``ratelimit``, such as ``"api";r=999;t=295``.
        policies: ``ratelimit-policy``, such as ``"fixed window";"api";q=1000;w=300``.
    """
    named_policies = [(set(_IETF_NAME.findall(item)), _parameters(item)) for item in _items(policies)]
    parsed = [_with_policy(item, named_policies) for item in _items(limits)]
    return min((limit for limit in parsed if limit is not None), key=_share_left, default=None)


def _with_policy(item: str, policies: list[tuple[set[str], dict[str, float]]]) -> RateLimit | None:
    parameters = _parameters(item)
    if "r" not in parameters:
        return None
    names = set(_IETF_NAME.findall(item))
    policy = next((values for policy_names, values in policies if names & policy_names), {})
    window = policy.get("w")
    return RateLimit(
        limit=(policy.get("q") or None) if window else None,
        remaining=parameters["r"],
        reset_s=parameters["t"] if parameters.get("t", math.inf) <= _DAY_S else None,
        window_s=window or 60.0,
    )


def _share_left(limit: RateLimit) -> float:
    return (limit.remaining or 0.0) / (limit.limit or _MAX_AMOUNT)


def _items(value: str) -> list[str]:
    return _IETF_ITEM.findall(value[:_MAX_HEADER])


def _parameters(item: str) -> dict[str, float]:
    pairs = ((name, parse_amount(number)) for name, number in _IETF_PARAMETER.findall(item))
    return {name: number for name, number in pairs if number is not None}


def _first(
    headers: Mapping[str, str], names: Iterable[str], parse: Callable[[str], float | None]
) -> float | None:
    for name in names:
        value = headers.get(name)
        if value is not None and (parsed := parse(value)) is not None:
            return parsed
    return None


def _smallest_amount(value: str) -> float | None:
    if ", " not in value:
        return parse_amount(value)
    return min((amount for v in split_values(value) if (amount := parse_amount(v)) is not None), default=None)


def _latest_reset(value: str, headers: Mapping[str, str], wall_now: float) -> float | None:
    # Parsing ``Date`` takes time, and only a value that may be a moment needs it.
    now = server_time(headers, wall_now) if len(value) >= _MIN_MOMENT_LENGTH else wall_now
    if ", " not in value:
        return parse_reset(value, now)
    resets = (parse_reset(v, now) for v in split_values(value))
    return max((seconds for seconds in resets if seconds is not None), default=None)


def _from_number(number: float, wall_now: float) -> float:
    if number >= _MIN_UNIX_MILLISECONDS:
        return max(0.0, number / 1000 - wall_now)
    if number >= _MIN_UNIX_SECONDS:
        return max(0.0, number - wall_now)
    return number


def parse_moment(text: str) -> float | None:
    """Seconds since 1970 of a date and time in RFC 3339, with a time zone, which may also be "UTC"; else None."""
    text = re.sub(r" ?(?:UTC|GMT)$", "Z", text.upper())
    try:
        return datetime.fromisoformat(text).timestamp() if _RFC_3339.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None
