"""Errors of hosted providers beyond codes and status. errors.toml has every known shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Verdict, VerdictKind, compatible

_K: Final = VerdictKind
_TOO_LARGE: Final[tuple[tuple[re.Pattern[str], VerdictKind, str], ...]] = tuple(
    (re.compile(form), kind, number)
    for form, kind, number in (
        (r"maximum context length is (\d{1,12})", _K.ITEM_TOO_LONG, "max_item_tokens"),
        (r"exceeds the maximum number of tokens allowed", _K.ITEM_TOO_LONG, ""),
        (r"max (\d{1,12}) tokens per request", _K.BATCH_TOO_LARGE, "max_tokens"),
        (r"at most (\d{1,12}) requests can be in one batch", _K.BATCH_TOO_LARGE, "max_items"),
        (r"request too large for", _K.BATCH_TOO_LARGE, ""),
    )
)
"""Sentences that pass through gateways from the servers behind them. Compared in small letters."""
FAILED_REASONS: Final[Mapping[str, VerdictKind]] = {
    # DeepSeek stops so when it runs out of capacity, SGLang and vLLM when the request is dropped.
    "insufficient_system_resource": _K.OVERLOADED,
    "abort": _K.TRANSIENT,
    # Zhipu and Z.ai.
    "sensitive": _K.CONTENT_FILTERED,
    "model_context_window_exceeded": _K.ITEM_TOO_LONG,
    # Gemini: the model wrote a tool call that is none.
    "MALFORMED_FUNCTION_CALL": _K.TRANSIENT,
    "function_call_filter: MALFORMED_FUNCTION_CALL": _K.TRANSIENT,
    "UNEXPECTED_TOOL_CALL": _K.TRANSIENT,
    "MALFORMED_RESPONSE": _K.TRANSIENT,
}
"""Finish reasons of replies that the provider could not finish, and what they mean."""
_UNKNOWN_MODEL: Final = re.compile(r"model \S+ is not supported")
_GENERIC_MESSAGE: Final = "Provider returned error"
_MAX_MESSAGE: Final = 300


def verdict_of(failure: Failure) -> Verdict:
    """Classify an error of a hosted provider."""
    verdict = _with_text(failure, compatible.classify(failure))
    if 200 <= failure.status < 300 and (kind := FAILED_REASONS.get(verdict.code or "")):
        return evolve(verdict, kind=kind)
    if verdict.kind is _K.QUOTA_EXHAUSTED:
        return evolve(verdict, kind=_K.RATE_LIMITED) if _is_in_flight(failure) else verdict
    if failure.stated_status in (400, 413, 422, 429) and (found := _too_large(verdict.message.lower())):
        return evolve(verdict, kind=found[0], limit=found[1])
    if failure.stated_status == 400 and _UNKNOWN_MODEL.match(verdict.message.lower()):
        return evolve(verdict, kind=_K.NOT_FOUND)
    return verdict


def _metadata(failure: Failure) -> Mapping[str, Any]:
    found = failure.error.raw.get("metadata")
    return found if isinstance(found, Mapping) else {}


def _with_text(failure: Failure, verdict: Verdict) -> Verdict:
    """OpenRouter puts the message of the provider behind it, if there is one, into a key of its own."""
    raw = _metadata(failure).get("raw")
    if verdict.message != _GENERIC_MESSAGE or not isinstance(raw, str) or not raw.strip():
        return verdict
    return evolve(verdict, message=f"{_GENERIC_MESSAGE}: {' '.join(raw.split())[:_MAX_MESSAGE]}")


def _is_in_flight(failure: Failure) -> bool:
    # OpenRouter's 402 for requests under way that may cost more than is left: they will be done soon.
    return _metadata(failure).get("limit_source") == "openrouter_in_flight_budget"


def _too_large(message: str) -> tuple[VerdictKind, BatchLimit | None] | None:
    for form, kind, number in _TOO_LARGE:
        if found := form.search(message):
            most = int(found[1]) if number else 0
            stated: dict[str, Any] = {number: most}
            return kind, BatchLimit(**stated) if most else None
    return None
