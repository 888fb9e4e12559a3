"""How long a server asks to wait after a refusal.

The grammar is narrower than what Python's ``float`` and ``email.utils`` take, because a hint is obeyed:
digits with an optional fraction, or one of the three dates of RFC 9110 (5.6.7). Whatever is not that
(``-5``, ``nan``, ``1e400``, ``0x10``, ``1_000``, ``tomorrow``), and whatever is not in the future, is no
hint, and the caller waits by its own back-off (RELIABILITY.md 2.2, H01 to H05).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

_LONGEST: Final = 1_000
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
    if len(value) > _LONGEST:
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
