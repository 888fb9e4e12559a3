"""Ollama's native chat, ``/api/chat``: its parameters, messages, whole replies and streamed lines.

Used instead of Ollama's OpenAI-compatible interface, which ends a failing stream without an error; the native one
reports the failure (middleware/openai.go of ollama/ollama@fb30760).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmopt import (
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpResponse,
    InvalidInput,
    ServerEvent,
    ToolCall,
    ToolCallPart,
    Usage,
    compatible,
    reading,
)
from llmopt.values.embeddings import NOT_TOLD
from llmopt_plugin_local._ollama_messages import messages_of

_OPTIONS: Final[Mapping[str, str]] = {
    "max_tokens": "num_predict",
    "temperature": "temperature",
    "top_p": "top_p",
    "stop": "stop",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Parameters that stand below ``options``, and what they are called there (api/types.go)."""
_MAX_TOKENS: Final = 10**12
FAILED_REASONS: Final = frozenset({"abort"})
"""Finish reasons with which vLLM and SGLang end a reply that they drop."""


def chat_body(call: ChatCall) -> dict[str, Any]:
    """The body of a request.

    Raises:
        InvalidInput: Ollama lacks a feature of the call: a forced tool, an image by URL.
    """
    body: dict[str, Any] = {
        "model": call.model,
        "messages": messages_of(call.messages),
        # Without it there would be a stream.
        "stream": call.stream,
    }
    found = {name: getattr(call, parameter) for parameter, name in _OPTIONS.items()}
    options = {name: value for name, value in found.items() if value is not None and value != ()}
    if options:
        body["options"] = options
    if call.tools:
        body["tools"] = call.tools
    if call.tool_choice not in (None, "auto") or call.parallel_tool_calls is not None:
        raise InvalidInput("Ollama has neither tool_choice nor parallel_tool_calls; leave them out.")
    if call.response_format is not None:
        body.update(_format(call.response_format))
    if call.reasoning_effort is not None:
        body["think"] = False if call.reasoning_effort == "none" else call.reasoning_effort
    return {**body, **call.extra}


def _format(wanted: Mapping[str, Any]) -> dict[str, Any]:
    kind, schema = wanted.get("type"), wanted.get("json_schema")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"format": "json"}
    if kind == "json_schema" and isinstance(schema, Mapping) and "schema" in schema:
        return {"format": schema["schema"]}
    raise InvalidInput(
        'response_format for Ollama is {"type": "text"}, {"type": "json_object"} or '
        '{"type": "json_schema", "json_schema": {"schema": ...}}.'
    )


def reply_of(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """The reply of a response, in Ollama's form or the common one.

    Raises:
        InvalidResponse: the response is neither, nor an error.
    """
    value = response.json
    if not isinstance(value, dict) or "choices" in value or not isinstance(value.get("message"), dict):
        return compatible.parse_chat(call, response, failed_reasons=FAILED_REASONS)
    if value.get("error"):
        return Failure.from_response(response, operation="chat", model=call.model)
    event = _event(value)
    return ChatReply(
        text=event.text,
        reasoning=event.reasoning,
        tool_calls=tuple(
            ToolCall(id=part.id, name=part.name, arguments=part.arguments) for part in event.tool_calls
        ),
        finish_reason=event.finish_reason,
        usage=event.usage,
        model=event.model,
        raw=value,
    )


def events_of(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    """What a line of a stream adds, or the failure that it is.

    Raises:
        InvalidResponse: the line is neither.
    """
    value = reading.event(event)
    # An error, a server of the common dialect, or a line of a type that is not known.
    if value.get("error") or (value and "message" not in value):
        return compatible.parse_stream_event(call, event, failed_reasons=FAILED_REASONS)
    return (_event(value),)


def _event(value: Mapping[str, Any]) -> ChatEvent:
    message = value.get("message")
    if not isinstance(message, dict):
        raise reading.invalid("the answer holds no message.")
    done = value.get("done") is True
    calls = reading.objects(message.get("tool_calls"), "tool_calls", optional=True)
    return ChatEvent(
        text=reading.text(message.get("content"), "content"),
        reasoning=reading.text(message.get("thinking"), "thinking"),
        tool_calls=tuple(_call(entry, place) for place, entry in enumerate(calls)),
        finish_reason=reading.text(value.get("done_reason"), "done_reason") or "stop" if done else None,
        usage=_usage(value) if done else None,
        model=model if isinstance(model := value.get("model"), str) else "",
        last=done,
        raw=value,
    )


def _call(entry: Mapping[str, Any], place: int) -> ToolCallPart:
    """Calls come whole, with arguments as an object; ids are recent."""
    function = entry.get("function")
    if not isinstance(function, dict):
        raise reading.invalid("a tool call of the answer has no function.")
    index = function.get("index")
    return ToolCallPart(
        index=index if type(index) is int else place,
        id=reading.text(entry.get("id"), "id"),
        name=reading.text(function.get("name"), "name"),
        arguments=reading.arguments(function.get("arguments")),
    )


def _usage(value: Mapping[str, Any]) -> Usage | None:
    """Counts that are 0 are left out, as that of a prompt that was in the cache."""
    read, said = (reading.count(value.get(name)) for name in ("prompt_eval_count", "eval_count"))
    if read is NOT_TOLD and said is NOT_TOLD:
        return None
    return Usage(prompt_tokens=read, completion_tokens=said, total_tokens=read + said)
