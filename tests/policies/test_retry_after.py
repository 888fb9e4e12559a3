"""Retry-After and rate limit headers in every known form, and malformed ones."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.compatible.rate_limits import (
    parse_amount,
    parse_duration,
    parse_ietf,
    parse_rate_limits,
    parse_reset,
    rate_limit,
)
from llmopt.policies.retry_after import (
    exceeded_by,
    parse_http_date,
    parse_retry_after,
    reset_wait,
    split_values,
)
from llmopt.values.calls import RateLimit, RateLimits

NOW = 1_790_000_000.0


def date(offset: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + offset, UTC), usegmt=True)


@pytest.mark.row("H01", "H04", "H05")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1"}, 1.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 3 "}, 3.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "1, 5"}, 5.0),
        ({"retry-after": date(30)}, 30.0),
        # The server's own clock is an hour ahead: its date counts from its Date.
        ({"retry-after": date(3_630), "date": date(3_600)}, 30.0),
        ({"retry-after": "Sun Nov  6 08:49:37 1994"}, None),
        ({"retry-after": date(-30)}, None),
        ({}, None),
    ],
)
def test_retry_after_is_parsed(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds first, then seconds, then dates; of several the largest."""
    assert parse_retry_after(headers, NOW) == seconds


@pytest.mark.row("H02")
@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-5",
        "nan",
        "inf",
        "1e400",
        "0x10",
        "1_000",
        "١٢",
        "",
        "tomorrow",
        "9" * 1_000_000,
        "+3",
        "3s",
        "³",
    ],
)
def test_an_absurd_retry_after_is_ignored(text: str) -> None:
    """The value is obeyed, so its grammar is narrow."""
    assert parse_retry_after({"retry-after": text}, NOW) is None


@given(st.text(max_size=60))
def test_no_retry_after_header_raises(text: str) -> None:
    wait = parse_retry_after({"retry-after": text, "date": text}, NOW)
    assert wait is None or wait > 0
    parse_rate_limits(
        {
            "x-ratelimit-limit-requests": text,
            "x-ratelimit-remaining-tokens": text,
            "x-ratelimit-reset-requests": text,
            "ratelimit": text,
            "ratelimit-policy": text,
        },
        NOW,
    )


@pytest.mark.row("H16")
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("12ms", 0.012), ("1m30.951s", 90.951), ("1h", 3_600.0), ("x", None)],
)
def test_durations_in_go_syntax(text: str, seconds: float | None) -> None:
    result = parse_duration(text)
    assert result == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.row("H16")
def test_the_usual_rate_limit_headers() -> None:
    """Limit, remaining and reset, of requests and of tokens."""
    result = parse_rate_limits(
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "150000",
            "x-ratelimit-remaining-tokens": "149984",
            "x-ratelimit-reset-tokens": "6m0s",
        },
        NOW,
    )
    assert result.requests is not None
    assert (result.requests.limit, result.requests.remaining, result.requests.reset_s) == (60, 59, 1)
    assert result.tokens is not None
    assert (result.tokens.limit, result.tokens.remaining, result.tokens.reset_s) == (150_000, 149_984, 360)


@pytest.mark.row("H16")
@pytest.mark.parametrize("value", ["-1", "nan", "1e30", "", "many"])
def test_invalid_numbers_are_no_limit(value: str) -> None:
    result = parse_rate_limits({"x-ratelimit-limit-requests": value}, NOW)
    assert result.requests is None or result.requests.limit is None


# Headers with limits and waits: every format in use, and invalid ones.

SERVER_NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT
HOUR_FAST = "Sun, 06 Nov 1994 09:49:37 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("12ms", 0.012),
        ("1m30.951s", 90.951),
        ("1h2m3s", 3_723),
        ("250us", 0.00025),
        ("250\u00b5s", 0.00025),
        ("250\u03bcs", 0.00025),
        ("7ns", 7e-9),
        ("0s", 0),
        (" 2s\t", 2),
        ("10", 10),
        ("300", 300),
        ("0", 0),
        ("1.5", 1.5),
        ("86400", 86_400),
        ("86401", None),
        ("25h", None),
        ("1994-11-06T08:50:37Z", 60),
        ("1994-11-06t08:50:37.5z", 60.5),
        ("1994-11-06 09:50:37+01:00", 60),
        ("1994-11-06T08:00:00Z", 0),
        ("1995-11-06T08:00:00Z", None),
        ("1994-13-06T08:50:37Z", None),
        ("784111807", 30),
        ("784111807000", 30),
        ("784111000", 0),
        ("784111000000", 0),
        ("-1", None),
        ("-1s", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("1_000", None),
        ("١٢", None),
        ("1 s", 1),
        ("2 minutes", 120),
        ("1 parsec", None),
        ("s", None),
        ("", None),
        ("1" * 300, None),
        ("1s" * 150, None),
        ("soon", None),
    ],
)
def test_resets(value: str, seconds: float | None) -> None:
    """Go durations, plain seconds, RFC 3339, Unix seconds and milliseconds."""
    result = parse_reset(value, SERVER_NOW)
    assert result == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("value", "amount"),
    [
        ("60", 60),
        ("0", 0),
        (" 59.5 ", 59.5),
        ("1000000000", 1e9),
        ("1000000001", None),
        ("-1", None),
        ("1e30", None),
        ("NaN", None),
        ("", None),
        ("9" * 400, None),
        ("60;w=60", None),
    ],
)
def test_amounts(value: str, amount: float | None) -> None:
    """From 0 to 1,000,000,000."""
    assert parse_amount(value) == amount


def test_a_plain_number_is_no_duration() -> None:
    assert parse_duration("6m0s") == 360
    assert parse_duration("10") is None
    assert parse_duration("1s" * 101) is None


FAMILY = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-tokens": "6m0s",
}


def test_the_common_headers() -> None:
    """Requests and tokens, per minute."""
    result = parse_rate_limits(FAMILY, SERVER_NOW)
    assert result.requests == RateLimit(limit=60, remaining=59, reset_s=1)
    assert result.tokens == RateLimit(limit=150_000, remaining=149_984, reset_s=360)


@pytest.mark.parametrize(
    ("headers", "requests", "tokens"),
    [
        ({}, None, None),
        ({"x-ratelimit-remaining-tokens": "5"}, None, RateLimit(remaining=5)),
        ({"x-rate-limit-reset-tokens": "300"}, None, RateLimit(reset_s=300)),
        (
            {"x-ratelimit-limit-requests": "0", "x-ratelimit-remaining-requests": "7"},
            RateLimit(remaining=7),
            None,
        ),
        ({"x-ratelimit-limit-requests": "-1"}, None, None),
        ({"x-ratelimit-limit-requests": "600, 500"}, RateLimit(limit=500), None),
        ({"x-ratelimit-reset-requests": "1s, 3s, x"}, RateLimit(reset_s=3), None),
        (
            {"x-ratelimit-limit": "5", "x-ratelimit-remaining": "3", "x-ratelimit-reset": "784111787"},
            RateLimit(remaining=3, reset_s=10),
            None,
        ),
        ({"ratelimit-remaining": "4", "ratelimit-reset": "9"}, RateLimit(remaining=4, reset_s=9), None),
        ({"x-ratelimit-reset-requests": "784115387", "date": HOUR_FAST}, RateLimit(reset_s=10), None),
        ({"x-ratelimit-reset-requests": "10", "date": HOUR_FAST}, RateLimit(reset_s=10), None),
        (
            {"x-ratelimit-reset-tokens": "1994-11-06T08:49:57Z", "date": "garbage"},
            None,
            RateLimit(reset_s=20),
        ),
        (
            {"ratelimit": '"api";r=999;t=295', "ratelimit-policy": '"fixed window";"api";q=1000;w=300'},
            RateLimit(limit=1_000, remaining=999, reset_s=295, window_s=300),
            None,
        ),
        ({"ratelimit-policy": '"api";q=5;w=1'}, None, None),
    ],
)
def test_other_header_forms(
    headers: dict[str, str], requests: RateLimit | None, tokens: RateLimit | None
) -> None:
    """Only some of the headers, other spellings, joined headers, times relative to the Date header."""
    result = parse_rate_limits(headers, SERVER_NOW)
    assert result.requests == requests
    assert result.tokens == tokens


@pytest.mark.parametrize(
    ("limits", "policies", "expected"),
    [
        ('"a";r=5', "", RateLimit(remaining=5)),
        ('"a";r=5;t=90000', "", RateLimit(remaining=5)),
        ('"a";t=5', "", None),
        ('"a";r=5', '"a";q=10', RateLimit(remaining=5)),
        ('"a";r=5', '"a";q=0;w=10', RateLimit(remaining=5, window_s=10)),
        ('"a";r=5', '"b";q=10;w=1', RateLimit(remaining=5)),
        (
            '"a";r=50, "b";r=4',
            '"a";q=100;w=60,"b";q=10;w=1',
            RateLimit(limit=10, remaining=4, window_s=1),
        ),
        ('"a;r=1,x";r=7', "", RateLimit(remaining=7)),
        ("", "", None),
        ('"' * 100, "", None),
    ],
)
def test_the_ietf_draft_headers(limits: str, policies: str, expected: RateLimit | None) -> None:
    """The tightest of a list; a limit without its window is none."""
    assert parse_ietf(limits, policies) == expected


def test_a_plugin_names_its_own_headers() -> None:
    """The first one that is present and valid counts."""
    result = rate_limit(
        {"a": "x", "b": "5", "r": "2"},
        limit=("a", "b"),
        remaining=("r",),
        reset=("none",),
        wall_now=SERVER_NOW,
        window_s=1,
    )
    assert result == RateLimit(limit=5, remaining=2, window_s=1)
    assert rate_limit({}, limit=("a",), wall_now=SERVER_NOW) is None


@pytest.mark.row("H01", "H02", "H03", "H04", "H05")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "1"}, 1),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": " 3 "}, 3),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "0", "retry-after": "9"}, 9),
        ({"retry-after-ms": "x", "retry-after": "9"}, 9),
        ({"retry-after-ms": "250, 750"}, 0.75),
        ({"retry-after": "1, 5, 2"}, 5),
        ({"retry-after": "1, tomorrow"}, 1),
        ({"retry-after": "1000000000"}, 1e9),
        ({"retry-after": "123456789012345"}, 123_456_789_012_345),
        ({"retry-after": "1234567890123456"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07 GMT"}, 30),
        ({"retry-after": "Sunday, 06-Nov-94 08:50:07 GMT"}, 30),
        ({"retry-after": "Sun Nov  6 08:50:07 1994"}, 30),
        ({"retry-after": "Mon, 06 Nov 1994 08:50:07 GMT"}, 30),
        ({"retry-after": "Sun, 06 Nov 1994 09:50:07 GMT", "date": HOUR_FAST}, 30),
        ({"retry-after": "2, Sun, 06 Nov 1994 08:50:07 GMT, 4"}, 30),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:47 GMT, Sun, 06 Nov 1994 08:50:07 GMT"}, 30),
        ({"retry-after": "Fri, 31 Dec 9999 23:59:59 GMT"}, 253_402_300_799 - SERVER_NOW),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:00 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 08:50:07"}, None),
        ({"retry-after": "Xyz, 06 Nov 1994 08:50:07 GMT"}, None),
        ({"retry-after": "Sun, 31 Feb 1995 08:50:07 GMT"}, None),
        ({"retry-after": "Sun, 06 Nov 1994 25:50:07 GMT"}, None),
        ({}, None),
        *(
            ({"retry-after": nonsense}, None)
            for nonsense in (
                "0",
                "0.0",
                "-5",
                "+5",
                "nan",
                "inf",
                "1e400",
                "0x10",
                "1_000",
                "١٢",
                "1,2",
                "",
                "tomorrow",
                ".5",
                "5.",
                "9" * 1_000_000,
            )
        ),
    ],
)
def test_retry_after_forms(headers: dict[str, str], seconds: float | None) -> None:
    """Digits or an HTTP date; the largest valid one; milliseconds first."""
    result = parse_retry_after(headers, SERVER_NOW)
    assert result == (None if seconds is None else pytest.approx(seconds, abs=1e-6))


@pytest.mark.parametrize(
    ("value", "moment"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", SERVER_NOW),
        ("Sat, 31 Dec 2016 23:59:60 GMT", 1_483_228_799),
        ("Sunday, 06-Nov-44 08:49:37 GMT", 2_362_034_977),
        ("Sunday, 06-Nov-45 08:49:37 GMT", -762_189_023),
        ("Sun Nov 16 08:49:37 1994", SERVER_NOW + 864_000),
        ("1994-11-06", None),
        ("", None),
    ],
)
def test_http_dates(value: str, moment: float | None) -> None:
    """The three forms; a year of two digits lies at most 50 years ahead."""
    assert parse_http_date(value, SERVER_NOW) == moment


def test_joined_values_are_split_outside_dates() -> None:
    """The comma of a date does not separate headers."""
    assert split_values("1,2") == ["1,2"]
    assert split_values("1, Sun, 06 Nov 1994 08:49:37 GMT,  3\t") == [
        "1",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "3",
    ]
    assert split_values("x" * 1_001) == []
    assert split_values("x" * 1_000) == ["x" * 1_000]


@pytest.mark.row("H16")
@given(st.text(max_size=80), st.text(max_size=80))
def test_no_rate_limit_header_raises(value: str, date: str) -> None:
    names = [*FAMILY, "ratelimit", "ratelimit-policy", "retry-after", "retry-after-ms", "x-ratelimit-reset"]
    headers = dict.fromkeys(names, value) | {"date": date}
    result = parse_rate_limits(headers, SERVER_NOW)
    for limit in (result.requests, result.tokens):
        if limit is not None:
            assert limit.remaining is None or 0 <= limit.remaining <= 1e9
            assert limit.limit is None or 0 < limit.limit <= 1e9
            assert limit.reset_s is None or 0 <= limit.reset_s <= 86_400
    wait = parse_retry_after(headers, SERVER_NOW)
    assert wait is None or wait > 0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("99999999", None),
        ("100000000", 0),
        ("99999999999", None),
        ("100000000000", 0),
        ("1s" * 4, 4),
        ("1s" * 5, None),
    ],
)
def test_limits_of_numbers_and_lengths(value: str, seconds: float | None) -> None:
    """Where seconds end and Unix times begin, and which values are too long."""
    assert parse_reset(value, SERVER_NOW) == seconds


def test_the_tightest_limit_has_the_smallest_remaining_share() -> None:
    """Not the smallest number; a reset of a whole day is accepted."""
    result = parse_ietf('"a";r=50;t=86400, "b";r=40;t=1', '"a";q=1000;w=60,"b";q=50;w=1')
    assert result == RateLimit(limit=1_000, remaining=50, reset_s=86_400)


# The rate limits in the headers of a refusal.


@pytest.mark.parametrize(
    ("requests", "tokens", "exceeded"),
    [
        (0, 5_000, "requests"),
        (5, 99, "tokens"),
        (5, 100, None),
        (1, 5_000, None),
        (5, 0, "tokens"),
        (0, 0, None),
        (5, 5_000, None),
        (0, None, "requests"),
        (None, None, None),
    ],
)
def test_the_limit_of_which_nothing_is_left(
    requests: float | None, tokens: float | None, exceeded: str | None
) -> None:
    limits = RateLimits(requests=RateLimit(remaining=requests), tokens=RateLimit(remaining=tokens))
    assert exceeded_by(limits, 100.0) == exceeded


@pytest.mark.parametrize(
    ("limit", "remaining", "reset_s", "wait"),
    [
        (60, 0, 2, 2),
        (None, 0, 3, 3),
        (60, 0, 53, 53),
        # A bucket that is full after a minute has room for a request after a second.
        (60, 0, 60, None),
        (60, 0, 54, None),
        (60, 6, 54, None),
        (60, 6, 50, None),
        (60, 6, 48, 48),
        (60, None, 53.5, 53.5),
        # The limit of a day, in the headers of a minute.
        (60, 0, 7_200, None),
        (60, 0, 0, None),
        (60, 0, None, None),
    ],
)
def test_the_reset_of_a_window_is_a_wait(
    limit: float | None, remaining: float | None, reset_s: float | None, wait: float | None
) -> None:
    """That of a bucket, which fills all the time, is none."""
    limits = RateLimits(requests=RateLimit(limit=limit, remaining=remaining, reset_s=reset_s))
    assert reset_wait(limits, "requests") == wait
    assert reset_wait(limits, "tokens") is None
    assert reset_wait(limits, None) is None
