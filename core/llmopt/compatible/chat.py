"""Chat in the OpenAI-compatible dialect: the request body, whole replies, and the events of a stream.

Unknown keys are ignored, and so is an optional part that makes no sense, such as a usage without counts. Text, tool
calls and finish reasons of a wrong type raise `InvalidResponse`: parts of a reply must not vanish silently. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from llmopt.compatible.embeddings import read_usage
from llmopt.errors import InvalidInput, InvalidResponse
from llmopt.hookspecs import hookimpl
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent, ToolCall, ToolCallPart
from llmopt.values.http import Failure, HttpResponse

# The request body.

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
    body: dict[str, Any] = {"model": call.model, "messages": call.messages, "stream": call.stream}
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


def set_parameters(call: ChatCall) -> dict[str, Any]:
    """The parameters that a call sets, by their names in `ChatCall`."""
    values = ((name, getattr(call, name)) for name in _PARAMETERS)
    return {name: value for name, value in values if value is not None and value != ()}


# Keys that a server may refuse although a call does not depend on them. llmopt sends ``stream_options`` for the usage of
# a stream, and some plugins send the newer name of ``max_tokens``; older servers, and those that allow no unknown key,
# answer 400 or 422.

_SUBSTITUTES: Final[Mapping[str, str | None]] = {
    "stream_options": None,
    "max_completion_tokens": "max_tokens",
    "max_tokens": "max_completion_tokens",
}
"""Each key with the one that replaces it, None where it is left out."""
_REFUSED: Final = re.compile(
    r"unrecogni[sz]ed|unknown|unsupported|unexpected|extra (?:inputs|fields)|additional propert|no such"
    r"|not (?:\w+ ){0,2}(?:supported|permitted|allowed|recogni[sz]ed|accepted|valid|exist)|does(?: not|n't) support"
    r"|use '?`?max_(?:completion_)?tokens|instead",
    re.IGNORECASE,
)
"""Words for a key that a server does not know, in contrast to a value that is too high."""
_VALUE: Final = re.compile(
    r"\b(?:less|greater|larger|smaller|higher|lower) than\b|\bat (?:most|least)\b|\btoo (?:large|small|high|low|many)\b"
    r"|\b(?:maximum|minimum|range|exceeds?)\b",
    re.IGNORECASE,
)


def refused_keys(message: str, param: str | None, body: bytes, extra: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of a request that its refusal is about, and that the request can do without.

    Args:
        message: what the server says.
        param: the parameter that it names, or None.
        body: the JSON that was sent.
        extra: keys of the caller's own, which are never left out.
    """
    return tuple(
        key
        for key, substitute in _SUBSTITUTES.items()
        # In a text the quotes would be escaped.
        if b'"%b":' % key.encode() in body
        and key not in extra
        and _names(key, message, param)
        # A stream does without its usage whatever was wrong with the request for it.
        and (substitute is None or (_REFUSED.search(message) and not _VALUE.search(message)))
    )


def _names(key: str, message: str, param: str | None) -> bool:
    pattern = rf"(?<![A-Za-z0-9_]){key}(?![A-Za-z0-9_])"
    return any(re.search(pattern, text) is not None for text in (param or "", message))


def without_keys(body: Mapping[str, Any], keys: Collection[str]) -> Mapping[str, Any]:
    """The body without refused keys, or with the other name for them unless that is refused as well."""
    if not any(key in body for key in keys):
        return body
    changed = dict(body)
    for key in keys:
        substitute = _SUBSTITUTES[key]
        if key in changed and substitute not in keys:
            value = changed.pop(key)
            if substitute is not None:
                changed.setdefault(substitute, value)
    return changed


# The response, whole or event by event.

DONE: Final = "[DONE]"
"""The data of the event that ends a stream."""
_decode: Final = msgspec.json.Decoder().decode


@hookimpl(trylast=True)
def parse_chat(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """Read the reply of a response, or the error that a 2xx response holds.

    Of several ``choices`` only the first is read; ``raw`` has them all.

    Raises:
        InvalidResponse: the body is neither.
    """
    value = response.json
    if not isinstance(value, dict):
        raise _invalid("the response is not a JSON object.", "json")
    if _is_error(value):
        return Failure.from_response(response, operation="chat", model=call.model)
    choice = _first(_list_of(value, "choices"))
    if choice is None:
        raise _invalid("the response has no choice.", "count")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise _invalid("the choice of the response has no message.", "type")
    finish_reason = _finish_reason(choice)
    if finish_reason == "error":
        return _finished_with_error(call)
    content = read_content(message)
    return ChatReply(
        text=content.text,
        reasoning=content.reasoning,
        refusal=content.refusal,
        tool_calls=tuple(
            ToolCall(id=part.id, name=part.name, arguments=part.arguments) for part in content.tool_calls
        ),
        finish_reason=finish_reason,
        usage=read_usage(value.get("usage")),
        model=_text(value.get("model")),
        id=_text(value.get("id")),
        raw=value,
    )


@hookimpl(trylast=True)
def parse_stream_event(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    """Read what one event adds to a reply, or the error that it holds; ``()`` for an empty event.

    Every event is checked for an error, also one with choices: some servers send both in one event, and then end
    the stream as if all was well.

    Raises:
        InvalidResponse: the event is neither.
    """
    data = event.data
    if data == DONE:
        return (ChatEvent(last=True),)
    # vLLM sends such events; the data of some servers' lacks the key ``error``.
    if event.event == "error":
        return Failure.from_event(event, model=call.model)
    return () if not data or data.isspace() else _chunk(call, event)


def _chunk(call: ChatCall, event: ServerEvent) -> tuple[ChatEvent, ...] | Failure:
    value = _object(event.data)
    if _is_error(value):
        return Failure.from_event(event, model=call.model)
    choice = _first(_list_of(value, "choices"))
    finish_reason = _finish_reason(choice) if choice is not None else None
    if finish_reason == "error":
        return _finished_with_error(call)
    usage = read_usage(value.get("usage"))
    if choice is None and usage is None and "choices" not in value:
        # A ping, or a kind of event that this version does not know.
        return ()
    content = _delta(choice) if choice is not None else _NO_CONTENT
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
            raw=value,
        ),
    )


def _finished_with_error(call: ChatCall) -> Failure:
    """The failure of a reply whose finish reason is "error", which some gateways send without an error object."""
    return Failure(status=200, body=_FINISHED_WITH_ERROR, operation="chat", model=call.model)


_FINISHED_WITH_ERROR: Final = msgspec.json.encode(
    {"error": {"message": 'the model ended its answer with finish_reason "error"'}}
)


def _object(data: str) -> dict[str, Any]:
    try:
        value = _decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise _invalid(f"an event of the stream ({len(data)} characters) is not JSON.", "json") from None
    if not isinstance(value, dict):
        raise _invalid("an event of the stream is not a JSON object.", "json")
    return value


def _is_error(value: Mapping[str, Any]) -> bool:
    """Whether an object is an error: below the key ``error``, or flat (only in an object without choices)."""
    # Truthy: some servers send ``"error": null`` with every chunk.
    if value.get("error"):
        return True
    # An object with choices is a reply, whatever other keys it has.
    if "choices" in value:
        return False
    return (
        value.get("object") == "error" or isinstance(value.get("message"), str) or bool(value.get("detail"))
    )


def _first(choices: list[Any]) -> dict[str, Any] | None:
    for choice in choices:
        if not isinstance(choice, dict):
            raise _invalid("a choice of the response is not an object.", "type")
        # Choices of one event may come in any order, and some servers leave the index out.
        if choice.get("index", 0) in (0, None):
            return choice
    return None


def _delta(choice: Mapping[str, Any]) -> MessageContent:
    delta = choice.get("delta")
    if delta is None:
        # The late verdict of a content filter comes as a choice without a delta.
        return _NO_CONTENT
    if not isinstance(delta, dict):
        raise _invalid("the delta of an event is not an object.", "type")
    return read_content(delta)


def _finish_reason(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    if reason is not None and not isinstance(reason, str):
        raise _invalid("the finish reason of the response is not text.", "type")
    return reason or None


def _list_of(value: Mapping[str, Any], key: str) -> list[Any]:
    items = value.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise _invalid(f"`{key}` of the response is not a list.", "type")
    return items


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")


# The content of one message, or of one delta of a stream.

_REASONING_KEYS: Final = ("reasoning_content", "reasoning")
"""Keys in which servers of this dialect return the model's reasoning."""


class MessageContent(NamedTuple):
    """What a message or a delta holds; the fields are those of `llmopt.values.chat.ChatEvent`."""

    text: str = ""
    reasoning: str = ""
    refusal: str = ""
    tool_calls: tuple[ToolCallPart, ...] = ()


_NO_CONTENT: Final = MessageContent()


def read_content(message: Mapping[str, Any]) -> MessageContent:
    """Read a ``message`` or a ``delta``.

    ``content`` is null, text, or a list of typed parts. Parts without text (images, references) stay in ``raw`` only.

    Raises:
        InvalidResponse: a value has a wrong type.
    """
    content = message.get("content")
    # The usual case first: this runs for every token of a stream.
    if type(content) is str:
        result = MessageContent(text=content)
    elif content is None:
        result = _NO_CONTENT
    else:
        result = _typed_parts(content)
    reasoning = next((value for key in _REASONING_KEYS if (value := message.get(key))), None)
    refusal, calls = message.get("refusal"), message.get("tool_calls")
    # The usual delta holds text alone: a second tuple for each token is saved.
    if reasoning is None and refusal is None and calls is None:
        return result
    return MessageContent(
        text=result.text,
        reasoning=result.reasoning or (reasoning if isinstance(reasoning, str) else ""),
        refusal=result.refusal or _checked_text(refusal, "refusal"),
        tool_calls=_tool_calls(calls),
    )


def _typed_parts(content: object) -> MessageContent:
    texts: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": []}
    for part in _objects(content, "content"):
        kind = part.get("type", "text")
        if kind == "thinking":
            texts["thinking"].append(_thinking(part.get("thinking")))
        elif kind in ("text", "refusal"):
            texts[kind].append(_checked_text(part.get(kind), kind))
    text, reasoning, refusal = ("".join(parts) for parts in texts.values())
    return MessageContent(text, reasoning, refusal)


def _thinking(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    parts = _objects(value, "thinking")
    return "".join(
        _checked_text(part.get("text"), "text") for part in parts if part.get("type", "text") == "text"
    )


def _tool_calls(value: object) -> tuple[ToolCallPart, ...]:
    if value is None:
        return ()
    return tuple(_tool_call(entry, position) for position, entry in enumerate(_objects(value, "tool_calls")))


def _tool_call(entry: Mapping[str, Any], position: int) -> ToolCallPart:
    function = entry.get("function")
    if function is None:
        function = {}
    if not isinstance(function, Mapping):
        raise _wrong_type("function")
    index = entry.get("index")
    return ToolCallPart(
        # Some servers leave out the index of a tool call, although pieces of a call are joined by it.
        index=index if type(index) is int else position,
        id=_checked_text(entry.get("id"), "id"),
        name=_checked_text(function.get("name"), "name"),
        arguments=arguments_json(function.get("arguments")),
    )


def arguments_json(value: object) -> str:
    """The arguments of a tool call as JSON text; some servers send an object instead of text."""
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
    return InvalidResponse(f"`{what}` of the response has a wrong type.", reason="type", sent="yes")
