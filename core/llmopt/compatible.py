"""The common dialect: what any OpenAI-compatible server understands and answers.

These are the core's own defaults for every hook, and plain functions for plugins that differ from
them in one place only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from llmopt.policies.rate_headers import rate_limit
from llmopt.providers.answers import decode_embeddings, rows_from_raw
from llmopt.providers.entries import model_from_table
from llmopt.providers.lists import read_page
from llmopt.values.calls import Call, CatalogCall, EmbedCall
from llmopt.values.catalog import CatalogPage, Model
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.failure import Failure
from llmopt.values.http import HttpRequest, HttpResponse
from llmopt.values.settings import Settings
from llmopt.values.verdict import Verdict, VerdictKind

__all__ = [
    "build_request",
    "classify",
    "embed_body",
    "model_from_entry",
    "parse_catalog",
    "parse_embeddings",
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
    chat = {"model": call.model, "messages": call.messages, "stream": call.stream, **call.extra}
    return HttpRequest(method="POST", path="/chat/completions", headers=headers, json=chat)


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


def parse_catalog(response: HttpResponse, provider: str = "") -> CatalogPage | Failure:
    """The models of ``{"data": [...]}``, ``{"models": [...]}`` or a bare list.

    An entry that cannot be read is left out and counted; see `CatalogPage.dropped`.

    Args:
        response: the answer.
        provider: name of the provider entry (``settings.provider``). The core fills it in where it is
            left out, which takes a second copy of every model.

    Raises:
        InvalidResponse: the answer holds no list.
    """
    page = read_page(response, provider)
    return page if page is not None else Failure.from_response(response, operation="catalog")


def model_from_entry(entry: object) -> Model | None:
    """One entry of a list as a `Model`, None when it has no usable id.

    For lists in a format of their own; the keys are those of the common dialect and its usual extensions.
    """
    return model_from_table(entry)


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
