"""Chat in the OpenAI-compatible dialect: the request body, whole replies, and the events of a stream.

Unknown keys are ignored, and so is an optional part that makes no sense, such as a usage without counts. Text, tool
calls and finish reasons of a wrong type raise `InvalidResponse`: parts of a reply must not vanish silently.

Pure: no I/O, no clock, no state. The engine calls these functions on the event loop, `parse_chat` in a worker thread
for large replies.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from attrs import evolve, fields_dict

from llmopt import reading
from llmopt.compatible.embeddings import read_usage
from llmopt.errors import InvalidInput
from llmopt.hookspecs import hookimpl
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent, ToolCall, ToolCallPart
from llmopt.values.error_shape import is_error
from llmopt.values.http import Failure, HttpResponse

# The request body.

_NOT_PARAMETERS: Final = frozenset({"model", "messages", "stream", "include_usage", "extra", "headers"})
_PARAMETERS: Final = tuple(name for name in fields_dict(ChatCall) if name not in _NOT_PARAMETERS)
"""The fields of a `ChatCall` that have the same name as their key in the body."""
SAME_NAMES: Final[Mapping[str, str | None]] = {}
"""Send every parameter under its name in `ChatCall`."""


def chat_body(call: ChatCall, names: Mapping[str, str | None] = SAME_NAMES) -> dict[str, Any]:
    """Build the body of a chat request. Parameters that are not set are left out; ``extra`` overrides all others.

    Args:
        call: the call.
        names: the provider's name of each parameter that it names differently; None for one that it lacks.

    Raises:
        InvalidInput: the call sets a parameter that the provider lacks.
    """
    body: dict[str, Any] = {
        "model": call.model,
        "messages": plain_messages(call.messages, own=True),
        "stream": call.stream,
    }
    for parameter, value in set_parameters(call).items():
        name = names.get(parameter, parameter)
        if name is None:
            raise InvalidInput(
                f"this provider has no {parameter}; leave it out, or pass the provider's own parameters "
                "in `extra`."
            )
        body[name] = value
    # Without it the dialect's servers send no usage in a stream; Mistral refuses the key.
    if call.stream and call.include_usage:
        body["stream_options"] = {"include_usage": True}
    return {**body, **call.extra}


def plain_messages(
    messages: Sequence[Mapping[str, Any]], *, own: bool = False
) -> tuple[Mapping[str, Any], ...]:
    """Messages without their ``provider_data``, which no server of the dialect knows, and some would refuse.

    Args:
        messages: of a call.
        own: whether tool calls get back the ``extra_content`` that a server of this dialect sent with them.
    """
    if not any(map(provider_data_of, messages)):
        return tuple(messages)
    return tuple(_plain(message, own=own) for message in messages)


def provider_data_of(message: Mapping[str, Any]) -> list[Any]:
    """The ``provider_data`` of a message and of its tool calls."""
    parts = (message, *_calls_of(message))
    return [part[_PROVIDER_DATA] for part in parts if _PROVIDER_DATA in part]


_PROVIDER_DATA: Final = "provider_data"
_EXTRA: Final = "extra_content"
"""Key of a tool call in which Gemini's compatible endpoints sign it (``{"google": {"thought_signature": ...}}``). They refuse
the results of a call that comes back without it (ai.google.dev/gemini-api/docs/thought-signatures)."""
_KEPT: Final = f"compatible.{_EXTRA}"


def _plain(part: Mapping[str, Any], *, own: bool) -> Mapping[str, Any]:
    plain = {key: value for key, value in part.items() if key != _PROVIDER_DATA}
    if own and (extra := part.get(_PROVIDER_DATA, {}).get(_KEPT)) is not None:
        plain[_EXTRA] = extra
    if calls := _calls_of(part):
        plain["tool_calls"] = [_plain(call, own=own) for call in calls]
    return plain


def _calls_of(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    calls = message.get("tool_calls")
    if isinstance(calls, (list, tuple)) and all(isinstance(call, Mapping) for call in calls):
        return calls
    return ()


def set_parameters(call: ChatCall) -> dict[str, Any]:
    """The parameters that a call sets, by their names in `ChatCall`."""
    values = ((name, getattr(call, name)) for name in _PARAMETERS)
    return {name: value for name, value in values if value is not None and value != ()}


# The response, whole or event by event.

DONE: Final = "[DONE]"
"""The data of the event that ends a stream."""
_FAILED: Final = re.compile(r"(?:.*[_ -])?error", re.IGNORECASE)
"""Finish reasons that mean a failure whichever server sends them: "error", "network_error" and their like."""
_NO_NAMES: Final[frozenset[str]] = frozenset()
_decode: Final = msgspec.json.Decoder().decode


@hookimpl(trylast=True)
def parse_chat(
    call: ChatCall, response: HttpResponse, *, failed_reasons: Collection[str] = _NO_NAMES
) -> ChatReply | Failure:
    """Read the reply of a response, or the error that a 2xx response holds.

    Of several ``choices`` only the first is read; ``raw`` has them all.

    Args:
        call: what was asked for.
        response: of the server.
        failed_reasons: finish reasons with which the provider marks a reply that it could not finish.

    Raises:
        InvalidResponse: the body is neither.
    """
    if is_error(response.json):
        return Failure.from_response(response, operation="chat", model=call.model)
    value = reading.body(response)
    choice = _choice(call, value)
    if choice is None:
        raise reading.invalid("the response has no choice.", "count")
    if choice.get("message") is None and choice.get("text") is None:
        raise reading.invalid("the choice of the response has no message.", "type")
    finish_reason = reading.text(choice.get("finish_reason"), "finish_reason") or None
    if finish_reason is not None and _is_failed(finish_reason, failed_reasons):
        return _ended_with(finish_reason, call)
    content = _message(choice)
    return ChatReply(
        text=content.text,
        reasoning=content.reasoning,
        refusal=content.refusal,
        tool_calls=tuple(
            ToolCall(id=part.id, name=part.name, arguments=part.arguments, provider_data=part.provider_data)
            for part in content.tool_calls
        ),
        finish_reason=finish_reason,
        usage=read_usage(value.get("usage")),
        model=_text(value.get("model")),
        id=_text(value.get("id")),
        raw=value,
    )


@hookimpl(trylast=True)
def parse_stream_event(
    call: ChatCall, event: ServerEvent, *, failed_reasons: Collection[str] = _NO_NAMES
) -> tuple[ChatEvent, ...] | Failure:
    """Read what one event adds to a reply, or the error that it holds; ``()`` for an empty event.

    Every event is checked for an error, also one with choices: some servers send both in one event, and then end
    the stream as if all was well. An event of a type that this version does not know adds nothing.

    Args:
        call: what was asked for.
        event: of the server.
        failed_reasons: as for `parse_chat`.

    Raises:
        InvalidResponse: the event is neither.
    """
    data = event.data
    # Compared without the blanks that some servers put around it.
    if data == DONE or (len(data) < _MAX_DONE and data.strip() == DONE):
        return (ChatEvent(last=True),)
    # vLLM sends such events; the data of some servers' lacks the key ``error``.
    if event.event != "message" and _ERROR_EVENT.search(event.event):
        return Failure.from_event(event, model=call.model)
    return () if not data or data.isspace() else _read_event(call, event, failed_reasons)


_MAX_DONE: Final = 64
_ERROR_EVENT: Final = re.compile(r"error|exception|fail(?:ed|ure)", re.IGNORECASE)
_DOUBLED_PREFIX: Final = re.compile(r"^(?:[ \t]*data:)+", re.MULTILINE)
_JSON_START: Final = ("{", "[", '"')


def _is_named(event: ServerEvent) -> bool:
    """Whether the server gives the event a type of its own."""
    return event.event not in ("message", "line")


def _read_event(
    call: ChatCall, event: ServerEvent, failed_reasons: Collection[str]
) -> tuple[ChatEvent, ...] | Failure:
    try:
        value = _decode(event.data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _not_json(call, event, failed_reasons)
    if type(value) is dict:
        return _chunk(call, event, value, failed_reasons)
    if is_error(value):
        return Failure.from_event(event, model=call.model)
    if value == [] or _is_named(event):
        return _unknown(event, {})
    raise reading.invalid("an event of the stream is not a JSON object.", "json")


def _not_json(
    call: ChatCall, event: ServerEvent, failed_reasons: Collection[str]
) -> tuple[ChatEvent, ...] | Failure:
    """Read an event whose data is not one JSON value."""
    lines = _DOUBLED_PREFIX.sub("", event.data).split("\n")
    if lines != [event.data]:
        # Some servers end each event with one line feed, so that several come as one; some proxies wrap events twice.
        events: list[ChatEvent] = []
        for line in lines:
            result = parse_stream_event(call, evolve(event, data=line), failed_reasons=failed_reasons)
            if isinstance(result, Failure):
                return result
            events += result
        return tuple(events)
    # A ping, or a kind of event without JSON; JSON that is damaged is no such thing.
    if _is_named(event) and not event.data.lstrip().startswith(_JSON_START):
        return _unknown(event, {})
    raise reading.invalid(f"an event of the stream ({len(event.data)} characters) is not JSON.", "json")


def _chunk(
    call: ChatCall, event: ServerEvent, value: dict[str, Any], failed_reasons: Collection[str]
) -> tuple[ChatEvent, ...] | Failure:
    # The usual case first: this runs for every token of a stream.
    if not (value.get("choices") and value.keys() <= _USUAL_KEYS) and is_error(value):
        return Failure.from_event(event, model=call.model)
    choice = _choice(call, value)
    reason = None if choice is None else choice.get("finish_reason")
    finish_reason = reading.text(reason, "finish_reason") or None
    if finish_reason is not None and _is_failed(finish_reason, failed_reasons):
        return _ended_with(finish_reason, call)
    usage = read_usage(value.get("usage"))
    if choice is None and usage is None and "choices" not in value:
        return _unknown(event, value) if value else ()
    content, whole = _NO_CONTENT, False
    if choice is not None and (delta := choice.get("delta")) is not None:
        content = _delta(choice, delta)
    elif choice is not None:
        content, whole = _message(choice), choice.get("message") is not None
    return (
        ChatEvent(
            text=content.text,
            reasoning=content.reasoning,
            refusal=content.refusal,
            tool_calls=content.tool_calls,
            finish_reason=finish_reason,
            usage=usage,
            model=_text(value.get("model")),
            id=_text(value.get("id")),
            whole=whole,
            raw=value,
        ),
    )


_USUAL_KEYS: Final = frozenset(
    {
        "id",
        "object",
        "created",
        "model",
        "choices",
        "usage",
        "system_fingerprint",
        "service_tier",
        "obfuscation",
        "provider",
    }
)
"""Keys of an event with choices, none of which can hold an error."""
_TYPE_NAME: Final = re.compile(r"[\w.:/-]{1,64}", re.ASCII)


def _unknown(event: ServerEvent, value: dict[str, Any]) -> tuple[ChatEvent, ...]:
    """An event of a type that this version does not know: it adds nothing, and the caller may look at it."""
    names = [value.get("type"), value.get("object"), value.get("event")]
    if _is_named(event):
        names.append(event.event)
    # It goes into events and logs, so that a text of any other form is not shown.
    name = next((name for name in names if isinstance(name, str) and _TYPE_NAME.fullmatch(name)), "unnamed")
    return (ChatEvent(unknown=name, raw=value or {"event": event.event, "data": event.data}),)


def _is_failed(reason: str, failed_reasons: Collection[str]) -> bool:
    return reason in failed_reasons or bool(_FAILED.fullmatch(reason))


def _ended_with(reason: str, call: ChatCall) -> Failure:
    """The failure of a reply with such a finish reason, which servers send without an error object."""
    message = f'the model ended its answer with finish_reason "{reason}"'
    body = msgspec.json.encode({"error": {"message": message, "code": reason}})
    return Failure(status=200, body=body, operation="chat", model=call.model)


def _choice(call: ChatCall, value: Mapping[str, Any]) -> dict[str, Any] | None:
    """The choice that is read: number 0, or the only one that was asked for, whatever its number."""
    choices = value.get("choices")
    if choices is not None and not isinstance(choices, list):
        raise reading.wrong_type("choices")
    for choice in choices or ():
        if not isinstance(choice, dict):
            raise reading.wrong_type("choices")
        # Choices of one event may come in any order, and some servers leave the index out.
        if not choice.get("index"):
            return choice
    # Some servers count from 1. With more than one choice, the others come in events of their own.
    return choices[0] if choices and call.extra.get("n") in (None, 1) else None


def _delta(choice: Mapping[str, Any], delta: object) -> MessageContent:
    content = read_content(delta, "delta")
    return _old_text(choice) if content is _NO_CONTENT else content


def _message(choice: Mapping[str, Any]) -> MessageContent:
    message = choice.get("message")
    if message is None:
        return _old_text(choice)
    return read_content(message, "message")


def _old_text(choice: Mapping[str, Any]) -> MessageContent:
    """The text where completions had it before there were chats; nothing in the late verdict of a content filter."""
    text = choice.get("text")
    return MessageContent(text=reading.text(text, "text")) if text else _NO_CONTENT


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


# The content of one message, or of one delta of a stream.

_REASONING_KEYS: Final = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "reasoning_text",
    "reasoning_details",
    "thinking_blocks",
)
"""Keys in which servers of this dialect return the model's reasoning; gateways fill several with the same words."""
_REASONING_PARTS: Final = ("text", "thinking", "content", "summary")
"""Keys of one part of a reasoning that is a list or an object."""
_PLAIN_KEYS: Final = frozenset({"content", "role"})


_MAX_INDEX_DIGITS: Final = 10


class MessageContent(NamedTuple):
    """What a message or a delta holds; the fields are those of `llmopt.values.chat.ChatEvent`."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


_NO_CONTENT: Final = MessageContent()


def read_content(message: object, name: str) -> MessageContent:
    """Read a ``message`` or a ``delta``.

    ``content`` is null, text, or a list of typed parts. Parts without text (images, references) stay in ``raw`` only.

    Raises:
        InvalidResponse: a value has a wrong type.
    """
    if not isinstance(message, dict):
        raise reading.wrong_type(name)
    content = message.get("content")
    # The usual case first: this runs for every token of a stream.
    if type(content) is str:
        result = MessageContent(text=content) if content else _NO_CONTENT
    elif content is None:
        result = _NO_CONTENT
    else:
        result = _typed_parts(content)
    # The usual delta holds text alone: a second tuple for each token is saved.
    if message.keys() <= _PLAIN_KEYS:
        return result
    reasoning = next((text for key in _REASONING_KEYS if (text := _reasoning(message.get(key)))), "")
    refusal, calls = message.get("refusal"), message.get("tool_calls")
    if calls is None and message.get("function_call"):
        # What tool calls were before one message could have several.
        calls = [{"function": message["function_call"]}]
    if not reasoning and refusal is None and calls is None:
        return result
    return MessageContent(
        text=result.text,
        reasoning=result.reasoning or reasoning,
        refusal=result.refusal or reading.text(refusal, "refusal"),
        tool_calls=_tool_calls(calls),
    )


def _reasoning(value: object) -> str:
    """The words of a reasoning in any of its forms; some values, such as numbers, have none."""
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else (value,)
    texts = (part.get(key) for part in parts if isinstance(part, dict) for key in _REASONING_PARTS)
    return "".join(text for text in texts if isinstance(text, str))


def _typed_parts(content: object) -> MessageContent:
    texts: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": []}
    for part in reading.objects(content, "content"):
        kind = part.get("type", "text")
        if kind == "thinking":
            texts["thinking"].append(_thinking(part.get("thinking")))
        elif kind == "refusal":
            texts[kind].append(reading.text(part.get(kind), kind))
        # "output_text" is the word of another API, which some gateways pass on.
        elif kind in ("text", "output_text"):
            texts["text"].append(reading.text(part.get("text"), "text"))
        elif isinstance(kind, str) and kind.startswith(("reasoning", "thought")):
            texts["thinking"].append(_reasoning(part))
    text, reasoning, refusal = ("".join(parts) for parts in texts.values())
    return MessageContent(text, reasoning, refusal)


def _thinking(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    parts = reading.objects(value, "thinking")
    return "".join(
        reading.text(part.get("text"), "text") for part in parts if part.get("type", "text") == "text"
    )


def _tool_calls(value: object) -> tuple[ToolCallPart, ...]:
    entries = reading.objects(value, "tool_calls", optional=True)
    return tuple(_tool_call(entry, position) for position, entry in enumerate(entries))


def _tool_call(entry: Mapping[str, Any], position: int) -> ToolCallPart:
    # Free text for a custom tool; some servers leave the inner object out.
    function = next((entry[key] for key in ("function", "custom") if entry.get(key) is not None), entry)
    if not isinstance(function, Mapping):
        raise reading.wrong_type("function")
    index = entry.get("index")
    return ToolCallPart(
        # Some servers leave out the index of a tool call, although pieces of a call are joined by it.
        index=_tool_index(index, position),
        id=reading.text(entry.get("id"), "id"),
        name=reading.text(function.get("name"), "name"),
        arguments=reading.arguments(function.get("arguments", function.get("input"))),
        provider_data={_KEPT: extra} if (extra := entry.get(_EXTRA)) else {},
    )


def _tool_index(index: object, position: int) -> int:
    if isinstance(index, str) and index.isdecimal() and len(index) < _MAX_INDEX_DIGITS:
        return int(index)
    return index if type(index) is int else position
