"""Chat answers in the common dialect, whole and event by event, read strictly where words are concerned.

Keys that are not known are left alone, and so is what the answer does not need (a usage that makes no
sense). A text, a tool call or a finish reason of a wrong type is an `InvalidResponse`: words that
cannot be read must not vanish.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.providers.answers import read_usage
from llmopt.providers.chat_content import Said, said_in
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatEvent, ChatReply, ToolCall
from llmopt.values.failure import Failure
from llmopt.values.http import HttpResponse
from llmopt.values.stream import ServerEvent

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


_NOTHING: Final = Said()
