"""OpenAI as a provider of llmopt. Facts are from OpenAI's API description and guides, November 2026."""

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
    Option,
    Profile,
    Settings,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_openai._errors import RULES
from llmopt_plugin_openai._requests import request_of

_MODELS = ModelTable("llmopt_plugin_openai")
_KNOWN = ModelTable("llmopt_plugin_openai", "known.json")
_PROFILE = Profile(
    base_url="https://api.openai.com/v1",
    base_url_env=("OPENAI_BASE_URL",),
    key_env=("OPENAI_API_KEY",),
    # Keys also work at the regional hosts, such as eu.api.openai.com.
    own_hosts=("*.api.openai.com",),
    timeouts=Timeouts(connect=5, read=60, read_large=120, catalog=10, pool=3),
    max_retries=2,
    pool_size=128,
    max_concurrency=64,
    rpm=3_000,
    tpm=1_000_000,
    stream_end="done",
    operations=frozenset({"embeddings", "chat", "catalog"}),
    options=(
        Option(name="organization", env=("OPENAI_ORG_ID",), help="sent as OpenAI-Organization"),
        Option(name="project", env=("OPENAI_PROJECT_ID",), help="sent as OpenAI-Project"),
    ),
)


@hookimpl
def provider_profile() -> Profile:
    """Base URL, keys, timeouts, and the rate limits of usage tier 1."""
    return _PROFILE


@hookimpl
def batch_limit(call: EmbedCall) -> BatchLimit:
    """The documented limits of every embedding model, see models.toml."""
    return _MODELS.limit(call.model)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_openai._requests`."""
    return request_of(call, settings)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """OpenAI's list has ids only; known data is added."""
    page = compatible.parse_catalog(response, settings.provider)
    if not isinstance(page, CatalogPage):
        return page
    # The second one was checked by hand, and what it knows counts.
    return _MODELS.described_page(_KNOWN.described_page(page))


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt_plugin_openai._errors`."""
    return compatible.classify(failure, rules=RULES)
