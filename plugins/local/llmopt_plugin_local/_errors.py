"""Errors of local servers, recognised by shape and text, whatever the flavour.

errors.toml in this folder has an example of every known error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from attrs import evolve

from llmopt import BatchLimit, Failure, Settings, Verdict, VerdictKind, compatible
from llmopt_plugin_local._fastapi import Detail, detail_of
from llmopt_plugin_local._phrases import too_large

_K: Final = VerdictKind
_LOADING_S: Final = 5.0
"""Patience with a server that still loads its model; it does not say for how long."""
_TEI_TYPES: Final[Mapping[str, VerdictKind]] = {
    "backend": _K.TRANSIENT,
    "empty": _K.ITEM_REJECTED,
    "overloaded": _K.OVERLOADED,
    "tokenizer": _K.ITEM_REJECTED,
    "unhealthy": _K.TRANSIENT,
}
"""TEI's types in small letters: its description and its code do not agree on them."""
_UNKNOWN_MODEL: Final = re.compile(r"invalid model:|no models loaded|model \S+ is not supported")
_UNKNOWN_PATH: Final = "unexpected endpoint or method"
_PACKED: Final = r"invalid character '\x1f'"
"""A server that takes a gzip body for JSON (Ollama)."""
_TRY_AGAIN: Final = re.compile(r"try again in (\d{1,9}(?:\.\d+)?)(ms|s)\b", re.IGNORECASE)


def verdict_of(failure: Failure, settings: Settings) -> Verdict:
    """Classify an error of a local server."""
    verdict = compatible.classify(failure)
    if verdict.kind is _K.QUOTA_EXHAUSTED:
        return verdict
    detail = detail_of(failure)
    if detail is not None:
        return _invalid(verdict, detail)
    return _too_large(failure, verdict) or _by_type(failure, verdict) or _by_text(failure, verdict, settings)


def _invalid(verdict: Verdict, detail: Detail) -> Verdict:
    """FastAPI's validation errors: the message is rebuilt, because the body repeats the input."""
    with_message = evolve(verdict, message=detail.message)
    found = too_large(detail.message)
    if found is None:
        return with_message
    return evolve(with_message, kind=found[0], limit=found[1], item=detail.item)


def _too_large(failure: Failure, verdict: Verdict) -> Verdict | None:
    """A request or a text that is too large: 4xx, and a 500 with llama.cpp."""
    if failure.stated_status not in (400, 413, 422, 429, 500):
        return None
    error = failure.error
    if error.type == "exceed_context_size_error":
        most = error.raw.get("n_ctx")
        limit = BatchLimit(max_item_tokens=most) if type(most) is int and most > 0 else None
        return evolve(verdict, kind=_K.ITEM_TOO_LONG, limit=limit)
    found = too_large(error.message)
    return None if found is None else evolve(verdict, kind=found[0], limit=found[1])


def _by_type(failure: Failure, verdict: Verdict) -> Verdict | None:
    kind = _TEI_TYPES.get((failure.error.type or "").lower())
    loading = failure.stated_status == 503 and (
        kind is _K.TRANSIENT or "loading model" in verdict.message.lower()
    )
    if loading:
        return evolve(verdict, kind=_K.TRANSIENT, retry_after=_LOADING_S)
    return evolve(verdict, kind=kind) if kind is not None else None


def _by_text(failure: Failure, verdict: Verdict, settings: Settings) -> Verdict:
    if failure.stated_status == 429:
        return _too_many(failure, verdict)
    message = failure.error.message.lower()
    kind = _kind_by_text(failure.stated_status, message) or verdict.kind
    return evolve(verdict, kind=kind, hint=_hint(failure.stated_status, message, settings))


def _kind_by_text(status: int, message: str) -> VerdictKind | None:
    if status == 424:
        # The backend behind a router failed.
        return _K.TRANSIENT
    # LM Studio sends an unknown path with status 200.
    if message.startswith(_UNKNOWN_PATH) or (status == 400 and _UNKNOWN_MODEL.match(message)):
        return _K.NOT_FOUND
    return None


def _hint(status: int, message: str, settings: Settings) -> str:
    if status == 400 and message.startswith(_PACKED):
        return f"set providers.{settings.provider}.compress_requests = false"
    if not message.startswith(_UNKNOWN_PATH) and (status != 404 or "model" in message):
        return ""
    path = f"providers.{settings.provider}"
    hint = f"there is no such path: check {path}.base_url and {path}.flavour"
    return hint if settings.base_url.endswith("/v1") else f"{hint}; most servers want /v1 at its end"


def _too_many(failure: Failure, verdict: Verdict) -> Verdict:
    message = failure.error.message
    found = _TRY_AGAIN.search(message)
    wait = float(found[1]) / (1000 if found[2].lower() == "ms" else 1) if found else None
    kind = _K.OVERLOADED if "overloaded" in message.lower() else verdict.kind
    return evolve(verdict, kind=kind, retry_after=wait or None)
