"""Mistral as a provider of llmopt. Facts are from Mistral's API description and glossary, November 2026."""

from __future__ import annotations

from llmopt import (
    BatchLimit,
    Call,
    CatalogPage,
    EmbedCall,
    Failure,
    HttpRequest,
    HttpResponse,
    ModelTable,
    Profile,
    RateLimits,
    Settings,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_mistral._catalog import page_of
from llmopt_plugin_mistral._errors import verdict_of
from llmopt_plugin_mistral._rates import rates_of
from llmopt_plugin_mistral._requests import request_of

_MODELS = ModelTable("llmopt_plugin_mistral")
_KNOWN = ModelTable("llmopt_plugin_mistral", "known.json")
_PROFILE = Profile(
    base_url="https://api.mistral.ai/v1",
    base_url_env=("MISTRAL_BASE_URL",),
    key_env=("MISTRAL_API_KEY", "LLM_MISTRAL_KEY"),
    timeouts=Timeouts(connect=10, read=30, read_large=60, catalog=15, pool=5),
    max_retries=3,
    max_concurrency=16,
    rpm=100,
    # It comes unasked with the last chunk, and `stream_options` is refused.
    stream_usage=False,
    stream_end="done",
    operations=frozenset({"embeddings", "chat", "catalog"}),
)


@hookimpl
def provider_profile() -> Profile:
    """Base URL, keys and timeouts; limits are per workspace, so the default rate is conservative."""
    return _PROFILE


@hookimpl
def batch_limit(call: EmbedCall) -> BatchLimit:
    """Careful sizes, because Mistral documents none; see models.toml."""
    return _MODELS.limit(call.model)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_mistral._requests`."""
    return request_of(call, settings)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """One model for all its aliases, from an object or from a bare list."""
    page = compatible.parse_catalog(response, settings.provider)
    if not isinstance(page, CatalogPage):
        return page
    # The second one was checked by hand, and what it knows counts.
    return _MODELS.described_page(_KNOWN.described_page(page_of(page)))


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt_plugin_mistral._errors`."""
    return verdict_of(failure)


@hookimpl
def rate_limits(response: HttpResponse) -> RateLimits:
    """See `llmopt_plugin_mistral._rates`."""
    return rates_of(response)
