"""Messages of the common dialect as Ollama's own interface takes them.

There, content is one text, images are in a separate key, arguments of a tool call are an object, and a tool's
answer names the tool (api/types.go of ollama/ollama).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from llmopt import InvalidInput, compatible


def messages_of(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages.

    Raises:
        InvalidInput: a message has content that Ollama does not support; ``index`` says which.
    """
    names: dict[str, Any] = {}
    found = []
    for index, message in enumerate(compatible.plain_messages(messages)):
        converted = dict(message)
        if not isinstance(converted.get("content"), str):
            converted.update(_content(converted.get("content"), index))
        if converted.get("tool_calls"):
            converted["tool_calls"] = [_call(call, names, index) for call in converted["tool_calls"]]
        if (name := names.get(str(converted.get("tool_call_id")))) is not None:
            converted.setdefault("tool_name", name)
        found.append(converted)
    return found


def _content(content: Any, index: int) -> dict[str, Any]:
    if content is None:
        return {"content": ""}
    if not isinstance(content, Iterable):
        raise InvalidInput("the content of a message is text or a list of parts.", index=index)
    texts, images = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            texts.append(str(part.get("text", "")))
        elif kind == "image_url":
            images.append(_image(part.get("image_url"), index))
        else:
            raise InvalidInput(f"Ollama takes parts of text and pictures, not {kind!r:.40}.", index=index)
    return {"content": "".join(texts), **({"images": images} if images else {})}


def _image(value: Any, index: int) -> str:
    """The base64 of a picture."""
    url = value.get("url") if isinstance(value, Mapping) else value
    head, _, data = str(url).partition(";base64,")
    if not head.startswith("data:") or not data:
        raise InvalidInput(
            "Ollama fetches no pictures: give it as a URL of the form data:image/png;base64,...", index=index
        )
    return data


def _call(call: Any, names: dict[str, Any], index: int) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        raise InvalidInput("a tool call of a message has no function.", index=index)
    names[str(call.get("id"))] = function.get("name")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments or "{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            raise InvalidInput("the arguments of a tool call are not JSON.", index=index) from None
    return {**call, "function": {**function, "arguments": arguments}}
