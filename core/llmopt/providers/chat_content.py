"""What a message or a delta of the common dialect says: text, thoughts, a refusal, tool calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.values.chat import ToolCallPart

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
        refusal=said.refusal or _text(refusal, "refusal"),
        tool_calls=_calls(calls),
    )


def _typed(content: object) -> Said:
    texts: dict[str, list[str]] = {"text": [], "thinking": [], "refusal": []}
    for part in _objects(content, "content"):
        kind = part.get("type", "text")
        if kind == "thinking":
            texts["thinking"].append(_thinking(part.get("thinking")))
        elif kind in ("text", "refusal"):
            texts[kind].append(_text(part.get(kind), kind))
    text, reasoning, refusal = ("".join(parts) for parts in texts.values())
    return Said(text, reasoning, refusal)


def _thinking(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    parts = _objects(value, "thinking")
    return "".join(_text(part.get("text"), "text") for part in parts if part.get("type", "text") == "text")


def _calls(value: object) -> tuple[ToolCallPart, ...]:
    if value is None:
        return ()
    return tuple(_call(entry, place) for place, entry in enumerate(_objects(value, "tool_calls")))


def _call(entry: Mapping[str, Any], place: int) -> ToolCallPart:
    function = entry.get("function")
    if function is None:
        function = {}
    if not isinstance(function, Mapping):
        raise _invalid("function")
    index = entry.get("index")
    return ToolCallPart(
        index=index if type(index) is int else place,
        id=_text(entry.get("id"), "id"),
        name=_text(function.get("name"), "name"),
        arguments=arguments_of(function.get("arguments")),
    )


def arguments_of(value: object) -> str:
    """The arguments of a call as JSON text: as they were written, or encoded where they came as an object."""
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else _text(value, "arguments")


def _objects(value: object, what: str) -> Iterable[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _invalid(what)
    return value


def _text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _invalid(what)
    return value


def _invalid(what: str) -> InvalidResponse:
    return InvalidResponse(f"`{what}` of the answer has a wrong type.", reason="type", sent="yes")


_NOTHING: Final = Said()
