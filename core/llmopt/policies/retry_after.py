"""Response headers about waiting and rate limits: ``Retry-After``, ``x-ratelimit-*``, and the IETF draft.

All formats that servers use are read (docs/development/provider-facts.md), and nothing here raises, whatever a
server sends. A value that makes no sense is treated as missing. The grammar of numbers and dates is narrower than
that of Python's ``float`` and ``email.utils``, because llmopt obeys what it reads: ``-5``, ``nan``, ``1e400``,
``0x10``, ``1_000`` and ``tomorrow`` are no times to wait for.

Pure: no I/O, no state, and no clock, because the wall time is an argument.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Final

from llmopt.values.calls import RateLimit, RateLimits

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
    date = parse_http_date(headers.get("date", ""), wall_now)
    now = wall_now if date is None else date
    return _largest(_waits(value, now, wall_now))


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


_MAX_AMOUNT: Final = 1e9
_DAY_S: Final = 86_400.0
_MAX_HEADER: Final = 200
"""Characters; a longer header holds no rate limit."""
_HEADER_NUMBER: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?", re.ASCII)
_DURATION: Final = re.compile(r"(?:[0-9]{1,15}(?:\.[0-9]{1,15})?(?:ns|us|µs|μs|ms|s|m|h))+", re.ASCII)
_DURATION_PART: Final = re.compile(r"([0-9.]+)([a-zµμ]+)", re.ASCII)
_UNIT_S: Final = {
    "ns": 1e-9,
    "us": 1e-6,
    "\u00b5s": 1e-6,  # the micro sign
    "\u03bcs": 1e-6,  # the Greek letter
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
}
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
    elif _RFC_3339.fullmatch(text):
        seconds = _from_moment(text, wall_now)
    else:
        seconds = parse_duration(text)
    return None if seconds is None or seconds > _DAY_S else seconds


def parse_duration(value: str) -> float | None:
    """Seconds of a Go duration such as ``6m0s``, ``12ms`` or ``1m30.951s``, None if it is none."""
    text = value.strip(" \t")
    if len(text) > _MAX_HEADER or not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _DURATION_PART.findall(text))


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
    now = _server_time(headers, wall_now) if len(value) >= _MIN_MOMENT_LENGTH else wall_now
    if ", " not in value:
        return parse_reset(value, now)
    resets = (parse_reset(v, now) for v in split_values(value))
    return max((seconds for seconds in resets if seconds is not None), default=None)


def _server_time(headers: Mapping[str, str], wall_now: float) -> float:
    date = headers.get("date")
    moment = parse_http_date(date, wall_now) if date is not None else None
    return wall_now if moment is None else moment


def _from_number(number: float, wall_now: float) -> float:
    if number >= _MIN_UNIX_MILLISECONDS:
        return max(0.0, number / 1000 - wall_now)
    if number >= _MIN_UNIX_SECONDS:
        return max(0.0, number - wall_now)
    return number


def _from_moment(text: str, wall_now: float) -> float | None:
    try:
        return max(0.0, datetime.fromisoformat(text.upper()).timestamp() - wall_now)
    except (ValueError, OverflowError):
        return None
