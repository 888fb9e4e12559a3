"""Many OpenAI-compatible providers of llmopt, as data: ``groq/llama-3.3-70b-versatile`` and the like.

`providers.json` is the table; `_table.py` documents its rows. Everything else follows the OpenAI-compatible dialect.
"""

from __future__ import annotations

from llmopt import (
    BatchLimit,
    Call,
    CatalogPage,
    ChatCall,
    ChatEvent,
    ChatReply,
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
from llmopt_plugin_compatible import _catalog, _profile, _requests
from llmopt_plugin_compatible._errors import FAILED_REASONS, verdict_of
from llmopt_plugin_compatible._table import TABLE


@hookimpl
def provider_profile(entry: ProviderEntry) -> Profile:
    """See `llmopt_plugin_compatible._profile`."""
    return _profile.profile_of(TABLE.row(entry.plugin_name), entry)


@hookimpl
def batch_limit(settings: Settings) -> BatchLimit | None:
    """The limits of the row, if it has any."""
    return TABLE.row(settings.plugin).limit


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest | None:
    """The request of the dialect; lists of models may have another path."""
    return _requests.request_of(call, settings, TABLE.row(settings.plugin))


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """The reply of the dialect; more finish reasons mean a failure."""
    return compatible.parse_chat(call, response, failed_reasons=FAILED_REASONS)


@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    """The event of the dialect; more finish reasons mean a failure."""
    return compatible.parse_stream_event(call, event, failed_reasons=FAILED_REASONS)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """Read a list of the common dialect, and the provider's own keys that the row names."""
    return _catalog.page_of(response, settings, TABLE.row(settings.plugin))


@hookimpl
def classify_error(failure: Failure, settings: Settings) -> Verdict:
    """See `llmopt_plugin_compatible._errors`."""
    return verdict_of(failure, settings.plugin)
