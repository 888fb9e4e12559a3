"""Azure's errors: flat bodies from the gateway, nested ones from the model, numbers as codes."""

from __future__ import annotations

import re
from typing import Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Settings, Verdict, VerdictKind, compatible

_K = VerdictKind
_RETRY_AFTER: Final = re.compile(r"retry after (\d+(?:\.\d+)?) (milli)?second", re.IGNORECASE)
_CONTEXT: Final = re.compile(r"maximum context length is (\d+) tokens", re.IGNORECASE)
_REQUEST_TOKENS: Final = re.compile(r"max (\d+) tokens per request", re.IGNORECASE)


def verdict_of(failure: Failure, settings: Settings) -> Verdict:
    """What an error of Azure's means."""
    verdict = compatible.classify(failure)
    judge = _BY_STATUS.get(failure.status)
    return judge(failure, verdict, settings) if judge is not None else verdict


def _bad_request(failure: Failure, verdict: Verdict, _settings: Settings) -> Verdict:
    error = failure.error
    if error.inner_code == "ResponsibleAIPolicyViolation":
        return evolve(verdict, kind=_K.CONTENT_FILTERED)
    if found := _REQUEST_TOKENS.search(error.message):
        return evolve(verdict, kind=_K.BATCH_TOO_LARGE, limit=BatchLimit(max_tokens=int(found[1]) or None))
    if found := _CONTEXT.search(error.message):
        limit = BatchLimit(max_item_tokens=int(found[1]) or None)
        return evolve(verdict, kind=_K.ITEM_TOO_LONG, limit=limit)
    return verdict


def _unauthorized(failure: Failure, verdict: Verdict, settings: Settings) -> Verdict:
    if "audience is incorrect" not in failure.error.message.lower():
        return verdict
    return evolve(verdict, hint=f"if you use Entra ID, set providers.{settings.provider}.token_scope")


def _not_found(failure: Failure, verdict: Verdict, settings: Settings) -> Verdict:
    if failure.error.code == "DeploymentNotFound":
        hint = (
            "the model must be the name of a deployment; one made in the last five minutes may need a moment"
        )
    elif failure.error.code == "404":
        hint = f"check providers.{settings.provider}.base_url, surface and api_version"
    else:
        return verdict
    return evolve(verdict, hint=hint)


def _too_many(failure: Failure, verdict: Verdict, _settings: Settings) -> Verdict:
    message = failure.error.message
    if "high demand" in message.lower():
        return evolve(verdict, kind=_K.OVERLOADED)
    if verdict.kind is _K.QUOTA_EXHAUSTED:
        return verdict
    found = _RETRY_AFTER.search(message)
    return evolve(verdict, retry_after=float(found[1]) / (1000 if found[2] else 1) if found else None)


_BY_STATUS: Final = {400: _bad_request, 401: _unauthorized, 404: _not_found, 429: _too_many}
