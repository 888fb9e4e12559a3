"""The common dialect: what any OpenAI-compatible server understands and answers.

These are the core's own defaults for every hook, and plain functions for plugins that differ from
them in one place only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from llmopt.errors import InvalidResponse
from llmopt.policies.rate_headers import rate_limit
from llmopt.providers.answers import decode_embeddings, rows_from_raw
from llmopt.providers.chat_answers import parse_chat, parse_stream_event
from llmopt.providers.chat_request import chat_body
from llmopt.values.calls import Call, CatalogCall, EmbedCall
from llmopt.values.catalog import CatalogPage, Model
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.failure import Failure
from llmopt.values.http import HttpRequest, HttpResponse
from llmopt.values.settings import Settings
from llmopt.values.verdict import Verdict, VerdictKind

__all__ = [
    "build_request",
    "chat_body",
    "classify",
    "embed_body",
    "model_from_entry",
    "parse_catalog",
    "parse_chat",
    "parse_embeddings",
    "parse_stream_event",
    "rate_limit",
    "rows_from_raw",
]

_K = VerdictKind

_BY_CODE: Final[Mapping[str, VerdictKind]] = {
    # No money first: these come as 429 and must not be waited for.
    "insufficient_quota": _K.QUOTA_EXHAUSTED,
    "credit_balance_exhausted": _K.QUOTA_EXHAUSTED,
    "organization_spend_limit_exceeded": _K.QUOTA_EXHAUSTED,
    "project_spend_limit_exceeded": _K.QUOTA_EXHAUSTED,
    "organization_usage_limit_exceeded": _K.QUOTA_EXHAUSTED,
    "billing_hard_limit_reached": _K.QUOTA_EXHAUSTED,
    "enforced_spend_limit_reached": _K.QUOTA_EXHAUSTED,
    "contract_spend_limit_reached": _K.QUOTA_EXHAUSTED,
    "billing_error": _K.QUOTA_EXHAUSTED,
    "max_tokens_per_request": _K.BATCH_TOO_LARGE,
    "context_length_exceeded": _K.ITEM_TOO_LONG,
    "content_filter": _K.CONTENT_FILTERED,
    "content_policy_violation": _K.CONTENT_FILTERED,
    "slow_down": _K.OVERLOADED,
    "server_is_overloaded": _K.OVERLOADED,
    "model_not_found": _K.NOT_FOUND,
}
"""Machine-readable codes and types of the common dialect, and what they mean."""

_BY_STATUS: Final[Mapping[int, VerdictKind]] = {
    401: _K.AUTH,
    402: _K.QUOTA_EXHAUSTED,
    403: _K.PERMISSION,
    404: _K.NOT_FOUND,
    408: _K.TIMEOUT,
    409: _K.TRANSIENT,
    413: _K.BATCH_TOO_LARGE,
    425: _K.TIMEOUT,
    429: _K.RATE_LIMITED,
    499: _K.TRANSIENT,
    501: _K.BAD_REQUEST,
    503: _K.OVERLOADED,
    504: _K.TIMEOUT,
    505: _K.BAD_REQUEST,
    524: _K.TIMEOUT,
    529: _K.OVERLOADED,
}
"""What a status means by itself."""


def build_request(call: Call, settings: Settings, *, encoding_format: str | None = None) -> HttpRequest:
    """The request for any call.

    Args:
        call: what is asked for.
        settings: the endpoint's.
        encoding_format: "base64" or "float" for embeddings; None leaves it to the server, which is
            right where a server might refuse or ignore it.
    """
    headers = {**settings.headers, **settings.auth_headers()}
    if isinstance(call, EmbedCall):
        body = embed_body(call, encoding_format=encoding_format)
        return HttpRequest(method="POST", path="/embeddings", headers=headers, json=body)
    if isinstance(call, CatalogCall):
        path = "/models" if call.cursor is None else f"/models?after={quote(call.cursor, safe='')}"
        return HttpRequest(method="GET", path=path, headers=headers)
    return HttpRequest(method="POST", path="/chat/completions", headers=headers, json=chat_body(call))


def embed_body(call: EmbedCall, *, encoding_format: str | None = None) -> dict[str, Any]:
    """The body of an embeddings request. Keys that are not asked for are left out."""
    body: dict[str, Any] = {"model": call.model, "input": call.texts}
    if encoding_format is not None:
        body["encoding_format"] = encoding_format
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    if call.input_type is not None:
        body["input_type"] = call.input_type
    return {**body, **call.extra}


def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """The vectors of an answer, or the failure that a 2xx carries.

    Raises:
        InvalidResponse: the answer is neither.
    """
    rows = decode_embeddings(response.body)
    return rows if rows is not None else Failure.from_response(response, model=call.model)


def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    """The models of ``{"data": [...]}``, ``{"models": [...]}`` or a bare list.

    An entry without an id spoils only itself.

    Raises:
        InvalidResponse: the answer holds no list.
    """
    value = response.json
    if isinstance(value, dict):
        if value.get("error"):
            return Failure.from_response(response, operation="catalog")
        entries = value.get("data", value.get("models"))
    else:
        entries = value
    if not isinstance(entries, list):
        raise InvalidResponse("the answer holds no list of models.", reason="json", sent="yes")
    models = tuple(model for model in map(model_from_entry, entries) if model is not None)
    return CatalogPage(models=models, next_cursor=_cursor(value))


def _cursor(value: object) -> str | None:
    if isinstance(value, dict) and value.get("has_more") is True:
        last = value.get("last_id")
        return last if isinstance(last, str) else None
    return None


_IDS: Final = ("id", "model_id", "name", "key")
"""Under which key a server tells what to call a model: the common one, and those of gateways and desktop servers."""


def model_from_entry(entry: object) -> Model | None:
    """One entry of a list as a `Model`, None when it has no usable id."""
    if not isinstance(entry, dict):
        return None
    name = next((found for key in _IDS if (found := _text(entry.get(key)))), None)
    if name is None:
        return None
    return Model(
        id=name,
        context_length=_positive(entry, "context_length", "max_model_len", "max_context_length"),
        created=_positive(entry, "created", "created_at"),
        shutdown=_text(entry.get("shutdown_date")),
        raw=entry,
    )


def _positive(entry: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = entry.get(key)
        if type(value) is int and value > 0:
            return value
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def classify(failure: Failure) -> Verdict:
    """The verdict by machine-readable code, then by status. No message is read here."""
    error = failure.error
    kind = _kind_by_code(error.code, error.type, error.inner_code) or _kind_by_status(failure.status)
    return Verdict(kind=kind, code=error.code or error.type, message=error.message, param=error.param)


def _kind_by_code(*codes: str | None) -> VerdictKind | None:
    known = [_BY_CODE[code] for code in codes if code is not None and code in _BY_CODE]
    # Money first, whichever of the fields says it: such an error must not be waited for.
    if _K.QUOTA_EXHAUSTED in known:
        return _K.QUOTA_EXHAUSTED
    return known[0] if known else None


def _kind_by_status(status: int) -> VerdictKind:
    if status in _BY_STATUS:
        return _BY_STATUS[status]
    if 200 <= status < 300:
        return _K.INVALID_RESPONSE
    if 400 <= status < 500:
        return _K.BAD_REQUEST
    if 500 <= status < 599:
        return _K.TRANSIENT
    return _K.UNEXPECTED
