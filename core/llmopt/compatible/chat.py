"""Chat answers in the common dialect, whole and event by event, read strictly where words are concerned.

Keys that are not known are left alone, and so is what the answer does not need (a usage that makes no
sense). A text, a tool call or a finish reason of a wrong type is an `InvalidResponse`: words that
cannot be read must not vanish.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from llmopt.compatible.embeddings import read_usage
from llmopt.errors import InvalidInput, InvalidResponse
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent, ToolCall, ToolCallPart
from llmopt.values.http import Failure, HttpResponse

# What a message or a delta of the common dialect says: text, thoughts, a refusal, tool calls.

_THOUGHTS: Final = ("reasoning_content", "reasoning")
"""Under which key servers of the common dialect tell what the model thought."""


class Said(NamedTuple):
    """What was said; see `llmopt.values.chat.ChatEvent`."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


def said_in(message: Mapping[str, Any]) -> Said:
    """Read a ``message`` or a ``delta``.

    ``content`` is null, text, or a list of typed parts. Parts of a type without text (images,
    references) are left to ``raw``.

    Raises:
        InvalidResponse: a part of it has a wrong type.
    """
    content = message.get("content")
    if type(content) is str:
        said = Said(text=content)
    elif content is None:
        said = _NOTHING
    else:
        said = _typed(content)
    thoughts = next((found for key in _THOUGHTS if (found := message.get(key))), None)
    refusal, calls = message.get("refusal"), message.get("tool_calls")
    if thoughts is None and refusal is None and calls is None:
        return said
    return Said(
        text=said.text,
        reasoning=said.reasoning or (thoughts if isinstance(thoughts, str) else ""),
        refusal=said.refusal or _checked_text(refusal, "refusal"),
        tool_calls=_calls(calls),
    )


def _typed(content: object) -> Said:
    texts: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": []}
    for part in _objects(content, "content"):
        kind = part.get("type", "text")
        if kind == "thinking":
            texts["thinking"].append(_thinking(part.get("thinking")))
        elif kind in ("text", "refusal"):
            texts[kind].append(_checked_text(part.get(kind), kind))
    text, reasoning, refusal = ("".join(parts) for parts in texts.values())
    return Said(text, reasoning, refusal)


def _thinking(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    parts = _objects(value, "thinking")
    return "".join(
        _checked_text(part.get("text"), "text") for part in parts if part.get("type", "text") == "text"
    )


def _calls(value: object) -> tuple[ToolCallPart, ...]:
    if value is None:
        return ()
    return tuple(_call(entry, place) for place, entry in enumerate(_objects(value, "tool_calls")))


def _call(entry: Mapping[str, Any], place: int) -> ToolCallPart:
    function = entry.get("function")
    if function is None:
        function = {}
    if not isinstance(function, Mapping):
        raise _wrong_type("function")
    index = entry.get("index")
    return ToolCallPart(
        index=index if type(index) is int else place,
        id=_checked_text(entry.get("id"), "id"),
        name=_checked_text(function.get("name"), "name"),
        arguments=arguments_of(function.get("arguments")),
    )


def arguments_of(value: object) -> str:
    """The arguments of a call as JSON text: as they were written, or encoded where they came as an object."""
    return (
        msgspec.json.encode(value).decode() if isinstance(value, dict) else _checked_text(value, "arguments")
    )


def _objects(value: object, what: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _wrong_type(what)
    return value


def _checked_text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _wrong_type(what)
    return value


def _wrong_type(what: str) -> InvalidResponse:
    return InvalidResponse(f"`{what}` of the answer has a wrong type.", reason="type", sent="yes")


_NOTHING: Final = Said()
DONE: Final = "[DONE]"
"""The data of the event that ends a stream."""
_decode: Final = msgspec.json.Decoder().decode


def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """The reply of an answer, or the failure that a 2xx carries.

    Of several ``choices`` the first is read; ``raw`` has them all.

    Raises:
        InvalidResponse: the answer is neither.
    """
    value = response.json
    if not isinstance(value, dict):
        raise _invalid("the answer is no JSON object.", "json")
    if _is_error(value):
        return Failure.from_response(response, operation="chat", model=call.model)
    choice = _first(_list_of(value, "choices"))
    if choice is None:
        raise _invalid("the answer holds no choice.", "count")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _invalid("the choice of the answer holds no message.", "type")
    finish_reason = _finish_reason(choice)
    if finish_reason == "error":
        return _ended_badly(call)
    said = said_in(message)
    return ChatReply(
        text=said.text,
        reasoning=said.reasoning,
        refusal=said.refusal,
        tool_calls=tuple(
            ToolCall(id=part.id, name=part.name, arguments=part.arguments) for part in said.tool_calls
        ),
        finish_reason=finish_reason,
        usage=read_usage(value.get("usage")),
        model=_text(value.get("model")),
        id=_text(value.get("id")),
        raw=value,
    )


def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    """What one event adds, or the failure that it carries; ``()`` for an empty one.

    An error is looked for in every event, also in one that has choices: it may stand beside them, and
    the end of the stream may follow as if nothing had happened.

    Raises:
        InvalidResponse: the event is neither.
    """
    data = event.data
    if data == DONE:
        return (ChatEvent(last=True),)
    if event.event == "error":
        return Failure.from_event(event, model=call.model)
    return () if not data or data.isspace() else _chunk(call, event)


def _chunk(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    value = _object(event.data)
    failed = _is_error(value)
    choice = _first(_list_of(value, "choices")) if not failed else None
    finish_reason = _finish_reason(choice) if choice is not None else None
    if failed:
        return Failure.from_event(event, model=call.model)
    if finish_reason == "error":
        return _ended_badly(call)
    usage = read_usage(value.get("usage"))
    if choice is None and usage is None and "choices" not in value:
        # A ping, or something of a kind that is yet to come.
        return ()
    said = _delta(choice) if choice is not None else _NOTHING
    return (
        ChatEvent(
            text=said.text,
            reasoning=said.reasoning,
            refusal=said.refusal,
            tool_calls=said.tool_calls,
            finish_reason=finish_reason,
            usage=usage,
            model=_text(value.get("model")),
            id=_text(value.get("id")),
            raw=value,
        ),
    )


def _ended_badly(call: ChatCall) -> Failure:
    """The failure of an answer that says in one word that it is none."""
    return Failure(status=200, body=_BADLY, operation="chat", model=call.model)


_BADLY: Final = msgspec.json.encode(
    {"error": {"message": 'the model ended its answer with finish_reason "error"'}}
)


def _object(data: str) -> dict[str, Any]:
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _invalid(f"an event of the stream ({len(data)} characters) is not JSON.", "json") from None
    if not isinstance(value, dict):
        raise _invalid("an event of the stream is no JSON object.", "json")
    return value


def _is_error(value: Mapping[str, Any]) -> bool:
    """Whether an object is an error in any of its shapes: below ``error``, or flat where there are no choices."""
    if value.get("error"):
        return True
    if "choices" in value:
        return False
    return (
        value.get("object") == "error" or isinstance(value.get("message"), str) or bool(value.get("detail"))
    )


def _first(choices: list[Any]) -> dict[str, Any] | None:
    for choice in choices:
        if not isinstance(choice, dict):
            raise _invalid("a choice of the answer is no object.", "type")
        if choice.get("index", 0) in (0, None):
            return choice
    return None


def _delta(choice: Mapping[str, Any]) -> Said:
    delta = choice.get("delta")
    if delta is None:
        # A filter's late verdict has none.
        return _NOTHING
    if not isinstance(delta, dict):
        raise _invalid("the delta of an event is no object.", "type")
    return said_in(delta)


def _finish_reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise _invalid("the finish reason of the answer is no text.", "type")
    return reason or None


def _list_of(value: Mapping[str, Any], key: str) -> list[Any]:
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise _invalid(f"`{key}` of the answer is no list.", "type")
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")


# The body of a chat request in the common dialect.

_PARAMETERS: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
)
"""The fields of a `ChatCall` that are keys of the body, by the names they have in both."""
SAME_NAMES: Final[Mapping[str, str | None]] = {}
"""Every parameter as it is called here."""


def chat_body(call: ChatCall, names: Mapping[str, str | None] = SAME_NAMES) -> dict[str, Any]:
    """The body of a chat request. Keys that are not asked for are left out, ``extra`` comes last.

    Args:
        call: what is asked for.
        names: what the provider calls a parameter, for those it calls otherwise; None for one that it
            does not have.

    Raises:
        InvalidInput: the call has a parameter that the provider does not.
    """
    body: dict[str, Any] = {"model": call.model, "messages": call.messages, "stream": call.stream}
    for parameter, value in asked(call).items():
        name = names.get(parameter, parameter)
        if name is None:
            raise InvalidInput(
                f"this provider has no {parameter}; leave it out, or pass the provider's own parameters "
                "in `extra`."
            )
        body[name] = value
    if call.stream and call.include_usage:
        body["stream_options"] = {"include_usage": True}
    return {**body, **call.extra}


def asked(call: ChatCall) -> dict[str, Any]:
    """The parameters that a call has, by their names in `ChatCall`."""
    found = ((name, getattr(call, name)) for name in _PARAMETERS)
    return {name: value for name, value in found if value is not None and value != ()}
