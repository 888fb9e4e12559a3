"""Ollama's native chat, ``/api/chat``: its parameters, messages, whole replies and streamed lines.

Used instead of Ollama's OpenAI-compatible interface, which ends a failing stream without an error; the native one
reports the failure (middleware/openai.go of ollama/ollama@fb30760).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llmopt import (
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpResponse,
    InvalidInput,
    InvalidResponse,
    ServerEvent,
    ToolCall,
    ToolCallPart,
    Usage,
    compatible,
)
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
    try:
        value = msgspec.json.decode(event.data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _invalid(f"a line of the stream ({len(event.data)} characters) is not JSON", "json") from None
    if not isinstance(value, dict):
        raise _invalid("a line of the stream is no JSON object", "json")
    # An error, a server of the common dialect, or a line of a type that is not known.
    if value.get("error") or (value and "message" not in value):
        return compatible.parse_stream_event(call, event, failed_reasons=FAILED_REASONS)
    return (_event(value),)


def _event(value: Mapping[str, Any]) -> ChatEvent:
    message = value.get("message")
    if not isinstance(message, dict):
        raise _invalid("the answer holds no message", "type")
    done = value.get("done") is True
    return ChatEvent(
        text=_text(message, "content"),
        reasoning=_text(message, "thinking"),
        tool_calls=_calls(message.get("tool_calls")),
        finish_reason=_text(value, "done_reason") or "stop" if done else None,
        usage=_usage(value) if done else None,
        model=model if isinstance(model := value.get("model"), str) else "",
        last=done,
        raw=value,
    )


def _calls(value: object) -> tuple[ToolCallPart, ...]:
    """Calls come whole, with arguments as an object; ids are recent."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _invalid("the tool calls of the answer are no list", "type")
    return tuple(_call(entry, place) for place, entry in enumerate(value))


def _call(entry: object, place: int) -> ToolCallPart:
    function = entry.get("function") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(function, dict):
        raise _invalid("a tool call of the answer has no function", "type")
    arguments = function.get("arguments")
    index = function.get("index")
    return ToolCallPart(
        index=index if type(index) is int else place,
        id=_text(entry, "id"),
        name=_text(function, "name"),
        arguments=_text(function, "arguments")
        if not isinstance(arguments, dict)
        else msgspec.json.encode(arguments).decode(),
    )


def _usage(value: Mapping[str, Any]) -> Usage | None:
    """Counts that are 0 are left out, as that of a prompt that was in the cache."""
    read, said = (_count(value.get(name)) for name in ("prompt_eval_count", "eval_count"))
    if read is None and said is None:
        return None
    read, said = read or 0, said or 0
    return Usage(prompt_tokens=read, completion_tokens=said, total_tokens=read + said)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise _invalid(f"`{key}` of the answer is no text", "type")
    return found


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(f"{message}.", reason=reason, sent="yes")
