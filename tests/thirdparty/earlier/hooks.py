"""Every hook of the first contract, with all its parameters and what it returned then."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmopt import (
    BatchLimit,
    Call,
    CatalogCall,
    CatalogPage,
    ChatCall,
    ChatEvent,
    ChatReply,
    EmbedCall,
    EmbeddedRows,
    Failure,
    HttpRequest,
    HttpResponse,
    Model,
    Option,
    Profile,
    ProviderEntry,
    RateLimit,
    RateLimits,
    RequestCost,
    ServerEvent,
    Settings,
    Timeouts,
    ToolCall,
    ToolCallPart,
    Usage,
    Verdict,
    VerdictKind,
    compatible,
    hookimpl,
)

if TYPE_CHECKING:
    import httpx


@hookimpl
def provider_profile(entry: ProviderEntry) -> Profile:
    return Profile(
        base_url="https://earlier.example/v1",
        key_env=("EARLIER_KEY",),
        timeouts=Timeouts(connect=5),
        options=(Option(name="region", help="where the data may be"),),
        rpm=None if entry.base_url else 600,
    )


@hookimpl
def batch_limit(call: EmbedCall, settings: Settings) -> BatchLimit:
    return BatchLimit(max_items=2)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    headers = {**settings.headers, **settings.auth_headers()}
    if isinstance(call, CatalogCall):
        return HttpRequest(method="GET", path="/list", headers=headers)
    body = {"in": list(call.texts)} if isinstance(call, EmbedCall) else {"say": list(call.messages)}
    path = "/embed" if isinstance(call, EmbedCall) else "/stream" if call.stream else "/chat"
    return HttpRequest(method="POST", path=path, headers=headers, json={**body, **call.extra})


@hookimpl
def parse_embeddings(call: EmbedCall, response: HttpResponse, settings: Settings) -> EmbeddedRows | Failure:
    import numpy as np

    rows = np.array(response.json["rows"], dtype=np.float32)
    return EmbeddedRows(vectors=rows, usage=Usage(prompt_tokens=3, total_tokens=3))


@hookimpl
def parse_catalog(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    return CatalogPage(models=tuple(Model(id=name) for name in response.json["names"]))


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse, settings: Settings) -> ChatReply | Failure:
    said = response.json
    call_of = ToolCall(id="c1", name="look", arguments="{}")
    return ChatReply(text=said["text"], tool_calls=(call_of,), finish_reason="tool_calls", raw=said)


@hookimpl
def parse_stream_event(
    call: ChatCall, event: ServerEvent, settings: Settings
) -> tuple[ChatEvent, ...] | Failure:
    if event.data == "end":
        return (
            ChatEvent(finish_reason="stop", usage=Usage(prompt_tokens=1, total_tokens=2)),
            ChatEvent(last=True),
        )
    if event.data == "call":
        return (ChatEvent(tool_calls=(ToolCallPart(index=0, id="c1", name="look", arguments="{}"),)),)
    if event.data.startswith("{"):
        return Failure.from_event(event, model=call.model)
    return (ChatEvent(text=event.data),)


@hookimpl
def classify_error(failure: Failure, settings: Settings) -> Verdict:
    if failure.status == 418:
        return Verdict(kind=VerdictKind.OVERLOADED, retry_after=0.0)
    return compatible.classify(failure)


@hookimpl
def rate_limits(response: HttpResponse, settings: Settings) -> RateLimits:
    left = response.headers.get("x-left")
    return RateLimits(requests=RateLimit(remaining=float(left))) if left else RateLimits()


@hookimpl
def request_cost(call: Call, settings: Settings) -> RequestCost:
    return RequestCost(requests=len(call.texts) if isinstance(call, EmbedCall) else 1)


@hookimpl
def limits_request(call: EmbedCall, settings: Settings) -> HttpRequest:
    return HttpRequest(method="GET", path="/limits", headers=settings.headers)


@hookimpl
def parse_limits(call: EmbedCall, response: HttpResponse, settings: Settings) -> BatchLimit:
    return BatchLimit(max_items=response.json["items"])


@hookimpl
def credential_provider(settings: Settings) -> None:
    return None


@hookimpl
def open_transport(settings: Settings) -> httpx.AsyncBaseTransport | None:
    return None
