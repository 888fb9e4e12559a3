"""Errors of local servers, recognised by shape and text, whatever the flavour.

errors.toml in this folder has an example of every known error.
"""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt import Failure, Settings, Verdict, VerdictKind, compatible
from llmopt.compatible import Rule
from llmopt_plugin_local._fastapi import detail_of

_K: Final = VerdictKind
_LOADING_S: Final = 5.0
"""Patience with a server that still loads its model; it does not say for how long."""
_UNKNOWN_PATH: Final = "unexpected endpoint or method"
_PACKED: Final = r"invalid character '\x1f'"
"""A server that takes a gzip body for JSON (Ollama)."""
_REFUSED: Final = (400, 413, 422, 429, 500)
_ABOUT_TEXTS: Final = frozenset({_K.BATCH_TOO_LARGE, _K.ITEM_TOO_LONG, _K.ITEM_REJECTED, _K.CONTENT_FILTERED})
RULES: Final = (
    # llama.cpp: one text and the physical batch; the context, as a number in the body.
    Rule(
        _K.ITEM_TOO_LONG,
        words=r"is too large to process(?:.*current batch size: (\d+))?",
        status=_REFUSED,
        limit="max_item_tokens",
    ),
    Rule(_K.ITEM_TOO_LONG, codes="exceed_context_size_error", key="n_ctx", limit="max_item_tokens"),
    # TEI, whose description and code do not agree on the case. A text too long has words of its own.
    Rule(_K.ITEM_REJECTED, codes="empty|tokenizer", unless="must have less than"),
    Rule(_K.TRANSIENT, codes="backend|unhealthy"),
    # KoboldCpp answers 500 to a request that it cannot read.
    Rule(_K.BAD_REQUEST, codes="bad_input", status=(500,), unless="too (?:big|large)"),
    # Ollama, LM Studio; the second one sends an unknown path with status 200.
    Rule(_K.NOT_FOUND, words="^(?:invalid model:|no models loaded)", status=(400,)),
    Rule(_K.NOT_FOUND, words=f"^{_UNKNOWN_PATH}"),
)


def verdict_of(failure: Failure, settings: Settings) -> Verdict:
    """Classify an error of a local server."""
    verdict = compatible.classify(failure, rules=RULES)
    message = failure.error.message.lower()
    if (detail := detail_of(failure)) is not None:
        # The message is rebuilt, because the body repeats the input and may be cut off in it.
        item = detail.item if verdict.kind in _ABOUT_TEXTS else None
        return evolve(verdict, message=detail.message, item=item)
    if failure.stated_status == 503 and (verdict.kind is _K.TRANSIENT or "loading model" in message):
        return evolve(verdict, kind=_K.TRANSIENT, retry_after=_LOADING_S)
    return evolve(verdict, hint=_hint(failure.stated_status, message, settings))


def _hint(status: int, message: str, settings: Settings) -> str:
    if status == 400 and message.startswith(_PACKED):
        return f"set providers.{settings.provider}.compress_requests = false"
    if not message.startswith(_UNKNOWN_PATH) and (status != 404 or "model" in message):
        return ""
    path = f"providers.{settings.provider}"
    hint = f"there is no such path: check {path}.base_url and {path}.flavour"
    return hint if settings.base_url.endswith("/v1") else f"{hint}; most servers want /v1 at its end"
