"""Mistral's errors: flat bodies, numeric codes as text. errors.toml has every known shape."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt import Failure, Verdict, VerdictKind, compatible
from llmopt.compatible import Rule

_K: Final = VerdictKind
RULES: Final = (
    # Whatever code comes with it.
    Rule(_K.QUOTA_EXHAUSTED, status=(402,)),
    Rule(
        _K.BATCH_TOO_LARGE,
        words=r"too many tokens (?:in batch|overall)(?:.*?max is (\d+))?",
        status=(400,),
        limit="max_tokens",
    ),
    Rule(
        _K.BATCH_TOO_LARGE,
        words=r"too many inputs in request(?:.*?max is (\d+))?",
        status=(400,),
        limit="max_items",
    ),
    Rule(_K.BATCH_TOO_LARGE, codes="3210"),
    Rule(_K.OVERLOADED, codes="3505", words="service tier capacity exceeded"),
    Rule(_K.RATE_LIMITED, codes="1300"),
    Rule(_K.NOT_FOUND, codes="1500"),
)


def verdict_of(failure: Failure) -> Verdict:
    """Classify an error of Mistral."""
    verdict = compatible.classify(failure, rules=RULES)
    if verdict.kind is _K.AUTH:
        return evolve(verdict, hint="Mistral also answers so to some keys whose quota is used up")
    return verdict
