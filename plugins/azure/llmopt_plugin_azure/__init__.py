"""Azure OpenAI as a provider of llmopt: classic deployments and the v1 surface, by key or by token."""

from __future__ import annotations

from collections.abc import Callable

from llmopt import (
    BatchLimit,
    Call,
    CatalogPage,
    EmbedCall,
    Failure,
    HttpRequest,
    HttpResponse,
    Profile,
    ProviderEntry,
    Settings,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_azure import _catalog, _entra, _limits, _profile, _requests
from llmopt_plugin_azure._errors import verdict_of


@hookimpl
def provider_profile(entry: ProviderEntry) -> Profile:
    """See `llmopt_plugin_azure._profile`."""
    return _profile.profile_of(entry)


@hookimpl
def credential_provider(settings: Settings) -> Callable[[], str] | None:
    """Tokens of azure-identity with ``auth = "entra"``."""
    return _entra.token_provider(settings) if settings.options.get("auth") == "entra" else None


@hookimpl
def batch_limit(call: EmbedCall, settings: Settings) -> BatchLimit:
    """See `llmopt_plugin_azure._limits`."""
    return _limits.limit_of(call, settings)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_azure._requests`."""
    return _requests.request_of(call, settings)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """See `llmopt_plugin_azure._catalog`."""
    page = compatible.parse_catalog(response, settings.provider)
    return _catalog.page_of(page, settings) if isinstance(page, CatalogPage) else page


@hookimpl
def classify_error(failure: Failure, settings: Settings) -> Verdict:
    """See `llmopt_plugin_azure._errors`."""
    return verdict_of(failure, settings)
