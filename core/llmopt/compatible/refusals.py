"""What a refusal says besides "no": which rate limit was exceeded, and how long to wait.

Servers say both in fields of the body, in headers that a gateway quotes in the body, in the headers of the response,
and in words. Every form that was seen is read (docs/development/provider-facts.md): numbers of seconds, units in words
and short, Go durations, clock times as a duration, dates with a time zone, Unix seconds and milliseconds. The grammar
is narrower than that of Python's ``float`` and ``datetime``, because llmopt obeys what it reads, and every repetition in
it is bounded, because a server chooses the text.

Pure: no I/O, no state, and no clock: moments are measured against the ``Date`` of the response, or its arrival.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from llmopt.compatible.rate_limits import (
    SPAN,
    compiled,
    parse_duration,
    parse_moment,
    parse_rate_limits,
    parse_reset,
)
from llmopt.policies.retry_after import (
    exceeded_by,
    parse_http_date,
    parse_retry_after,
    reset_wait,
    server_time,
)
from llmopt.values.calls import Dimension
from llmopt.values.http import Failure

_MAX_WAIT_S: Final = 31 * 86_400.0
"""Longer waits are no hints: the longest window of a rate limit that was seen is a month."""
_MAX_BODY: Final = 16_384
"""Bytes of a body whose fields are read; what comes later is more often a quotation of the request."""
_MAX_FIELDS: Final = 200

# Words.

_GAP: Final = r"(?:(?!\. )[^\d!?;\n]){0,32}?"
"""Between the verb and the time: never the end of the sentence, and never another number."""
_RETRY: Final = r"\b(?:retry|retrying|again|wait|available|back ?off|cool ?down)\b|重试|等待"
_RESET: Final = r"\b(?:resets?|renews?|refresh(?:es)?|replenished)\b"


def _time_after(verb: str) -> str:
    """A pattern for the time after a verb; its groups are a span, bare seconds, a clock time and a date."""
    return (
        rf"(?:{verb}){_GAP}(?:(?<![\d.])(?P<span>{SPAN})"
        r"|(?<=in )(?P<clock>\d{1,3}:[0-5]\d:[0-5]\d)(?![\d:])"
        r"|(?P<date>\d{4}-\d\d-\d\d[t ]\d\d:\d\d:\d\d(?:\.\d{1,9})? ?(?:z|utc|gmt|[+-]\d\d:\d\d)"
        r"|[a-z]{3,9}, \d\d[ -][a-z]{3}[ -]\d{2,4} \d\d:\d\d:\d\d gmt)"
        r"|(?<=after )(?P<bare>\d{1,6}(?:\.\d{1,6})?)(?![\w/:%-])(?! ?\w))"
    )


_TIMES: Final = (
    _time_after(_RETRY),
    # "请在 30 秒后重试": the time stands before the verb.
    rf"(?P<span>{SPAN})(?:[之以]?[后後])",
    r"retry[-_ ]?after\W{1,4}(?P<bare>\d{1,6}(?:\.\d{1,6})?)(?![\w/:%-])(?! ?\w)",
    _time_after(_RESET),
)
"""From the words about the next request to those about the window, which may be renewed later."""


def stated_wait(message: str, now: float = 0.0) -> float | None:
    """Seconds that a text asks to wait: "try again in 6m0s", "wait 20 seconds", "retry after 644ms".

    Of several times that of the next request counts, before that of the window.

    Args:
        message: the server's words.
        now: seconds since 1970, for dates.

    Returns:
        The seconds; None if the text states no wait, or one of more than a month.
    """
    text = " ".join(message.split())
    for pattern in _TIMES:
        for match in compiled(pattern).finditer(text):
            if (seconds := _bounded(_seconds_of(match, now))) is not None:
                return seconds
    return None


def _seconds_of(match: re.Match[str], now: float) -> float | None:
    found = match.groupdict()
    if found.get("span"):
        return parse_duration(found["span"])
    if found.get("bare"):
        return float(found["bare"])
    if found.get("clock"):
        hours, minutes, seconds = map(int, found["clock"].split(":"))
        return hours * 3_600.0 + minutes * 60.0 + seconds
    moment = parse_http_date(found["date"], now) or parse_moment(found["date"])
    return None if moment is None else moment - now


# Fields of the body.

_FIELD: Final = (
    # Quotation marks may be escaped: a gateway quotes JSON in a message.
    r'"([a-z][a-z_-]{3,40})\\{0,7}"\s{0,9}:\s{0,9}'
    r'(?:\\{0,7}"([^"\\]{1,64})\\{0,7}"|(\d{1,15}(?:\.\d{1,15})?)(?![\w.]))'
)
_RETRY_FIELD: Final = r"(?:retry(?:after|in|delay)|wait(?:time|for)?|tryagain(?:in|after)|cooldown|backoff)(?:in)?(?P<unit>[a-z]*)"
_RESET_FIELD: Final = (
    r"(?:retryat|availableat|nextavailable(?:at)?|resets?(?:at|in|after|time|on)?)(?P<unit>[a-z]*)"
)
_FIELD_UNIT_S: Final = {
    "": 1.0, "s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 1e-3, "millis": 1e-3, "milliseconds": 1e-3,
    "min": 60.0, "mins": 60.0, "minutes": 60.0, "hours": 3_600.0,
}  # fmt: skip


def body_wait(failure: Failure) -> float | None:
    """Seconds that the body of a refusal asks to wait, in a field or in words; None if it states none.

    Where both state a wait and the field is the same without its fraction (Gemini: "45s" and 45.58 s), the words are
    more exact.
    """
    now = server_time(failure.headers, failure.received)
    fields = list(_fields(failure))
    words = stated_wait(failure.error.message, now)
    headers = {name: value for name, value in fields if "-" in name}
    wait = (
        _of_fields(_RETRY_FIELD, fields, now)
        or _bounded(parse_retry_after(headers, now))
        or (None if words is not None else _of_headers(headers, now) or _of_fields(_RESET_FIELD, fields, now))
    )
    return words if wait is None or (words is not None and wait < words < wait + 1) else wait


def _fields(failure: Failure) -> Iterator[tuple[str, str]]:
    text = failure.body[:_MAX_BODY].decode("utf-8", "replace")
    for _, match in zip(range(_MAX_FIELDS), compiled(_FIELD).finditer(text), strict=False):
        yield match[1].lower(), match[2] or match[3]


def _of_fields(names: str, fields: Iterable[tuple[str, str]], now: float) -> float | None:
    waits = [
        _bounded(_field_seconds(value, unit, now))
        for name, value in fields
        if (match := compiled(names).fullmatch(name.replace("_", "").replace("-", ""))) is not None
        and (unit := _FIELD_UNIT_S.get(match["unit"])) is not None
    ]
    return max((seconds for seconds in waits if seconds is not None), default=None)


def _field_seconds(value: str, unit: float, now: float) -> float | None:
    if unit != 1.0 and value.replace(".", "", 1).isdecimal():
        return float(value) * unit
    return parse_reset(value, now)


def _of_headers(headers: dict[str, str], now: float) -> float | None:
    """The wait of the rate-limit headers that a gateway quotes in the body."""
    limits = parse_rate_limits(headers, now)
    return reset_wait(limits, exceeded_by(limits))


def _bounded(seconds: float | None) -> float | None:
    return seconds if seconds is not None and 0 < seconds <= _MAX_WAIT_S else None


# Which limit.

_PER: Final = r"(?:s'?)?[ _-]?(?:per|/|a)[ _-]?(?:sec|min|hour|day|month)"
_OUTPUT: Final = rf"output[ _-]?token{_PER}|\botpm\b|(?:output|completion)[ _-]?tokens? (?:rate )?limit"
_TOKENS: Final = (
    rf"token{_PER}|tokens?[ _-](?:count|quota|usage|rate[ _-]?limit|limit)|(?<![a-z])i?tp[smhd](?![a-z])"
    r"|too[ _]many[ _](?:input[ _])?tokens|number of (?:\w+ )?tokens|tokensper|token_limited"
)
_REQUESTS: Final = (
    rf"(?:request|quer(?:y|ie)|call){_PER}|(?:request|call|query)s?(?:[ -]limit|[ _-](?:quota|rate[ _-]?limit|rate))(?![a-z])"
    r"|(?<![a-z])(?:rp[smhd]|qp[smhd])(?![a-z])|number of (?:api )?(?:requests|calls)|_requests\b|requestsper|request_limited"
)
_NAMES: Final[Mapping[Dimension, str]] = {"output_tokens": _OUTPUT, "tokens": _TOKENS, "requests": _REQUESTS}
"""How servers name limits in words and in codes, the longest names first."""
_CODES: Final[Mapping[str, Dimension]] = {"tokens": "tokens", "requests": "requests"}
"""Codes and types that are the name of the limit."""


def exceeded_limit(failure: Failure) -> Dimension | None:
    """The rate limit that a refusal names as exceeded; None if it names none, or several."""
    error = failure.error
    codes = " ".join(error.codes)
    exact = {_CODES[code] for code in error.codes if code in _CODES}
    # Words before other codes: Databricks answers REQUEST_LIMIT_EXCEEDED to too many tokens.
    for named in (exact, _named(error.message.lower()), _named(codes)):
        if len(named) == 1:
            return next(iter(named))
    return None


def _named(text: str) -> set[Dimension]:
    named: set[Dimension] = set()
    for dimension, pattern in _NAMES.items():
        # What one name takes is gone: "output tokens per minute" are no tokens per minute.
        text, count = compiled(pattern).subn(" ", text)
        if count:
            named.add(dimension)
    return named
