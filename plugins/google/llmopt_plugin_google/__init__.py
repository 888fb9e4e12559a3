"""Google's Gemini API as a provider of llmopt. Facts: docs/development/provider-facts.md#gemini."""

from __future__ import annotations

from llmopt import (
    BatchLimit,
    Call,
    CatalogPage,
    ChatCall,
    ChatReply,
    EmbedCall,
    EmbeddedRows,
    Failure,
    HttpRequest,
    HttpResponse,
    ModelTable,
    Option,
    Profile,
    RateLimits,
    RequestCost,
    ServerEvent,
    Settings,
    StreamStep,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_google import _answers, _catalog, _embeddings, _requests
from llmopt_plugin_google._errors import RULES

_MODELS = ModelTable("llmopt_plugin_google")
_PROFILE = Profile(
    base_url="https://generativelanguage.googleapis.com/v1beta",
    base_url_env=("GOOGLE_GEMINI_BASE_URL",),
    key_env=("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_GENERATIVE_AI_API_KEY"),
    auth="x-goog-api-key",
    # A model that thinks sends nothing meanwhile, neither pings nor thoughts.
    timeouts=Timeouts(connect=10, catalog=20, first_event=300, idle=300, idle_content=300),
    max_retries=3,
    # It comes unasked with every chunk.
    stream_usage=False,
    stream_end="finish",
    operations=frozenset({"embeddings", "chat", "catalog"}),
    options=(
        Option(
            name="model_rules",
            type=dict,
            help="what models differ in, by name, where the plugin does not know it: see its README",
        ),
    ),
)


@hookimpl
def provider_profile() -> Profile:
    """Base URL, keys and timeouts. No usual rate: it differs from model to model, and no header states it."""
    return _PROFILE


@hookimpl
def batch_limit(call: EmbedCall) -> BatchLimit:
    """A hundred texts; see models.toml."""
    return _MODELS.limit(_requests.plain_name(call.model))


@hookimpl
def request_cost(call: Call) -> RequestCost | None:
    """Each text of a batch counts as a request."""
    return RequestCost(requests=len(call.texts)) if isinstance(call, EmbedCall) else None


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_google._requests`."""
    return _requests.request_of(call, settings)


@hookimpl
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """See `llmopt_plugin_google._embeddings`."""
    return _embeddings.rows_of(call, response)


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """See `llmopt_plugin_google._answers`."""
    return _answers.reply_of(call, response)


@hookimpl
def parse_stream_event(
    call: ChatCall, event: ServerEvent, state: _answers.State | None
) -> StreamStep | Failure:
    """See `llmopt_plugin_google._answers`."""
    return _answers.step_of(call, event, state)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """See `llmopt_plugin_google._catalog`."""
    page = _catalog.page_of(response, settings)
    return _MODELS.described_page(page) if isinstance(page, CatalogPage) else page


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt_plugin_google._errors`."""
    return compatible.classify(failure, rules=RULES)


@hookimpl
def rate_limits() -> RateLimits:
    """Gemini states no rate in headers."""
    return RateLimits()
