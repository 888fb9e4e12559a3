"""OpenAI's errors and what each means.

Quota comes first: since 2026 five codes of status 429 mean that no money is left. A 429 whose text
begins "Request too large" is more than a whole minute's tokens, so that waiting never helps.
"""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Verdict, VerdictKind, compatible

_REQUEST_TOKENS: Final = re.compile(r"max (\d+) tokens per request", re.IGNORECASE)
_CONTEXT: Final = re.compile(r"maximum context length is (\d+) tokens", re.IGNORECASE)
_MINUTE_TOKENS: Final = re.compile(r"\bLimit:? (\d+)\b")
_TRY_AGAIN: Final = re.compile(r"try again in (?:(\d+)m)?(\d+(?:\.\d+)?)(ms|s)\b", re.IGNORECASE)
_ITEMS: Final = re.compile(
    r"\$\.input.*\b(\d+) or (?:fewer|less)|at most (\d+) (?:items|inputs)", re.IGNORECASE
)


def verdict_of(failure: Failure) -> Verdict:
    """What an error of OpenAI's means."""
    verdict = compatible.classify(failure)
    if verdict.kind is VerdictKind.QUOTA_EXHAUSTED:
        return verdict
    if failure.status == 429:
        return _too_many(failure, verdict)
    if failure.status == 400:
        return _bad_request(failure, verdict)
    return verdict


def _too_many(failure: Failure, verdict: Verdict) -> Verdict:
    message = failure.error.message
    if message.lower().startswith("request too large"):
        limit = _MINUTE_TOKENS.search(message)
        return evolve(
            verdict,
            kind=VerdictKind.BATCH_TOO_LARGE,
            limit=BatchLimit(max_tokens=int(limit[1])) if limit and int(limit[1]) else None,
        )
    return evolve(verdict, retry_after=retry_after_in(message))


def _bad_request(failure: Failure, verdict: Verdict) -> Verdict:
    error = failure.error
    message = error.message
    if found := _REQUEST_TOKENS.search(message):
        return evolve(
            verdict, kind=VerdictKind.BATCH_TOO_LARGE, limit=BatchLimit(max_tokens=int(found[1]) or None)
        )
    if verdict.kind is VerdictKind.BATCH_TOO_LARGE:
        return verdict
    if found := _CONTEXT.search(message):
        limit = BatchLimit(max_item_tokens=int(found[1]) or None)
        return evolve(verdict, kind=VerdictKind.ITEM_TOO_LONG, limit=limit)
    if found := _ITEMS.search(message):
        limit = BatchLimit(max_items=int(found[1] or found[2]) or None)
        return evolve(verdict, kind=VerdictKind.BATCH_TOO_LARGE, limit=limit)
    if message.lower().startswith("invalid prompt") and "usage policy" in message.lower():
        return evolve(verdict, kind=VerdictKind.CONTENT_FILTERED)
    return verdict


def retry_after_in(message: str) -> float | None:
    """Seconds of "try again in 6m0s", "18.642s" or "644ms"; None when the text names none."""
    found = _TRY_AGAIN.search(message)
    if found is None:
        return None
    amount = float(found[2]) / (1000 if found[3].lower() == "ms" else 1)
    return amount + 60 * int(found[1] or 0)
