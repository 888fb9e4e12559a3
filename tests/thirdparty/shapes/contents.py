"""A plugin for a server with Gemini's generateContent: signed parts, and calls of functions without ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from attrs import frozen

from llmopt import (
    Call,
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpRequest,
    HttpResponse,
    InvalidInput,
    Profile,
    ServerEvent,
    Settings,
    StreamStep,
    ToolCall,
    ToolCallPart,
    Usage,
    Verdict,
    compatible,
    hookimpl,
    reading,
)

REASONS = {"STOP": "stop", "MAX_TOKENS": "length", "SAFETY": "content_filter"}
OWN = "contents"
"""The plugin's key in provider_data."""


@hookimpl
def provider_profile() -> Profile:
    """A stream has no end of its own."""
    return Profile(
        base_url="https://contents.example/v1beta", key_env=("CONTENTS_KEY",), auth="x-goog-api-key"
    )


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """As in the common dialect."""
    return compatible.classify(failure)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """The request; results name their function, and signatures stand where they came."""
    if not isinstance(call, ChatCall):
        raise InvalidInput("this provider has chats only.")
    body: dict[str, Any] = {"contents": list(_contents(call.messages))}
    if call.tools:
        body["tools"] = [{"functionDeclarations": [_declared(tool["function"]) for tool in call.tools]}]
    way = "streamGenerateContent?alt=sse" if call.stream else "generateContent"
    headers = {**settings.headers, **settings.auth_headers()}
    path = f"/models/{call.model}:{way}"
    return HttpRequest(method="POST", path=path, headers=headers, json={**body, **call.extra})


def _declared(function: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": function["name"], "parametersJsonSchema": function.get("parameters", {"type": "object"})}


def _contents(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    asked: dict[str, Mapping[str, Any]] = {}
    results: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            results.append(_result(asked[message["tool_call_id"]], message["content"]))
            continue
        if results:
            yield {"role": "user", "parts": results}
            results = []
        if message["role"] != "assistant":
            yield {"role": "user", "parts": [{"text": message["content"]}]}
            continue
        calls = message.get("tool_calls", ())
        asked.update((call["id"], call) for call in calls)
        said = [_signed({"text": message["content"]}, message)] if message.get("content") else []
        yield {"role": "model", "parts": [*said, *map(_called, calls)]}
    if results:
        yield {"role": "user", "parts": results}


def _own(part: Mapping[str, Any]) -> Mapping[str, Any]:
    own: Mapping[str, Any] = part.get("provider_data", {}).get(OWN, {})
    return own


def _signed(part: dict[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    signature = _own(source).get("signature")
    return {**part, "thoughtSignature": signature} if signature else part


def _called(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    written = {"name": function["name"], "args": msgspec.json.decode(function["arguments"] or "{}")}
    return _signed({"functionCall": _with_id(written, call)}, call)


def _result(call: Mapping[str, Any], content: str) -> dict[str, Any]:
    answer = {"name": call["function"]["name"], "response": {"output": content}}
    return {"functionResponse": _with_id(answer, call)}


def _with_id(value: dict[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    # The id of the call is llmopt's where the server gave none.
    return {**value, "id": own} if (own := _own(call).get("id")) else value


class _Part(msgspec.Struct, rename="camel"):
    text: str = ""
    thought: bool = False
    thought_signature: str = ""
    function_call: dict[str, Any] | None = None


class _Content(msgspec.Struct):
    parts: list[_Part] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None


class _Answer(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate]
    usage_metadata: dict[str, Any] = {}
    model_version: str = ""
    response_id: str = ""


@hookimpl
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """A whole answer: the one event of a stream."""
    value = reading.body(response)
    if value.get("error"):
        return Failure.from_response(response, operation="chat", model=call.model)
    event = _read(value, State()).events[0]
    if event.finish_reason is None:
        raise reading.invalid("the answer has no end.", "truncated")
    return ChatReply(
        text=event.text,
        reasoning=event.reasoning,
        tool_calls=tuple(
            ToolCall(id=part.id, name=part.name, arguments=part.arguments, provider_data=part.provider_data)
            for part in event.tool_calls
        ),
        finish_reason=event.finish_reason,
        usage=event.usage,
        model=event.model,
        id=event.id,
        provider_data=event.provider_data,
        raw=value,
    )


@frozen(kw_only=True)
class State:
    """How many calls there were, and the last value of each count: fields come and go."""

    calls: int = 0
    usage: Mapping[str, int] = {}


@hookimpl
def parse_stream_event(call: ChatCall, event: ServerEvent, state: State | None) -> StreamStep | Failure:
    """One event: a whole answer with the new parts alone."""
    if not event.data.strip():
        return StreamStep((), state)
    value = reading.event(event)
    if value.get("error"):
        return Failure.from_event(event, model=call.model)
    return _read(value, state or State())


def _read(value: Any, state: State) -> StreamStep:
    answer = reading.as_type(value, _Answer)
    if not answer.candidates:
        raise reading.invalid("the answer has no candidate.", "count")
    candidate = answer.candidates[0]
    parts = candidate.content.parts if candidate.content is not None else []
    calls = tuple(
        _call(part, state.calls + number)
        for number, part in enumerate(each for each in parts if each.function_call)
    )
    usage = {**state.usage, **{n: v for n, v in answer.usage_metadata.items() if type(v) is int and v >= 0}}
    signatures = [
        each.thought_signature for each in parts if each.thought_signature and not each.function_call
    ]
    event = ChatEvent(
        text="".join(part.text for part in parts if not part.thought),
        reasoning="".join(part.text for part in parts if part.thought),
        tool_calls=calls,
        finish_reason=REASONS.get(candidate.finish_reason or "", candidate.finish_reason),
        usage=_usage(usage) if answer.usage_metadata else None,
        model=answer.model_version,
        id=answer.response_id,
        provider_data={OWN: {"signature": signatures[-1]}} if signatures else {},
        raw=value,
    )
    return StreamStep((event,), State(calls=state.calls + len(calls), usage=usage))


class _Function(msgspec.Struct):
    name: str
    args: dict[str, Any] = {}
    id: str = ""


def _call(part: _Part, index: int) -> ToolCallPart:
    function = reading.as_type(part.function_call, _Function)
    own = {"signature": part.thought_signature, "id": function.id}
    own = {name: value for name, value in own.items() if value}
    return ToolCallPart(
        index=index,
        id=function.id,
        name=function.name,
        arguments=msgspec.json.encode(function.args).decode(),
        provider_data={OWN: own} if own else {},
    )


def _usage(counts: Mapping[str, int]) -> Usage:
    return Usage(
        prompt_tokens=counts.get("promptTokenCount", 0) + counts.get("toolUsePromptTokenCount", 0),
        completion_tokens=counts.get("candidatesTokenCount", 0) + counts.get("thoughtsTokenCount", 0),
        total_tokens=counts.get("totalTokenCount", 0),
        cached_tokens=counts.get("cachedContentTokenCount", 0),
        reasoning_tokens=counts.get("thoughtsTokenCount", 0),
    )
