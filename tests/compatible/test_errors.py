"""What errors mean: rules of codes and words, those of every provider and those of a plugin, and the HTTP status."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import BatchLimit, Failure, Verdict, VerdictKind
from llmopt.compatible import Rule, classify
from tests.support.scale import scaled
from tests.values.test_error_body import WRAPPERS

K = VerdictKind


def verdict(status: int, message: str, *, rules: Sequence[Rule] = (), **fields: Any) -> Verdict:
    body = json.dumps({"error": {"message": message, **fields}}).encode()
    return classify(Failure(status=status, body=body), rules=rules)


# --- Money

GONE = ["insufficient", "not enough", "exhausted", "exceeded", "used up", "depleted", "overdue", "too low"]
MONEY = ["balance", "credits", "funds", "spend limit", "budget", "free tier"]
STATUSES = [200, 400, 401, 402, 403, 412, 429, 500]
SENTENCES = [
    "Sorry, {0} {1} here",
    "Your account's {1} is {0}. See the site.",
    "request refused: {1} {0}",
    "{0} monthly {1}",
]


@pytest.mark.row("V03")
@settings(max_examples=scaled(150, 3_000), deadline=None)
@given(
    st.sampled_from(SENTENCES), st.sampled_from(GONE), st.sampled_from(MONEY), st.sampled_from(STATUSES),
    st.sampled_from(sorted(WRAPPERS)), st.sampled_from(["invalid_request_error", "rate_limit_error", "api_error", ""]),
)  # fmt: skip
def test_no_money_in_any_words_shape_and_status(
    sentence: str, gone: str, money: str, status: int, wrapper: str, kind: str
) -> None:
    """A generic type never outranks the words."""
    inner = {"message": sentence.format(gone, money), "type": kind}
    failure = Failure(status=status, body=json.dumps(WRAPPERS[wrapper](inner)).encode())
    assert classify(failure).kind is K.QUOTA_EXHAUSTED


@pytest.mark.parametrize(
    "message",
    [
        "Please recharge", "top up to go on", "您的余额不足", "账户欠费", "No payment method is on file", "quota of today: try again tomorrow",
        "You have reached your weekly usage limit", "Your plan has expired", "Out of call volume quota.", "You exceeded today's quota",
        "You have reached your specified API usage limits.", "Account not in good standing", "a valid credit card is needed",
        "The quota for your subscription has been exceeded", "the account is in arrears", "Spending cap reached", "免费额度已用完",
        "Billing is not enabled", "there is an unpaid invoice", "can only afford 3 tokens",
    ],
)  # fmt: skip
def test_other_words_for_no_money(message: str) -> None:
    """Words that need no amount."""
    assert verdict(403, message).kind is K.QUOTA_EXHAUSTED


@pytest.mark.row("V05")
@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (429, "Rate limit: credits exceeded per minute", K.RATE_LIMITED),
        (
            429,
            "You are limited to 60 requests per minute; upgrade your plan on the billing page",
            K.RATE_LIMITED,
        ),
        (429, "Tokens per minute quota exceeded", K.RATE_LIMITED),
        (429, "Too many concurrent requests for this balance: exceeded 4", K.RATE_LIMITED),
        (429, "The day's limit is reached. Add 10 credits to raise it", K.RATE_LIMITED),
        (400, "the thinking budget exceeds max_tokens", K.BAD_REQUEST),
        (400, "`max_tokens` must be greater than `reasoning.budget`: exceeded", K.BAD_REQUEST),
        (502, "the load balancer has exhausted its connections", K.TRANSIENT),
        (429, "quota exceeded", K.RATE_LIMITED),
    ],
)
def test_words_that_only_look_like_money(status: int, message: str, kind: VerdictKind) -> None:
    """Rates, parameters, and machines."""
    assert verdict(status, message).kind is kind


def test_an_echo_of_the_input_is_not_judged() -> None:
    """What comes late in a message is more often a quotation than the reason."""
    assert (
        verdict(400, f"The request is not valid. {'It said: ' * 40}my balance is insufficient").kind
        is K.BAD_REQUEST
    )


@pytest.mark.row("V04")
@pytest.mark.parametrize(
    ("message", "scope"),
    [
        (
            "You requested 64000 tokens, but can only afford 1234: more credits, or fewer max_tokens",
            "request",
        ),
        ("The free tier of this model is exhausted", "model"),
        ("Daily quota of model m exceeded, try other models", "model"),
        ("Insufficient credits.", "account"),
    ],
)
def test_what_a_quota_concerns(message: str, scope: str) -> None:
    """One request, one model, or the account."""
    assert (verdict(402, message).kind, verdict(402, message).scope) == (K.QUOTA_EXHAUSTED, scope)
    assert verdict(503, message.replace("credits", "x")).scope in ("account", "model", "request")


# --- Sizes

ITEMS = [
    "batch size is invalid, it should not be larger than {}.: input.contents",
    "input batch size 473 > maximum allowed batch size {}",
    "embeddings max batch size is {}, and can not be 0",
    "Too many inputs. The max number of inputs is {}. We hope to increase it soon.",
    "total number of texts must be at most {} - received 2000",
    "input数组最大不得超过{}条",
    "at most {} requests can be in one batch",
    "body.input: List should have at most {} items after validation, not 2000",
    "'$.input' is invalid: array length must be {} or less",
    "The batch size limit is {}. Your batch size is 2000.",
    "array too long. Expected an array with maximum length {}, but got one with length 2000",
    "The number of documents exceeds {}",
    "no more than {} texts per request",
    "a maximum of {} inputs is supported",
]
"""Each was seen from a provider, and is in words of our own apart from what the number stands behind."""
TOKENS = [
    "This model's maximum context length is {} tokens. However, you requested 99999 tokens.",
    "maximum context length of {} tokens",
    "The prompt is too long: 99999, model maximum context length: {}",
    "This model's maximum prompt length is {} but the request has 99999 tokens",
    "Your request exceeded model token limit: {} (requested: 99999)",
    "Prompt length 99999 exceeds the available context size of {} tokens",
    "n_keep: 99999 >= n_ctx: {}",
    "`inputs` tokens + `max_new_tokens` must be <= {}. Given: 99999",
    "`inputs` must have less than {} tokens",
    "exceeds the maximum number of tokens allowed ({})",
    "Range of input length should be [1, {}]",
]


@pytest.mark.row("V06")
@settings(max_examples=scaled(150, 3_000), deadline=None)
@given(
    st.sampled_from([*ITEMS, *TOKENS]), st.integers(1, 10**6), st.sampled_from([400, 413, 422]), st.booleans()
)
def test_a_limit_stated_in_words(sentence: str, number: int, status: int, commas: bool) -> None:
    """The number is read, with or without separators, and other numbers of the sentence are not."""
    result = verdict(status, sentence.format(f"{number:,}" if commas and sentence.isascii() else number))
    if sentence in ITEMS:
        assert (result.kind, result.limit) == (K.BATCH_TOO_LARGE, BatchLimit(max_items=number))
    else:
        assert (result.kind, result.limit) == (K.ITEM_TOO_LONG, BatchLimit(max_item_tokens=number))


@pytest.mark.parametrize(
    ("status", "message", "limit"),
    [
        (400, "Only a single input is supported", BatchLimit(max_items=1)),
        (422, "body.input: Input should be a valid string", BatchLimit(max_items=1)),
        (400, "batched inputs are not supported", BatchLimit(max_items=1)),
        (400, "max 300,000 tokens per request", BatchLimit(max_tokens=300_000)),
        (400, "The max allowed tokens per submitted batch is 120000. Yours has 300000.", BatchLimit(max_tokens=120_000)),
        (413, "Request body too large for m. Max size: 8000 tokens.", BatchLimit(max_tokens=8_000)),
        (413, "Request too large for m on tokens per minute (TPM): Limit 6000, Requested 14368", BatchLimit(max_tokens=6_000)),
        (400, "Too many inputs", None),
        (500, "Payload is too big. Max payload size is 32MB.", None),
    ],
)  # fmt: skip
def test_other_words_for_a_request_that_is_too_large(
    status: int, message: str, limit: BatchLimit | None
) -> None:
    """One text at a time, tokens of all texts, bytes."""
    result = verdict(status, message)
    assert (result.kind, result.limit) == (K.BATCH_TOO_LARGE, limit)


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens must be less than or equal to 16384, the maximum value is less than the context_window",
        "'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096 tokens",
        "contents is neither str nor list of str.: input.contents",
        "the text is longer than 512 characters",
        "temperature must be no greater than 2",
    ],
)
def test_words_that_only_look_like_a_size(message: str) -> None:
    """Parameters, and other units."""
    assert verdict(400, message).kind is K.BAD_REQUEST


# --- Content, keys, models, load


@pytest.mark.row("V08")
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, {"error": {"message": "Not today", "code": 403, "metadata": {"reasons": ["violence"], "flagged_input": "x"}}}),
        (400, {"error": {"message": "No.", "code": "data_inspection_failed"}}),
        (400, {"error": {"message": "No.", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}),
        (200, {"promptFeedback": {"blockReason": "SAFETY"}, "candidates": []}),
        (400, {"error": {"message": "内容包含敏感信息"}}),
        (500, {"type": "error", "error": {"type": "api_error", "message": "output new_sensitive"}}),
        (400, {"error": {"message": "Considered high risk"}}),
        (403, {"code": "x y", "error": "Content violates usage guidelines."}),
        (403, {"error": {"message": 'The model requires moderation, and your input was flagged for "violence"'}}),
    ],
)  # fmt: skip
def test_moderation_is_a_content_filter(status: int, body: object) -> None:
    """By codes, by the reasons that are listed, by words."""
    assert (
        classify(Failure(status=status, body=json.dumps(body).encode(), operation="chat")).kind
        is K.CONTENT_FILTERED
    )


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "API key not valid. Pass a valid one.", K.AUTH),
        (400, "Incorrect API key provided: na***ys", K.AUTH),
        (200, "Not authenticated", K.AUTH),
        (403, "Authorization failed", K.AUTH),
        (400, "Invalid token ids in prompt", K.BAD_REQUEST),
        (400, "User location is not supported for the API use.", K.PERMISSION),
        (400, "The requested model 'm.1' is not supported by any provider", K.NOT_FOUND),
        (401, "Model m-1 is not supported", K.NOT_FOUND),
        (503, "No available channel for model m", K.NOT_FOUND),
        (
            400,
            "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            K.BAD_REQUEST,
        ),
        (400, "The model `m` does not support images", K.BAD_REQUEST),
        (400, "Header names are case-sensitive", K.BAD_REQUEST),
        (429, "The engine is currently overloaded", K.OVERLOADED),
        (429, "at maximum capacity", K.OVERLOADED),
        (200, "System is really busy", K.OVERLOADED),
        (200, "api qps request limit reached", K.RATE_LIMITED),
        (410, "gone", K.NOT_FOUND),
        (451, "no", K.PERMISSION),
        (424, "no", K.TRANSIENT),
        (526, "no", K.TRANSIENT),
    ],
)
def test_other_words_and_statuses(status: int, message: str, kind: VerdictKind) -> None:
    """The words decide before the status, and the status where no words do."""
    assert verdict(status, message).kind is kind


# --- The table of a plugin


def test_the_rules_of_a_plugin_come_first() -> None:
    """Codes are compared as a whole, words anywhere, both without case; a key is a path, with a value or without."""
    rules = (
        Rule(K.OVERLOADED, codes="e-(?:17|18)"),
        Rule(K.BATCH_TOO_LARGE, words=r"acme takes (\d+) letters", limit="max_items"),
        Rule(K.ITEM_TOO_LONG, codes="long", key="limits.tokens", limit="max_item_tokens"),
        Rule(K.TRANSIENT, key="cause.kind=mood"),
        Rule(K.RATE_LIMITED, status=(418,), unless="never"),
        Rule(K.QUOTA_EXHAUSTED, words="purse", scope="model"),
    )
    assert verdict(400, "", code="E-17", rules=rules).kind is K.OVERLOADED
    assert verdict(400, "", code="E-170", rules=rules).kind is K.BAD_REQUEST
    assert verdict(400, "ACME takes 7 letters", rules=rules).limit == BatchLimit(max_items=7)
    assert verdict(400, "", code="long", limits={"tokens": 9}, rules=rules).limit == BatchLimit(
        max_item_tokens=9
    )
    assert verdict(400, "", code="long", limits={"tokens": -9}, rules=rules).limit is None
    assert verdict(400, "", cause={"kind": "mood"}, rules=rules).kind is K.TRANSIENT
    assert verdict(400, "", cause={"kind": "other"}, rules=rules).kind is K.BAD_REQUEST
    assert verdict(418, "", rules=rules).kind is K.RATE_LIMITED
    assert verdict(418, "never", rules=rules).kind is K.BAD_REQUEST
    assert verdict(400, "an empty purse", rules=rules).scope == "model"
    # What no rule of the plugin says is classified as for every provider.
    assert verdict(402, "", rules=rules).kind is K.QUOTA_EXHAUSTED


@settings(max_examples=scaled(100, 2_000), deadline=None)
@given(st.text(max_size=400), st.sampled_from([200, 400, 413, 429, 500]))
def test_any_message_is_classified(message: str, status: int) -> None:
    """Nothing raises, and a limit is positive."""
    result = verdict(status, message)
    assert result.limit is None or min(filter(None, [result.limit.max_items, result.limit.max_tokens, 1])) > 0


@pytest.mark.parametrize(
    "piece", ["exceeded ", "balance ", "1s ", "try again in 1h ", "limit: ", "max batch size ", "tokens "]
)
def test_a_hostile_message_is_classified(piece: str) -> None:
    """A search that takes exponential time would not end."""
    for tail in ("", "x", "9" * 50):
        verdict(429, piece * 80 + tail)
