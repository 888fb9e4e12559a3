"""Anthropic's errors beyond what holds for every provider. errors.toml has an example of each."""

from __future__ import annotations

from typing import Final

from llmopt import VerdictKind
from llmopt.compatible import Rule

_K: Final = VerdictKind
RULES: Final = (
    # A limit of the growth of usage, which lasts as long as `retry-after` says; its words are those of spending.
    Rule(_K.RATE_LIMITED, codes="ramp_limit_exceeded"),
    Rule(
        _K.QUOTA_EXHAUSTED,
        codes="(?:enforced|contract)_spend_limit_reached|billing_error|linked_organization_.*",
        words="credit balance is too low|reached your specified api usage limits",
    ),
    Rule(
        _K.ITEM_TOO_LONG,
        words=r"prompt is too long: [\d,]+ tokens > ([\d,]+) maximum",
        limit="max_item_tokens",
    ),
    Rule(_K.ITEM_TOO_LONG, words="`max_tokens` exceed context limit"),
    Rule(_K.CONTENT_FILTERED, words="blocked by content filtering policy"),
    # Another request changed the same thing; Anthropic's own libraries repeat it.
    Rule(_K.TRANSIENT, status=(409,)),
    Rule(_K.BAD_REQUEST, codes="request_body_encoding_(?:unsupported|invalid)"),
)
