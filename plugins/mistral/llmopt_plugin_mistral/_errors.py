"""Mistral's errors: flat bodies, numeric codes as text. errors.toml has every known shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Verdict, VerdictKind, compatible

_K: Final = VerdictKind
_BY_CODE: Final[Mapping[str, VerdictKind]] = {
    "1300": _K.RATE_LIMITED,
    "1500": _K.NOT_FOUND,
    "3210": _K.BATCH_TOO_LARGE,
    "3505": _K.OVERLOADED,
    "invalid_model": _K.NOT_FOUND,
    "unknown_model": _K.NOT_FOUND,
}
_TOO_LARGE: Final = ("too many tokens in batch", "too many tokens overall", "too many inputs in request")
_STATED: Final = re.compile(r"max is (\d{1,12})\b", re.IGNORECASE)


def verdict_of(failure: Failure) -> Verdict:
    """Classify an error of Mistral."""
    verdict = compatible.classify(failure)
    if verdict.kind is _K.QUOTA_EXHAUSTED:
        return verdict
    message = failure.error.message.lower()
    if message.startswith("request too large for"):
        # More than a whole minute's tokens: waiting never helps.
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE)
    if failure.stated_status == 400 and any(phrase in message for phrase in _TOO_LARGE):
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=_limit(message))
    if "service tier capacity exceeded" in message:
        return evolve(verdict, kind=_K.OVERLOADED)
    if verdict.kind is _K.AUTH:
        return evolve(verdict, hint="Mistral also answers so to some keys whose quota is used up")
    kind = _BY_CODE.get(failure.error.code or "") or _BY_CODE.get(failure.error.type or "")
    return evolve(verdict, kind=kind) if kind is not None else verdict


def _limit(message: str) -> BatchLimit | None:
    stated = _STATED.search(message)
    most = int(stated[1]) if stated else 0
    if not most:
        return None
    return BatchLimit(max_tokens=most) if "token" in message else BatchLimit(max_items=most)
