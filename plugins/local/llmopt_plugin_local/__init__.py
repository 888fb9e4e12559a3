"""Local and custom servers as a provider of llmopt, and an embedding engine inside the process.

With nothing configured, ``local/default`` is a real embedding model that runs in this process. With
a ``base_url`` it is whatever server answers there: one that speaks the common dialect, or by its
``flavour`` TEI, Ollama, vLLM, llama.cpp, Infinity or LM Studio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmopt import (
    BatchLimit,
    Call,
    CatalogPage,
    ChatCall,
    ChatEvent,
    ChatReply,
    EmbedCall,
    EmbeddedRows,
    Failure,
    HttpRequest,
    HttpResponse,
    Profile,
    ProviderEntry,
    ServerEvent,
    Settings,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_local import _answers, _catalog, _limits, _ollama, _profile, _requests
from llmopt_plugin_local._errors import verdict_of

if TYPE_CHECKING:
    import httpx


@hookimpl
def provider_profile(entry: ProviderEntry) -> Profile:
    """See `llmopt_plugin_local._profile`."""
    return _profile.profile_of(entry)


@hookimpl
def batch_limit(call: EmbedCall, settings: Settings) -> BatchLimit:
    """See `llmopt_plugin_local._limits`."""
    return _limits.limit_of(call, settings)


@hookimpl
def limits_request(settings: Settings) -> HttpRequest | None:
    """Only for flavours that state limits."""
    return _limits.question_of(settings)


@hookimpl
def parse_limits(call: EmbedCall, response: HttpResponse) -> BatchLimit:
    """See `llmopt_plugin_local._limits`."""
    return _limits.told_by(call, response)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_local._requests`."""
    return _requests.request_of(call, settings)


@hookimpl
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """See `llmopt_plugin_local._answers`."""
    return _answers.rows_of(call, response)


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """See `llmopt_plugin_local._ollama`."""
    return _ollama.reply_of(call, response)


@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure | None:
    """Lines are Ollama's format; other events are the common dialect."""
    if event.event == "line":
        return _ollama.events_of(call, event)
    return compatible.parse_stream_event(call, event, failed_reasons=_ollama.FAILED_REASONS)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """See `llmopt_plugin_local._catalog`."""
    return _catalog.page_of(response, settings)


@hookimpl
def classify_error(failure: Failure, settings: Settings) -> Verdict:
    """See `llmopt_plugin_local._errors`."""
    return verdict_of(failure, settings)


@hookimpl
def open_transport(settings: Settings) -> httpx.AsyncBaseTransport | None:
    """The embedded engine, if no server is configured."""
    if settings.base_url:
        return None
    from llmopt_plugin_local._embedded import EmbeddedTransport

    return EmbeddedTransport(settings.options.get("processes", 0))
