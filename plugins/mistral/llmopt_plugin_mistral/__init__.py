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
    Profile,
    Settings,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_mistral._catalog import page_of
from llmopt_plugin_mistral._errors import verdict_of

_PROFILE = Profile(
    base_url="https://api.mistral.ai/v1",
    base_url_env=("MISTRAL_BASE_URL",),
    key_env=("MISTRAL_API_KEY", "LLM_MISTRAL_KEY"),
    timeouts=Timeouts(connect=10, read=30, read_large=60, catalog=15, pool=5),
    max_retries=3,
    max_concurrency=16,
    rpm=100,
)


@hookimpl
def provider_profile() -> Profile:
    """Address, keys and time-outs; limits are per workspace, so the usual rate is a careful one."""
    return _PROFILE


@hookimpl
def batch_limit() -> BatchLimit:
    """Careful sizes: Mistral documents none, 16,384 tokens a request and 512 items were seen."""
    return BatchLimit(max_items=128, max_item_tokens=8_192, max_tokens=16_000)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest | None:
    """Embeddings with Mistral's own key for dimensions, and no key that it does not know."""
    if not isinstance(call, EmbedCall):
        return None
    body: dict[str, object] = {"model": call.model, "input": call.texts, "encoding_format": "base64"}
    if call.dimensions is not None:
        body["output_dimension"] = call.dimensions
    headers = {**settings.headers, **settings.auth_headers()}
    return HttpRequest(method="POST", path="/embeddings", headers=headers, json={**body, **call.extra})


@hookimpl
def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    """One model for all its aliases."""
    page = compatible.parse_catalog(response)
    return page_of(page) if isinstance(page, CatalogPage) else page


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt_plugin_mistral._errors`."""
    return verdict_of(failure)
