"""The common dialect: what any OpenAI-compatible server understands and answers.

These are the core's own defaults for every hook, and plain functions for plugins that differ from
them in one place only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from llmopt.compatible.chat import SAME_NAMES, chat_body, parse_chat, parse_stream_event
from llmopt.compatible.embeddings import decode_embeddings, rows_from_raw
from llmopt.compatible.errors import classify
from llmopt.compatible.models import model_from_table, read_page
from llmopt.policies.retry_after import rate_limit
from llmopt.values.calls import Call, CatalogCall, EmbedCall, Settings
from llmopt.values.catalog import CatalogPage, Model
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest, HttpResponse

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


def build_request(
    call: Call,
    settings: Settings,
    *,
    encoding_format: str | None = None,
    chat_names: Mapping[str, str | None] = SAME_NAMES,
) -> HttpRequest:
    """The request for any call.

    Args:
        call: what is asked for.
        settings: the endpoint's.
        encoding_format: "base64" or "float" for embeddings; None leaves it to the server, which is
            right where a server might refuse or ignore it.
        chat_names: what the provider calls parameters of a chat, see `chat_body`.

    Raises:
        InvalidInput: a chat has a parameter that the provider does not.
    """
    headers = {**settings.headers, **settings.auth_headers()}
    if isinstance(call, EmbedCall):
        body = embed_body(call, encoding_format=encoding_format)
        return HttpRequest(method="POST", path="/embeddings", headers=headers, json=body)
    if isinstance(call, CatalogCall):
        path = "/models" if call.cursor is None else f"/models?after={quote(call.cursor, safe='')}"
        return HttpRequest(method="GET", path=path, headers=headers)
    return HttpRequest(
        method="POST", path="/chat/completions", headers=headers, json=chat_body(call, chat_names)
    )


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
