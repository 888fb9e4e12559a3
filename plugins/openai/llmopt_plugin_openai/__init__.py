"""OpenAI as a provider of llmopt. Facts are from OpenAI's API description and guides, November 2026."""

from __future__ import annotations

from llmopt import (
    BatchLimit,
    Call,
    EmbedCall,
    Failure,
    HttpRequest,
    Option,
    Profile,
    Settings,
    Timeouts,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_plugin_openai._errors import verdict_of

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
    options=(
        Option(name="organization", env=("OPENAI_ORG_ID",), help="sent as OpenAI-Organization"),
        Option(name="project", env=("OPENAI_PROJECT_ID",), help="sent as OpenAI-Project"),
    ),
)


@hookimpl
def provider_profile() -> Profile:
    """Address, keys, time-outs, and the rate limits of usage tier 1."""
    return _PROFILE


@hookimpl
def batch_limit() -> BatchLimit:
    """The documented limits of every embedding model."""
    return BatchLimit(max_items=2_048, max_item_tokens=8_192, max_tokens=300_000)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """The common dialect, with base64 vectors and the organisation and project headers."""
    scoped = settings.with_headers(
        {
            "OpenAI-Organization": settings.options.get("organization"),
            "OpenAI-Project": settings.options.get("project"),
        }
    )
    encoding = "base64" if isinstance(call, EmbedCall) else None
    return compatible.build_request(call, scoped, encoding_format=encoding)


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt_plugin_openai._errors`."""
    return verdict_of(failure)
