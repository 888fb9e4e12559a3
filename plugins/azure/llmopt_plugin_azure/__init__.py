"""Azure OpenAI as a provider of llmopt: classic deployments and the v1 surface."""

from __future__ import annotations

from llmopt import (
    BatchLimit,
    Call,
    CatalogPage,
    Failure,
    HttpRequest,
    HttpResponse,
    Option,
    Profile,
    Settings,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_azure import _catalog, _requests
from llmopt_plugin_azure._errors import verdict_of

_PROFILE = Profile(
    base_url_env=("AZURE_OPENAI_ENDPOINT",),
    key_env=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
    own_hosts=("*.openai.azure.com", "*.services.ai.azure.com", "*.cognitiveservices.azure.com"),
    auth="api-key",
    timeouts=Timeouts(connect=10, read=90, read_large=180, catalog=15, pool=5),
    max_retries=3,
    max_concurrency=32,
    rpm=300,
    options=(
        Option(
            name="surface",
            choices=("classic", "v1"),
            help="which of the two APIs; v1 unless api_version is set",
        ),
        Option(
            name="api_version",
            env=("OPENAI_API_VERSION", "AZURE_OPENAI_API_VERSION"),
            help="version of the classic API, such as 2024-10-21",
        ),
        Option(name="deployment", help="deployment to use; the model's name unless given"),
        Option(name="deployments", type=list, help="names of deployments, given as the list of models"),
        Option(name="token_scope", help="scope asked of the token provider"),
    ),
)


@hookimpl
def provider_profile() -> Profile:
    """Keys, time-outs and a careful rate; the address is the user's own resource."""
    return _PROFILE


@hookimpl
def batch_limit() -> BatchLimit:
    """2,048 inputs of 8,192 tokens; whether 300,000 in all holds here is not known, so it is kept to."""
    return BatchLimit(max_items=2_048, max_item_tokens=8_192, max_tokens=300_000)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_azure._requests`."""
    return _requests.request_of(call, settings)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """Configured deployments where there are any, else the base models of the resource."""
    page = compatible.parse_catalog(response)
    return _catalog.page_of(page, settings) if isinstance(page, CatalogPage) else page


@hookimpl
def classify_error(failure: Failure, settings: Settings) -> Verdict:
    """See `llmopt_plugin_azure._errors`."""
    return verdict_of(failure, settings)
