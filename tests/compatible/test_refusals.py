"""What a refusal says: how long to wait, in every form that servers use, and which rate limit was exceeded."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmopt import Failure, VerdictKind
from llmopt.compatible import Rule, classify
from llmopt.compatible.refusals import body_wait, exceeded_limit, stated_wait
from tests.support.scale import scaled

NOW = 1_790_000_000.0


def failure(body: Any, **headers: str) -> Failure:
    content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
    return Failure(status=429, headers=headers, body=content, received=NOW)


# --- Waits in words


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Limit 6000, Used 5900, Requested 400. Please try again in 2.5s. Need more tokens?", 2.5),
        ("Please retry in 45.578569677s.", 45.578569677),
        ("try again in 1m30s", 90),
        ("try again in 1h12m3.5s", 4323.5),
        ("try again in 350ms", 0.35),
        ("try again in 250µs", 0.00025),
        ("Rate limit is exceeded. Try again in 3 seconds.", 3),
        ("Please retry after 20 seconds", 20),
        ("please retry your requests after 3 minutes", 180),
        ("Request was throttled. Expected available in 26 seconds.", 26),
        ("Wait 1 minute 30 seconds", 90),
        ("Please wait for 2 minutes, 5 seconds", 125),
        ("please try again in an hour", 3600),
        ("Try again in about one minute.", 60),
        ("Back off for 15 secs", 15),
        ("a 20-second wait: retry after a 20-second pause", 20),
        ("Rate limit of 50 per 86400s exceeded for UserByModelByDay. Please wait 5631 seconds before retrying.", 5631),
        ("60 requests per 20 seconds are allowed. Retry after 7 seconds.", 7),
        ("Your limit resets in 60 seconds. Please retry in 2.5s.", 2.5),
        ("Please retry in 2.5s. Your limit resets in 60 seconds.", 2.5),
        ("Quota will be replenished in 01:22:33.", 4953),
        ("Out of volume; it resets in 2 days", 172_800),
        ("Out of volume; it resets in 31 days", 31 * 86_400),
        ("Retry-After: 12", 12),
        ("retry_after=12.5", 12.5),
        ("Too fast, retry after 12", 12),
        ("请在 30 秒后重试", 30),
        ("请等待30秒", 30),
        ("请 2 分钟之后再试", 120),
        ("30秒後に再試行してください", 30),
        (f"Try again at {datetime.fromtimestamp(NOW + 90, UTC):%Y-%m-%dT%H:%M:%SZ}", 90),
        (f"resets at {datetime.fromtimestamp(NOW + 90, UTC):%Y-%m-%d %H:%M:%S UTC}", 90),
        (f"retry after {datetime.fromtimestamp(NOW + 90, UTC):%a, %d %b %Y %H:%M:%S GMT}", 90),
    ],
)  # fmt: skip
def test_waits_in_words(message: str, seconds: float) -> None:
    assert stated_wait(message, NOW) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "message",
    [
        "try again later",
        "Please try again in a few moments",
        "retry, 5 apples",
        "retry after 5 attempts",
        "10 per 1 minute",
        "Rate limit of 60 requests per 60s",
        "Please try again. 30 seconds is the window",
        "try again in 0s",
        "try again in 32 days",
        # Without a time zone it may be half a day off.
        "Your limit will reset at 2026-09-29 23:10:05",
        # A clock time, not a duration.
        "resets at 23:10:05",
        "retry after 2020-01-01T00:00:00Z",
        "wait " + "9" * 400 + " seconds",
    ],
)
def test_words_without_a_usable_wait(message: str) -> None:
    assert stated_wait(message, NOW) is None


UNITS = {
    1e-3: ["ms", " ms", " milliseconds"],
    1.0: ["s", " s", " sec", " secs", " seconds", " second"],
    60.0: ["m", " min", " mins", " minutes", " minute"],
    3_600.0: ["h", " hr", " hours", " hour"],
}
LEADS = [
    "Please try again in {}.",
    "retry after {}",
    "Please wait {} before retrying",
    "Rate limited; retry in {}!",
]
NOISE = ["", "Limit 6000, Used 5900. ", "10 requests per 60 seconds are allowed. ", "Rate limit reached for m-1.5 in org 7. "]  # fmt: skip


@settings(max_examples=scaled(200, 5_000), deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 99), st.sampled_from(sorted(UNITS))), min_size=1, max_size=3),
    st.data(),
)
def test_any_duration_in_any_sentence(parts: list[tuple[int, float]], data: st.DataObject) -> None:
    """Units are mixed as they come, from the large to the small one."""
    parts = sorted({unit: (amount, unit) for amount, unit in parts}.values(), key=lambda part: -part[1])
    joint = data.draw(st.sampled_from(["", " ", ", ", " and "]))
    texts = [f"{amount}{data.draw(st.sampled_from(UNITS[unit]))}" for amount, unit in parts]
    sentence = data.draw(st.sampled_from(NOISE)) + data.draw(st.sampled_from(LEADS)).format(joint.join(texts))
    if joint == "" and any(" " in text for text in texts):
        sentence = data.draw(st.sampled_from(LEADS)).format(" ".join(texts))
    assert stated_wait(sentence) == pytest.approx(sum(amount * unit for amount, unit in parts)), sentence


# --- Waits in fields


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ([{"error": {"code": 429, "details": [{"@type": "..Help"}, {"@type": "..RetryInfo", "retryDelay": "7s"}]}}], 7),
        ({"error": {"message": "slow", "retry_after": 5}}, 5),
        ({"error": {"message": "slow"}, "retry_after": 2.5}, 2.5),
        ({"detail": "slow", "retryAfter": "30"}, 30),
        ({"message": "slow", "retryAfterMs": 1500}, 1.5),
        ({"message": "slow", "retry_after_ms": "250"}, 0.25),
        ({"message": "slow", "retry_after_seconds": 4}, 4),
        ({"message": "slow", "wait_seconds": 8}, 8),
        ({"message": "slow", "retry_after_s": 3}, 3),
        ({"message": "slow", "retry_after_minutes": 2}, 120),
        ({"message": "slow", "wait_hours": 1}, 3_600),
        ({"message": "slow", "retry_in": "1m2s"}, 62),
        ({"message": "slow", "retry_after": "20 seconds"}, 20),
        ({"message": "slow", "reset_at": NOW + 9}, 9),
        ({"message": "slow", "resetAt": int(NOW + 9) * 1000}, 9),
        ({"message": "slow", "resets_at": "2026-09-21T14:13:30Z"}, 10),
        ({"message": "slow", "resets_in_seconds": 33}, 33),
        ({"message": "slow", "retry_at": "2026-09-21T14:13:30+00:00"}, 10),
        # The one that says when to come again, and not when the window ends.
        ({"message": "slow", "reset_after": 60, "retry_after": 2}, 2),
        # As JSON in a message, and cut off.
        ({"error": {"message": 'Upstream: {"error": {"message": "slow", "retryDelay": "11s"}}'}}, 11),
        (b'{"error": {"message": "slow", "retry_after": 13, "text": "cut', 13),
        # Headers that a gateway quotes.
        ({"error": {"message": "slow", "metadata": {"headers": {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(NOW + 3) * 1000)}}}}, 3),
        ({"error": {"message": "slow", "headers": {"Retry-After": "6"}}}, 6),
        # A field without its fraction, and both.
        ({"error": {"message": "Please retry in 45.58s.", "details": [{"retryDelay": "45s"}]}}, 45.58),
        ({"error": {"message": "The quota resets in 3 hours.", "retry_after": 45}}, 45),
        ({"error": {"message": "Please retry in 46s.", "retry_after": 45}}, 45),
        ({"error": {"message": "Please retry in 44s.", "retry_after": 45}}, 45),
        # What is left shows that these headers are of another limit; the words say which.
        ({"error": {"message": "Please try again in 6.57s.", "headers": {"x-ratelimit-remaining-tokens": "4735", "x-ratelimit-reset-tokens": "50.529s"}}}, 6.57),
    ],
)  # fmt: skip
def test_waits_in_fields(body: Any, seconds: float) -> None:
    assert body_wait(failure(body)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "body",
    [
        {"message": "slow", "retry_after": 0},
        {"message": "slow", "retry_after": -5},
        {"message": "slow", "retry_after": True},
        {"message": "slow", "retry_after": None},
        {"message": "slow", "retry_after": "soon"},
        {"message": "slow", "retry_after": 10**14},
        {"message": "slow", "reset_at": NOW - 60},
        {"message": "slow", "reset_at": "2020-01-01T00:00:00Z"},
        {"message": "slow", "retryable": 5, "retries": 3, "retry_count": 4, "waiting": 7},
        {"message": "slow", "headers": {"X-RateLimit-Remaining": "4", "X-RateLimit-Reset": "9"}},
        b"",
        b"\xff\xfe",
        b"retry_after: 5 attempts",
    ],
)
def test_fields_without_a_usable_wait(body: Any) -> None:
    assert body_wait(failure(body)) is None


def test_a_moment_is_measured_by_the_clock_of_the_server() -> None:
    """Its ``Date``, if it sends one; a wrong clock on either side does no harm."""
    ahead = datetime.fromtimestamp(NOW, UTC) + timedelta(hours=5)
    date = f"{ahead:%a, %d %b %Y %H:%M:%S GMT}"
    body = {"message": "slow", "reset_at": int(ahead.timestamp()) + 4}
    assert body_wait(failure(body, date=date)) == 4


@settings(max_examples=scaled(200, 4_000), deadline=None)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=40)),
        lambda inner: st.dictionaries(
            st.sampled_from(["retry_after", "retryDelay", "reset_at", "X-RateLimit-Reset", "wait_ms", "message", "error"]),
            inner,
            max_size=4,
        )
        | st.lists(inner, max_size=3),
        max_leaves=12,
    )
)  # fmt: skip
@example({"retry_after": 1e400})
@example({"reset_at": "9999-12-31T23:59:59-23:59"})
def test_absurd_fields_give_no_absurd_wait(body: Any) -> None:
    """Nothing raises; a wait is above 0 and at most a month."""
    wait = body_wait(failure(json.dumps(body).encode()))
    assert wait is None or 0 < wait <= 31 * 86_400


@pytest.mark.parametrize(
    "piece", ["retry after ", "1s ", '"retry_after":', "\\", "try again in 1h1", "tokens per ", '"a']
)
def test_a_hostile_body_is_read_in_linear_time(piece: str) -> None:
    """A search that takes quadratic time would take minutes."""
    body = (piece * 65_536)[:65_536].encode()
    classify(failure(body))


def test_other_kinds_state_no_wait() -> None:
    """What is refused for good is not tried again."""
    refused = Failure(status=400, body=b'{"message": "no", "retry_after": 5}', received=NOW)
    assert classify(refused).retry_after is None


# --- Which limit


@pytest.mark.parametrize(
    ("body", "exceeded"),
    [
        ({"error": {"message": "slow", "type": "tokens"}}, "tokens"),
        ({"error": {"message": "slow", "type": "requests", "code": "rate_limit_exceeded"}}, "requests"),
        ("Rate limit reached for m on tokens per min (TPM): Limit 10, Used 9, Requested 2.", "tokens"),
        ("Rate limit reached for m on requests per min (RPM): Limit 3, Used 3, Requested 1.", "requests"),
        ("Rate limit reached for requests per day (RPD)", "requests"),
        ("Requests to the Embeddings_Create Operation have exceeded call rate limit of your tier.", "requests"),
        ("Requests to the Embeddings_Create Operation have exceeded token rate limit of your tier.", "tokens"),
        ("Your requests to m in East US have exceeded the token rate limit.", "tokens"),
        ("Requests rate limit exceeded", "requests"),
        ("Your rate limit is 60 queries per minute.", "requests"),
        ("request reached organization max RPM: 20", "requests"),
        ("request reached organization TPD rate limit, current: 1526210", "tokens"),
        ("Details:TPM limit reached.", "tokens"),
        ("Open api qps request limit reached", "requests"),
        ("Too many tokens, please wait before trying again.", "tokens"),
        ("This request would exceed your organization's rate limit of 30,000 input tokens per minute", "tokens"),
        ("This request would exceed the rate limit of 8,000 output tokens per minute", "output_tokens"),
        ("Number of requests has exceeded your per-minute rate limit", "requests"),
        ("Number of request tokens has exceeded your per-minute rate limit", "tokens"),
        ("Quota exceeded for metric: g.com/generate_content_free_tier_input_token_count, limit: 250000", "tokens"),
        ("Quota exceeded for metric: g.com/generate_content_free_tier_requests, limit: 20", "requests"),
        ({"error": {"details": [{"violations": [{"quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier"}]}]}}, "tokens"),
        ({"error": {"details": [{"violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}]}]}}, "requests"),
        ({"message": "slow", "code": "token_quota_exceeded"}, "tokens"),
        ({"message": "slow", "code": "request_quota_exceeded"}, "requests"),
        ({"error": {"message": "slow", "type": "dynamic_token_limited"}}, "tokens"),
        # The reason phrase of every 429, and words that name both or none.
        ("Too many requests", None),
        ("Rate limit exceeded", None),
        ("Limits are 60 requests per minute and 6000 tokens per minute", None),
        ("No tokens left in your pocket", None),
        ({"error": {"details": [{"violations": [{"quotaId": "RequestsPerMinute"}, {"quotaId": "TokensPerMinute"}]}]}}, None),
    ],
)  # fmt: skip
def test_the_limit_that_a_refusal_names(body: Any, exceeded: str | None) -> None:
    refused = failure(body if isinstance(body, dict) else {"error": {"message": body}})
    assert exceeded_limit(refused) == exceeded
    assert classify(refused).exceeded == exceeded


def test_a_plugin_names_the_limit_of_its_own_words() -> None:
    rules = (Rule(VerdictKind.RATE_LIMITED, codes="acme-9", exceeded="tokens"),)
    refused = failure({"error": {"message": "requests per minute", "code": "acme-9"}})
    assert classify(refused, rules=rules).exceeded == "tokens"


def test_only_a_rate_limit_is_exceeded() -> None:
    refused = Failure(status=402, body=b'{"message": "tokens per minute"}')
    assert classify(refused).exceeded is None
