"""Anthropic's Messages API as a provider of llmopt. Facts: docs/development/provider-facts.md#anthropic."""

from __future__ import annotations

from llmopt import (
    Call,
    CatalogPage,
    ChatCall,
    ChatReply,
    Failure,
    HttpRequest,
    HttpResponse,
    Option,
    Profile,
    RateLimits,
    ServerEvent,
    Settings,
    StreamStep,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_anthropic import _answers, _catalog, _rates, _requests, _stream
from llmopt_plugin_anthropic._errors import RULES

_PROFILE = Profile(
    base_url="https://api.anthropic.com/v1",
    base_url_env=("ANTHROPIC_BASE_URL",),
    key_env=("ANTHROPIC_API_KEY",),
    auth="x-api-key",
    # A model that does not show its thinking sends nothing but pings meanwhile, for minutes.
    timeouts=Timeouts(connect=5, catalog=15, idle_content=600),
    max_retries=2,
    max_concurrency=32,
    # Usage tier 1: 50 requests a minute for each class of models.
    rpm=50,
    # It comes unasked, in the first and the last events.
    stream_usage=False,
    stream_end="done",
    operations=frozenset({"chat", "catalog"}),
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
    """Base URL, key and timeouts; the rates are those of the lowest usage tier, until headers state others."""
    return _PROFILE


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt_plugin_anthropic._requests`."""
    return _requests.request_of(call, settings)


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """See `llmopt_plugin_anthropic._answers`."""
    return _answers.reply_of(call, response)


@hookimpl
def parse_stream_event(
    call: ChatCall, event: ServerEvent, state: _stream.State | None
) -> StreamStep | Failure:
    """See `llmopt_plugin_anthropic._stream`."""
    return _stream.step_of(call, event, state)


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """See `llmopt_plugin_anthropic._catalog`."""
    return _catalog.page_of(response, settings)


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt_plugin_anthropic._errors`."""
    return compatible.classify(failure, rules=RULES)


@hookimpl
def rate_limits(response: HttpResponse) -> RateLimits:
    """See `llmopt_plugin_anthropic._rates`."""
    return _rates.rates_of(response)
