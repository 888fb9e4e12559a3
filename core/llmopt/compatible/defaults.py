"""The core's own implementation of every hook, asked when a plugin leaves a question open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmopt import compatible
from llmopt.config.schema import TokenProvider
from llmopt.hookspecs import hookimpl
from llmopt.policies.retry_after import parse_rate_limits
from llmopt.values.calls import BatchLimit, Call, ChatCall, EmbedCall, RateLimits, Settings
from llmopt.values.catalog import CatalogPage
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest, HttpResponse, Verdict
from llmopt.values.profile import Profile

if TYPE_CHECKING:
    import httpx


@hookimpl(trylast=True)
def provider_profile() -> Profile:
    """A provider of which only the address is known."""
    return Profile()


@hookimpl(trylast=True)
def batch_limit() -> BatchLimit:
    """A size that every server seen takes."""
    return BatchLimit(max_items=32)


@hookimpl(trylast=True)
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """See `llmopt.compatible.build_request`."""
    return compatible.build_request(call, settings)


@hookimpl(trylast=True)
def parse_embeddings(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """See `llmopt.compatible.parse_embeddings`."""
    return compatible.parse_embeddings(call, response)


@hookimpl(trylast=True)
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """See `llmopt.compatible.parse_catalog`."""
    return compatible.parse_catalog(response, settings.provider)


@hookimpl(trylast=True)
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """See `llmopt.compatible.parse_chat`."""
    return compatible.parse_chat(call, response)


@hookimpl(trylast=True)
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    """See `llmopt.compatible.parse_stream_event`."""
    return compatible.parse_stream_event(call, event)


@hookimpl(trylast=True)
def classify_error(failure: Failure) -> Verdict:
    """See `llmopt.compatible.classify`."""
    return compatible.classify(failure)


@hookimpl(trylast=True)
def rate_limits(response: HttpResponse) -> RateLimits:
    """The usual ``x-ratelimit-*`` headers, in every format seen."""
    return parse_rate_limits(response.headers, response.received)


@hookimpl(trylast=True)
def limits_request() -> HttpRequest | None:
    """None: nothing is asked."""
    return None


@hookimpl(trylast=True)
def parse_limits() -> BatchLimit:
    """Nothing is told."""
    return BatchLimit()


@hookimpl(trylast=True)
def credential_provider() -> TokenProvider | None:
    """None: the configured key."""
    return None


@hookimpl(trylast=True)
def open_transport() -> httpx.AsyncBaseTransport | None:
    """None: the core's own pool."""
    return None
