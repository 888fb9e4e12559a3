"""The built-in plugin: one implementation of every hook, for what a provider's plugin leaves out.

The OpenAI-compatible dialect's own functions are the implementations wherever their parameters are the hook's. All
are marked ``trylast``, so that any implementation of a plugin goes first.

Pure: no I/O, no state, no clock; `rate_limits` takes the time of arrival from the response.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from llmopt.compatible import models
from llmopt.compatible.chat import SAME_NAMES, chat_body, parse_chat, parse_stream_event
from llmopt.compatible.embeddings import embed_body, parse_embeddings
from llmopt.compatible.errors import classify
from llmopt.config.schema import TokenProvider
from llmopt.hookspecs import hookimpl
from llmopt.policies.retry_after import parse_rate_limits
from llmopt.values.calls import BatchLimit, Call, CatalogCall, EmbedCall, RateLimits, Settings
from llmopt.values.catalog import CatalogPage
from llmopt.values.http import Failure, HttpRequest, HttpResponse
from llmopt.values.profile import Profile

if TYPE_CHECKING:
    import httpx

__all__ = [
    "batch_limit",
    "build_request",
    "classify",
    "credential_provider",
    "limits_request",
    "open_transport",
    "parse_catalog",
    "parse_chat",
    "parse_embeddings",
    "parse_limits",
    "parse_stream_event",
    "provider_profile",
    "rate_limits",
]

DEFAULT_MAX_ITEMS: Final = 32
"""Texts per request when nothing is known about the server; every tested server accepts this number."""


@hookimpl(trylast=True)
def build_request(
    call: Call,
    settings: Settings,
    *,
    encoding_format: str | None = None,
    chat_names: Mapping[str, str | None] = SAME_NAMES,
) -> HttpRequest:
    """Build the request for any call.

    Args:
        call: what is asked for.
        settings: the endpoint's.
        encoding_format: "base64" or "float" for embeddings. None leaves the key out, which is safe for servers
            that might refuse or ignore it.
        chat_names: the provider's names of chat parameters, see `chat_body`.

    Raises:
        InvalidInput: a chat has a parameter that the provider lacks.
    """
    headers = {**settings.headers, **settings.auth_headers()}
    if isinstance(call, EmbedCall):
        body = embed_body(call, encoding_format=encoding_format)
        return HttpRequest(method="POST", path="/embeddings", headers=headers, json=body)
    if isinstance(call, CatalogCall):
        # Quoted, because a cursor is the server's text and could add parameters.
        path = "/models" if call.cursor is None else f"/models?after={quote(call.cursor, safe='')}"
        return HttpRequest(method="GET", path=path, headers=headers)
    return HttpRequest(
        method="POST", path="/chat/completions", headers=headers, json=chat_body(call, chat_names)
    )


@hookimpl(trylast=True)
def provider_profile() -> Profile:
    """A provider without defaults: the user configures its base URL."""
    return Profile()


@hookimpl(trylast=True)
def batch_limit() -> BatchLimit:
    """A batch that every server accepts."""
    return BatchLimit(max_items=DEFAULT_MAX_ITEMS, guesses=("max_items",))


@hookimpl(trylast=True)
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """The list of models, each named after the provider entry."""
    return models.parse_catalog(response, settings.provider)


@hookimpl(trylast=True)
def rate_limits(response: HttpResponse) -> RateLimits:
    """The usual ``x-ratelimit-*`` headers."""
    return parse_rate_limits(response.headers, response.received)


@hookimpl(trylast=True)
def limits_request() -> HttpRequest | None:
    """None: the dialect has no request for limits."""
    return None


@hookimpl(trylast=True)
def parse_limits() -> BatchLimit:
    """No limits."""
    return BatchLimit()


@hookimpl(trylast=True)
def credential_provider() -> TokenProvider | None:
    """None: the configured key."""
    return None


@hookimpl(trylast=True)
def open_transport() -> httpx.AsyncBaseTransport | None:
    """None: the connection pool."""
    return None
