"""Classification of OpenAI's errors.

Quota comes first: since 2026 five codes of status 429 mean that no money is left. A 429 whose text
says "Request too large" is more than a whole minute's tokens, so that waiting never helps.
errors.toml in this folder has an example of every known error.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Verdict, VerdictKind, compatible

_K: Final = VerdictKind
# An account without a payment method (github BerriAI/litellm#2743): a 429 like the spent quotas.
_NO_MONEY: Final = "billing_not_active"

_REQUEST_TOKENS: Final = re.compile(r"\bmax ([\d,]+) tokens per request", re.IGNORECASE)
_CONTEXT: Final = re.compile(r"maximum context length is ([\d,]+) tokens", re.IGNORECASE)
_MINUTE_TOKENS: Final = re.compile(r"\bLimit:? ([\d,]+)")
_ITEMS: Final = re.compile(
    r"\$\.input.*\b([\d,]+) or (?:fewer|less)|at most ([\d,]+) (?:items|inputs)", re.IGNORECASE
)
_TRY_AGAIN: Final = re.compile(r"try again in ((?:[\d.]+(?:ms|h|m|s))+)", re.IGNORECASE)
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|h|m|s)", re.IGNORECASE)
_UNIT_S: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def verdict_of(failure: Failure) -> Verdict:
    """Classify an error of OpenAI."""
    verdict = compatible.classify(failure)
    if _NO_MONEY in (failure.error.code, failure.error.type):
        return evolve(verdict, kind=_K.QUOTA_EXHAUSTED)
    if verdict.kind is _K.QUOTA_EXHAUSTED:
        return verdict
    if failure.stated_status == 429:
        return _too_many(failure, verdict)
    if failure.stated_status == 400:
        return _bad_request(failure, verdict)
    return verdict


def _too_many(failure: Failure, verdict: Verdict) -> Verdict:
    message = failure.error.message
    if "request too large" in message.lower():
        limit = BatchLimit(max_tokens=_number(_MINUTE_TOKENS, message))
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=limit if limit.max_tokens else None)
    return evolve(verdict, retry_after=retry_after_in(message))


def _bad_request(failure: Failure, verdict: Verdict) -> Verdict:
    message = failure.error.message
    if most := _number(_REQUEST_TOKENS, message):
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=BatchLimit(max_tokens=most))
    if verdict.kind is _K.BATCH_TOO_LARGE:
        return verdict
    if most := _number(_CONTEXT, message):
        return evolve(verdict, kind=_K.ITEM_TOO_LONG, limit=BatchLimit(max_item_tokens=most))
    if most := _number(_ITEMS, message):
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=BatchLimit(max_items=most))
    if "invalid prompt" in message.lower() and "usage polic" in message.lower():
        return evolve(verdict, kind=_K.CONTENT_FILTERED)
    return verdict


def _number(form: re.Pattern[str], message: str) -> int | None:
    """The number that a text states, None for none or for 0."""
    found = form.search(message)
    digits = next((group for group in found.groups() if group), "") if found else ""
    digits = digits.replace(",", "")
    # A longer number is no limit, and Python refuses to read very long ones.
    return int(digits) or None if 0 < len(digits) < 13 else None


def retry_after_in(message: str) -> float | None:
    """Seconds of "try again in 6m0s", "18.642s" or "644ms"; None when the text names none."""
    found = _TRY_AGAIN.search(message)
    if found is None:
        return None
    return sum(float(amount) * _UNIT_S[unit.lower()] for amount, unit in _PART.findall(found[1])) or None
