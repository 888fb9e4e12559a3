"""How long a server asks to wait after a refusal.

The grammar is narrower than what Python's ``float`` and ``email.utils`` take, because a hint is obeyed:
digits with an optional fraction, or one of the three dates of RFC 9110 (5.6.7). Whatever is not that
(``-5``, ``nan``, ``1e400``, ``0x10``, ``1_000``, ``tomorrow``), and whatever is not in the future, is no
hint, and the caller waits by its own back-off (docs/development/resilience.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from llmopt.values.calls import RateLimit, RateLimits

_MAX_BODY: Final = 1_000
"""Characters; no list of real hints is longer."""
_LONGEST_NUMBER: Final = 15
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_DAY_NAME: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = "|".join(_MONTHS)
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = (
    # Sun, 06 Nov 1994 08:49:37 GMT
    re.compile(rf"{_DAY_NAME}, (?P<day>[0-9]{{2}}) (?P<month>{_MONTH}) (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    # Sunday, 06-Nov-94 08:49:37 GMT
    re.compile(rf"{_DAY_NAME}, (?P<day>[0-9]{{2}})-(?P<month>{_MONTH})-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    # Sun Nov  6 08:49:37 1994
    re.compile(rf"{_DAY_NAME} (?P<month>{_MONTH}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
_WEEKDAY_ALONE: Final = re.compile(_DAY_NAME)


def parse_retry_after(headers: Mapping[str, str], wall_now: float) -> float | None:
    """Seconds to wait by the headers of an answer, or None when they give no usable hint.

    ``retry-after-ms`` goes before ``retry-after``; of several values the largest valid one counts. A
    date is measured against the answer's own ``Date`` if it has one, so that a wrong clock on
    either side does no harm. The value is not capped: whether it is too long is the caller's to say.

    Args:
        headers: lower-case names; repeated ones joined with ", ".
        wall_now: seconds since 1970, for dates in an answer without ``Date``.
    """
    milliseconds = _largest(_numbers(headers.get("retry-after-ms", "")))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    date = parse_http_date(headers.get("date", ""), wall_now)
    now = wall_now if date is None else date
    return _largest(_hints(value, now, wall_now))


def _largest(found: Iterator[float]) -> float | None:
    return max((seconds for seconds in found if seconds > 0), default=None)


def _numbers(value: str) -> Iterator[float]:
    for part in split_values(value):
        if len(part) <= _LONGEST_NUMBER and _NUMBER.fullmatch(part):
            yield float(part)


def _hints(value: str, now: float, wall_now: float) -> Iterator[float]:
    yield from _numbers(value)
    for part in split_values(value):
        moment = parse_http_date(part, wall_now)
        if moment is not None:
            yield moment - now


def split_values(value: str) -> list[str]:
    """The values of a header that came several times, each without the blanks around it.

    They were joined with a comma *and* a blank, which tells ``1, 2`` (two headers) from ``1,2`` (one, and
    nonsense), but not the comma of a date from one between two values: a weekday in front of it does.
    """
    if len(value) > _MAX_BODY:
        return []
    parts: list[str] = []
    for part in value.split(", "):
        if parts and _WEEKDAY_ALONE.fullmatch(parts[-1]):
            parts[-1] += ", " + part.rstrip(" \t")
        else:
            parts.append(part.strip(" \t"))
    return parts


def parse_http_date(value: str, wall_now: float) -> float | None:
    """Seconds since 1970 of a date in one of the three forms of HTTP, or None.

    A weekday that does not fit the date is forgiven, a missing time zone is not.

    Args:
        value: one date.
        wall_now: seconds since 1970; a year of two digits means the last one with these digits that is not
            more than 50 years ahead (RFC 9110, 5.6.7).
    """
    for form in _DATES:
        match = form.fullmatch(value)
        if match is not None:
            return _timestamp(match.groupdict(), wall_now)
    return None


def _timestamp(field: dict[str, str], wall_now: float) -> float | None:
    year = int(field["year"])
    if len(field["year"]) == 2:
        year = _century(year, datetime.fromtimestamp(wall_now, UTC).year)
    month = _MONTHS.index(field["month"]) + 1
    # A leap second (60) is a moment that Python's calendar lacks.
    second = 59 if field["second"] == "60" else int(field["second"])
    try:
        moment = datetime(
            year, month, int(field["day"]), int(field["hour"]), int(field["minute"]), second, tzinfo=UTC
        )
    except ValueError:
        return None
    return moment.timestamp()


def _century(digits: int, this_year: int) -> int:
    latest = this_year + 50
    return latest - (latest - digits) % 100


# What the headers of an answer say of rate limits: pure, tolerant, and never believing nonsense.
#
# Every format of docs/development/provider-facts.md#retry-after-and-rate-limit-headers is read, in any header: Go durations (``1m30.951s``), bare seconds, RFC 3339
# moments, Unix seconds and milliseconds, and the IETF draft's lists. A value that is negative, not
# finite, over 1e9, or a reset more than a day away is taken for absent (docs/development/resilience.md): a parser
# of headers raises nothing, whatever a server sends.
#
# `parse_rate_limits` reads the common ``x-ratelimit-*`` family and the IETF draft. A plugin whose
# provider names its headers otherwise builds the same value with `rate_limit` from its own names.
# How long to wait after a refusal is another matter: `llmopt.policies.retry_after`.

__all__ = [
    "parse_amount",
    "parse_duration",
    "parse_ietf",
    "parse_rate_limits",
    "parse_reset",
    "parse_retry_after",
    "rate_limit",
]
_MOST: Final = 1e9
_DAY: Final = 86_400.0
_MAX_HEADER: Final = 200
"""Characters; a longer header holds no rate limit."""
_HEADER_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?", re.ASCII)
_DURATION: Final = re.compile(r"(?:[0-9]{1,15}(?:\.[0-9]{1,15})?(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_DURATION_PART: Final = re.compile(r"([0-9.]+)([a-zµμ]+)", re.ASCII)
_UNIT: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # the micro sign
    "\u03bcs": 1e-6,  # the Greek letter
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)
_ITEM: Final = re.compile(r'(?:"[^"]*"|[^",])+')
_PARAMETER: Final = re.compile(r";\s*([a-z]+)\s*=\s*([0-9.]+)", re.ASCII)
_NAME: Final = re.compile(r'"([^"]*)"')
# Numbers of this size cannot be seconds to wait; they are moments (2001-09-09 is 1e9, in ms 1e12).
_UNIX_SECONDS: Final = 1e8
_UNIX_MILLISECONDS: Final = 1e11
_SHORTEST_MOMENT: Final = len("100000000")


def parse_rate_limits(headers: Mapping[str, str], wall_now: float) -> RateLimits:
    """The limits that an answer tells in the common headers.

    A limit counts as one per minute, as all of this family's are; one whose header names neither
    requests nor tokens says nothing of its window, so only its rest and its reset are taken.

    Args:
        headers: lower-case names; repeated ones joined with ", ".
        wall_now: seconds since 1970, for resets that are moments; the answer's own ``Date`` is
            preferred where there is one, so that a wrong clock on either side does no harm.
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
        # The second spelling was seen on the wire (docs/development/provider-facts.md#retry-after-and-rate-limit-headers).
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
    """One limit from the headers that tell of it; None when none of them says anything usable.

    Of several names the first that is there and makes sense counts.

    Args:
        headers: lower-case names; repeated ones joined with ", ".
        limit: names of headers with the allowance per window. Less than 1 means "unknown".
        remaining: names of headers with what is left.
        reset: names of headers with the time of renewal, in any of the formats.
        wall_now: seconds since 1970.
        window_s: seconds that the limit is counted over.
    """
    allowance = _first(headers, limit, _least_amount)
    if allowance is not None and allowance < 1:
        allowance = None
    left = _first(headers, remaining, _least_amount)
    renewal = _first(headers, reset, lambda value: _latest_reset(value, headers, wall_now))
    if allowance is None and left is None and renewal is None:
        return None
    return RateLimit(limit=allowance, remaining=left, reset_s=renewal, window_s=window_s)


def parse_amount(value: str) -> float | None:
    """A number of requests or tokens: 0 to 1e9, else None."""
    if len(value) > _MAX_HEADER or not _HEADER_NUMBER.fullmatch(value.strip(" \t")):
        return None
    amount = float(value)
    return amount if amount <= _MOST else None


def parse_reset(value: str, wall_now: float) -> float | None:
    """Seconds until a limit is whole again, from any format in use; None for nonsense.

    A moment that is past gives 0; more than a day ahead is not believed.
    """
    text = value.strip(" \t")
    if len(text) > _MAX_HEADER:
        return None
    if _HEADER_NUMBER.fullmatch(text):
        seconds: float | None = _from_number(float(text), wall_now)
    elif _MOMENT.fullmatch(text):
        seconds = _from_moment(text, wall_now)
    else:
        seconds = parse_duration(text)
    return None if seconds is None or seconds > _DAY else seconds


def parse_duration(value: str) -> float | None:
    """Seconds of a Go duration such as ``6m0s``, ``12ms`` or ``1m30.951s``; None if it is none."""
    text = value.strip(" \t")
    if len(text) > _MAX_HEADER or not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNIT[unit] for number, unit in _DURATION_PART.findall(text))


def parse_ietf(limits: str, policies: str = "") -> RateLimit | None:
    """The tightest of the lists of the IETF draft "RateLimit header fields for HTTP".

    Args:
        limits: ``ratelimit``, such as ``"api";r=999;t=295``.
        policies: ``ratelimit-policy``, such as ``"fixed window";"api";q=1000;w=300``.
    """
    rules = [(set(_NAME.findall(item)), _parameters(item)) for item in _items(policies)]
    found = [_combine(item, rules) for item in _items(limits)]
    told = [limit for limit in found if limit is not None]
    return min(told, key=_share_left, default=None)


def _combine(item: str, rules: list[tuple[set[str], dict[str, float]]]) -> RateLimit | None:
    mine = _parameters(item)
    if "r" not in mine:
        return None
    names = set(_NAME.findall(item))
    rule = next((values for named, values in rules if names & named), {})
    window = rule.get("w")
    return RateLimit(
        limit=(rule.get("q") or None) if window else None,
        remaining=mine["r"],
        reset_s=mine["t"] if mine.get("t", math.inf) <= _DAY else None,
        window_s=window or 60.0,
    )


def _share_left(limit: RateLimit) -> float:
    return (limit.remaining or 0.0) / (limit.limit or _MOST)


def _items(value: str) -> list[str]:
    return _ITEM.findall(value[:_MAX_HEADER])


def _parameters(item: str) -> dict[str, float]:
    pairs = ((name, parse_amount(number)) for name, number in _PARAMETER.findall(item))
    return {name: number for name, number in pairs if number is not None}


def _first(
    headers: Mapping[str, str], names: Iterable[str], parse: Callable[[str], float | None]
) -> float | None:
    for name in names:
        value = headers.get(name)
        if value is not None and (parsed := parse(value)) is not None:
            return parsed
    return None


def _least_amount(value: str) -> float | None:
    if ", " not in value:
        return parse_amount(value)
    return min((amount for v in split_values(value) if (amount := parse_amount(v)) is not None), default=None)


def _latest_reset(value: str, headers: Mapping[str, str], wall_now: float) -> float | None:
    # Only what is long enough for a moment has use for the time of the answer.
    now = _server_time(headers, wall_now) if len(value) >= _SHORTEST_MOMENT else wall_now
    if ", " not in value:
        return parse_reset(value, now)
    found = (parse_reset(v, now) for v in split_values(value))
    return max((seconds for seconds in found if seconds is not None), default=None)


def _server_time(headers: Mapping[str, str], wall_now: float) -> float:
    date = headers.get("date")
    moment = parse_http_date(date, wall_now) if date is not None else None
    return wall_now if moment is None else moment


def _from_number(number: float, wall_now: float) -> float:
    if number >= _UNIX_MILLISECONDS:
        return max(0.0, number / 1000 - wall_now)
    if number >= _UNIX_SECONDS:
        return max(0.0, number - wall_now)
    return number


def _from_moment(text: str, wall_now: float) -> float | None:
    try:
        return max(0.0, datetime.fromisoformat(text.upper()).timestamp() - wall_now)
    except (ValueError, OverflowError):
        return None
