"""What servers say of waiting and of limits, in every form that was seen, and in forms that nobody should obey."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.policies.batch_size import TokenEstimator
from llmopt.policies.retry_after import parse_duration, parse_rate_limits, parse_retry_after

NOW = 1_790_000_000.0


def date(offset: float) -> str:
    return format_datetime(datetime.fromtimestamp(NOW + offset, UTC), usegmt=True)


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
def test_h01_h04_h05_hints_are_read(headers: dict[str, str], seconds: float | None) -> None:
    """Milliseconds first, then seconds, then dates; of several the largest."""
    assert parse_retry_after(headers, NOW) == seconds


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
def test_h02_absurd_hints_are_none(text: str) -> None:
    """A hint is obeyed, so its grammar is narrow."""
    assert parse_retry_after({"retry-after": text}, NOW) is None


@given(st.text(max_size=60))
def test_no_header_raises(text: str) -> None:
    """Whatever a server writes."""
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1.0), ("6m0s", 360.0), ("12ms", 0.012), ("1m30.951s", 90.951), ("1h", 3_600.0), ("x", None)],
)
def test_h16_durations(text: str, seconds: float | None) -> None:
    """As Go writes them."""
    found = parse_duration(text)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_h16_the_usual_headers() -> None:
    """Limit, rest and reset, of requests and of tokens."""
    found = parse_rate_limits(
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
    assert found.requests is not None
    assert (found.requests.limit, found.requests.remaining, found.requests.reset_s) == (60, 59, 1)
    assert found.tokens is not None
    assert (found.tokens.limit, found.tokens.remaining, found.tokens.reset_s) == (150_000, 149_984, 360)


@pytest.mark.parametrize("value", ["-1", "nan", "1e30", "", "many"])
def test_h16_numbers_that_mean_nothing(value: str) -> None:
    """Are no limit."""
    found = parse_rate_limits({"x-ratelimit-limit-requests": value}, NOW)
    assert found.requests is None or found.requests.limit is None


def test_estimates_are_corrected_by_what_answers_report() -> None:
    """After some answers the estimate is near, however wrong it began."""
    estimator = TokenEstimator()
    texts = ["some words in a row"] * 20
    for _ in range(40):
        estimated = sum(map(estimator.estimate, texts))
        estimator.learn(estimated, 20 * 12)
    assert abs(estimator.estimate(texts[0]) - 12) <= 2
    assert estimator.estimate("x") >= 1
