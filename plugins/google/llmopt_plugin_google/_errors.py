"""Gemini's errors beyond what holds for every provider. errors.toml has an example of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmopt import VerdictKind
from llmopt.compatible import Rule

_K: Final = VerdictKind
FAILED_REASONS: Final[Mapping[str, VerdictKind]] = {
    # The model wrote a call that is none, or did not stop to call: the next try may do better.
    "MALFORMED_FUNCTION_CALL": _K.TRANSIENT,
    "UNEXPECTED_TOOL_CALL": _K.TRANSIENT,
    "TOO_MANY_TOOL_CALLS": _K.TRANSIENT,
    "MISSING_THOUGHT_SIGNATURE": _K.TRANSIENT,
    "MALFORMED_RESPONSE": _K.TRANSIENT,
}
"""Finish reasons of answers that the model could not finish; their calls must never be run."""
EMPTY_REASONS: Final[Mapping[str, VerdictKind]] = {
    "LANGUAGE": _K.BAD_REQUEST,
    "OTHER": _K.TRANSIENT,
    "NO_IMAGE": _K.TRANSIENT,
    "IMAGE_OTHER": _K.TRANSIENT,
    "FINISH_REASON_UNSPECIFIED": _K.TRANSIENT,
}
"""Finish reasons that end an answer with content, and are a failure without any."""
RULES: Final = (
    *(
        Rule(kind, codes=reason.lower(), status=(200,))
        for reason, kind in {**FAILED_REASONS, **EMPTY_REASONS}.items()
    ),
    Rule(_K.QUOTA_EXHAUSTED, words="credits are depleted"),
    # The quota of a day is used up until midnight in California, and one of 0 is none; that of a minute comes back.
    Rule(
        _K.QUOTA_EXHAUSTED, codes=".*perday.*", words=r"\blimit: 0\b|per_day\b", status=(429,), scope="model"
    ),
    Rule(
        _K.RATE_LIMITED,
        codes=".*perminute.*",
        words="quota exceeded|exceeded your current quota|check quota",
        status=(429,),
    ),
    Rule(
        _K.AUTH,
        codes="api_key_(?:invalid|expired|service_blocked)|consumer_(?:suspended|invalid)",
        words="reported as leaked|unregistered callers",
        status=(400, 401, 403),
    ),
    Rule(_K.BATCH_TOO_LARGE, words=r"at most (\d+) requests can be in one batch", limit="max_items"),
    Rule(
        _K.BATCH_TOO_LARGE,
        words=r"request payload size exceeds the limit: (\d+) bytes",
        limit="max_bytes",
    ),
    # A place that Google does not serve, or a project without billing.
    Rule(_K.PERMISSION, codes="failed_precondition", status=(400,)),
)
