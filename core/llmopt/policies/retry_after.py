"""Waits that headers ask for: ``Retry-After``, dates, and what the rate limits of a refusal say.

`llmopt.compatible.rate_limits` reads the headers about rate limits; here is what follows from them.

All formats that servers use are read (docs/development/provider-facts.md), and nothing here raises, whatever a
server sends. A value that makes no sense is treated as missing. The grammar of numbers and dates is narrower than
that of Python's ``float`` and ``email.utils``, because llmopt obeys what it reads: ``-5``, ``nan``, ``1e400``,
``0x10``, ``1_000`` and ``tomorrow`` are no times to wait for.

Pure: no I/O, no state, and no clock, because the wall time is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from llmopt.values.calls import Dimension, RateLimit, RateLimits

_MAX_RETRY_AFTER: Final = 1_000
"""Characters; no list of real values is longer."""
_MAX_DIGITS: Final = 15
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?", re.ASCII)
_DAY_NAME: Final = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)"
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH: Final = "|".join(_MONTHS)
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_HTTP_DATES: Final = (
    # Sun, 06 Nov 1994 08:49:37 GMT
    re.compile(rf"{_DAY_NAME}, (?P<day>[0-9]{{2}}) (?P<month>{_MONTH}) (?P<year>[0-9]{{4}}) {_TIME} GMT"),
    # Sunday, 06-Nov-94 08:49:37 GMT
    re.compile(rf"{_DAY_NAME}, (?P<day>[0-9]{{2}})-(?P<month>{_MONTH})-(?P<year>[0-9]{{2}}) {_TIME} GMT"),
    # Sun Nov  6 08:49:37 1994
    re.compile(rf"{_DAY_NAME} (?P<month>{_MONTH}) (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})"),
)
_WEEKDAY_ALONE: Final = re.compile(_DAY_NAME)


def parse_retry_after(headers: Mapping[str, str], wall_now: float) -> float | None:
    """Seconds to wait by the headers of a response, None if they give no usable value.

    ``retry-after-ms`` goes before ``retry-after``; of several values the largest valid one counts. A date is
    measured against the ``Date`` of the response, if it has one, so that a wrong clock on either side does no
    harm. The value is not capped: the caller decides whether it is too long.

    Args:
        headers: names in lower case; repeated ones joined with ", ".
        wall_now: seconds since 1970, for a response without ``Date``.
    """
    milliseconds = _largest(_numbers(headers.get("retry-after-ms", "")))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    return _largest(_waits(value, server_time(headers, wall_now), wall_now))


def server_time(headers: Mapping[str, str], wall_now: float) -> float:
    """Seconds since 1970 by the ``Date`` of a response; ``wall_now`` where it has none that is valid."""
    date = headers.get("date")
    moment = parse_http_date(date, wall_now) if date is not None else None
    return wall_now if moment is None else moment


def _largest(waits: Iterator[float]) -> float | None:
    return max((seconds for seconds in waits if seconds > 0), default=None)


def _numbers(value: str) -> Iterator[float]:
    for text in split_values(value):
        if len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text):
            yield float(text)


def _waits(value: str, now: float, wall_now: float) -> Iterator[float]:
    yield from _numbers(value)
    for text in split_values(value):
        moment = parse_http_date(text, wall_now)
        if moment is not None:
            yield moment - now


def split_values(value: str) -> list[str]:
    """The values of a header that was sent several times, without surrounding blanks.

    They were joined with a comma and a blank. So ``1, 2`` are two headers, while ``1,2`` is one, and invalid. The
    comma of a date is recognised by the weekday before it.
    """
    if len(value) > _MAX_RETRY_AFTER:
        return []
    values: list[str] = []
    for text in value.split(", "):
        if values and _WEEKDAY_ALONE.fullmatch(values[-1]):
            values[-1] += ", " + text.rstrip(" \t")
        else:
            values.append(text.strip(" \t"))
    return values


def parse_http_date(value: str, wall_now: float) -> float | None:
    """Seconds since 1970 of a date in one of the three formats of RFC 9110 (5.6.7), or None.

    A weekday that does not fit the date is accepted, a missing time zone is not.

    Args:
        value: one date.
        wall_now: seconds since 1970. A year of two digits is the latest year with these digits that is at most 50
            years ahead (RFC 9110, 5.6.7).
    """
    for date_format in _HTTP_DATES:
        match = date_format.fullmatch(value)
        if match is not None:
            return _timestamp(match.groupdict(), wall_now)
    return None


def _timestamp(parts: dict[str, str], wall_now: float) -> float | None:
    year = int(parts["year"])
    if len(parts["year"]) == 2:
        latest = datetime.fromtimestamp(wall_now, UTC).year + 50
        year = latest - (latest - year) % 100
    month = _MONTHS.index(parts["month"]) + 1
    # Python's datetime has no leap second (60).
    second = 59 if parts["second"] == "60" else int(parts["second"])
    try:
        moment = datetime(
            year, month, int(parts["day"]), int(parts["hour"]), int(parts["minute"]), second, tzinfo=UTC
        )
    except ValueError:
        return None
    return moment.timestamp()


# Rate-limit headers.

_CONTINUOUS: Final = 0.9
"""A reset of at least this part of the time in which the whole allowance flows in may be that of a bucket."""


def exceeded_by(limits: RateLimits, tokens: float = 1.0) -> Dimension | None:
    """The limit of which the headers of a refusal say that too little is left; None if that is none, or several.

    Args:
        limits: as the headers state them.
        tokens: of the request.
    """
    needed: tuple[tuple[Dimension, RateLimit | None, float], ...] = (
        ("requests", limits.requests, 1.0),
        ("tokens", limits.tokens, max(1.0, tokens)),
        ("output_tokens", limits.output_tokens, 1.0),
    )
    empty = [
        name
        for name, limit, cost in needed
        if limit is not None and limit.remaining is not None and limit.remaining < cost
    ]
    return empty[0] if len(empty) == 1 else None


def reset_wait(limits: RateLimits, exceeded: Dimension | None) -> float | None:
    """Seconds until the exceeded limit is renewed at once; None if it flows in, or if the headers do not say.

    A window begins anew at its reset, and nothing may be sent before. A bucket fills all the time, and its reset is
    the moment when it is full, far too late. The headers are the same; they are told apart by the time that the whole
    allowance takes to flow in.
    """
    limit: RateLimit | None = getattr(limits, exceeded) if exceeded is not None else None
    if limit is None or not limit.reset_s:
        return None
    if limit.limit is not None:
        missing = limit.limit - (limit.remaining or 0.0)
        if limit.reset_s >= _CONTINUOUS * missing * limit.window_s / limit.limit:
            return None
    return limit.reset_s
