"""Conversations of the common dialect as Gemini's ``systemInstruction`` and ``contents``.

Results of functions name their function, and stand in a content of their own, in the order of the calls. An answer of
Gemini's goes back as the parts that it came in, because a signature belongs to its part. Parts that already have
Gemini's form are sent as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import define, field

from llmopt import InvalidInput

OWN: Final = "google.parts"
"""The plugin's key in the ``provider_data`` of a message: the parts of an answer, as Gemini wrote them."""
ID: Final = "google.id"
"""Its key in that of a call: the id that Gemini gave it; most models give none."""
_FOREIGN: Final = "skip_thought_signature_validator"
"""Google's own word for a call that no Gemini has signed, such as one of another provider."""
_SYSTEM: Final = ("system", "developer")
_TYPES: Final[Mapping[str, str]] = {
    "png": "image/png", "jpg": "image/jpeg", "jpeg": "image/jpeg", "webp": "image/webp", "heic": "image/heic",
    "heif": "image/heif", "gif": "image/gif", "pdf": "application/pdf", "mp3": "audio/mp3", "wav": "audio/wav",
    "mp4": "video/mp4",
}  # fmt: skip
"""The types of files at an address, by their endings."""
Part = dict[str, Any]


def contents_of(messages: Sequence[Mapping[str, Any]], *, signed: bool) -> tuple[list[Part], list[Part]]:
    """The parts of the system's instruction, and the contents.

    Args:
        messages: in the common dialect.
        signed: whether the model demands that calls are signed.

    Raises:
        InvalidInput: Gemini has no place for something in them.
    """
    start = next((n for n, each in enumerate(messages) if each["role"] not in _SYSTEM), len(messages))
    system = [part for n, each in enumerate(messages[:start]) for part in _parts(each.get("content"), n)]
    return system, list(_contents(messages[start:], start, signed=signed))


@define
class _Calls:
    """The calls so far, and results that wait for the end of their step.

    Attributes:
        names: by the id that messages use: the name of the function, and the id that Gemini knows.
        results: by the same id.
    """

    names: dict[str, tuple[str, str | None]] = field(factory=dict)
    results: dict[str, Part] = field(factory=dict)

    def flush(self) -> Iterator[Part]:
        """The content with the results, in the order of their calls: those without an id are told apart by it."""
        if self.results:
            order = list(self.names)
            parts = [self.results[name] for name in sorted(self.results, key=order.index)]
            self.results = {}
            yield {"role": "user", "parts": parts}


def _contents(messages: Sequence[Mapping[str, Any]], first: int, *, signed: bool) -> Iterator[Part]:
    calls = _Calls()
    for index, message in enumerate(messages, start=first):
        role = message["role"]
        if role == "tool":
            _add_result(calls, message, index)
            continue
        yield from calls.flush()
        if role == "assistant":
            parts = _answer(calls, message, index, signed=signed)
        elif role == "user":
            parts = _parts(message.get("content"), index)
        else:
            raise InvalidInput(_no_role(role), index=index)
        # An answer without anything in it, such as that to a blocked prompt, which is no content.
        if parts or role == "user":
            yield {"role": "model" if role == "assistant" else "user", "parts": parts}
    yield from calls.flush()


def _no_role(role: object) -> str:
    if role in _SYSTEM:
        return (
            "Gemini takes system messages at the start of a conversation only; move them there, or make them "
            "user messages."
        )
    return f"Gemini has no role {role!r:.40}; use system, user, assistant or tool."


def _add_result(calls: _Calls, message: Mapping[str, Any], index: int) -> None:
    name = message.get("tool_call_id")
    if not isinstance(name, str) or name not in calls.names:
        raise InvalidInput(
            "the result of a tool names no call of this conversation, and Gemini wants the call's function; give "
            "the message with the call too.",
            index=index,
        )
    function, own = calls.names[name]
    parts = _parts(message.get("content"), index)
    text = "".join(part["text"] for part in parts if "text" in part)
    response: Part = {"name": function, "response": {"error" if message.get("is_error") else "output": text}}
    if own is not None:
        response["id"] = own
    if files := [part for part in parts if "text" not in part]:
        response["parts"] = files
    calls.results[name] = {"functionResponse": response}


def _answer(calls: _Calls, message: Mapping[str, Any], index: int, *, signed: bool) -> list[Part]:
    """The parts of an answer: as they came, or text and calls."""
    data = message.get("provider_data") or {}
    kept = data.get(OWN)
    parts = [dict(part) for part in kept] if kept is not None else _parts(message.get("content"), index)
    there = sum("functionCall" in part for part in parts)
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        name = str(function.get("name"))
        # The calls of the kept parts are those of the message, in the same order.
        if number < there:
            own = (call.get("provider_data") or {}).get(ID)
        else:
            own = call.get("id")
            part = {
                "functionCall": {"name": name, "args": _args(function.get("arguments"), index), "id": own}
            }
            parts.append({**part, "thoughtSignature": _FOREIGN} if signed and number == 0 else part)
        calls.names[str(call.get("id"))] = (name, own)
    return parts


def _args(arguments: object, index: int) -> object:
    """The arguments of a call as an object, which Gemini demands."""
    if isinstance(arguments, Mapping):
        return arguments
    text = arguments if isinstance(arguments, str) and arguments else "{}"
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidInput(
            "the arguments of a tool call are no JSON object; leave the call out, or repair them.",
            index=index,
        ) from None


# Parts of a content.


def _parts(content: object, index: int) -> list[Part]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"text": content}]
    return [_part(part, index) for part in (content if isinstance(content, (list, tuple)) else [content])]


def _part(part: Any, index: int) -> Part:
    match part:
        case str(text) | {"type": "text", "text": str(text)} | {"type": "refusal", "refusal": str(text)}:
            return {"text": text}
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)} | {
            "type": "file",
            "file": {"file_data": str(url)} | {"file_id": str(url)},
        }:
            return _file(url, index)
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(kind)}}:
            return {"inlineData": {"mimeType": f"audio/{kind}", "data": data}}
        case Mapping() if "type" not in part:
            return dict(part)
    raise InvalidInput(
        "a part of the content is neither text, image_url, input_audio nor file, nor in Gemini's own form.",
        index=index,
    )


def _file(url: str, index: int) -> Part:
    """A file in the request, or at an address."""
    if not url.startswith("data:"):
        kind = _TYPES.get(url.partition("?")[0].rpartition(".")[2].lower())
        return {"fileData": {"fileUri": url, **({"mimeType": kind} if kind else {})}}
    head, comma, data = url.removeprefix("data:").partition(",")
    kind, mark, encoding = head.rpartition(";")
    if not comma or not mark or encoding.strip().lower() != "base64":
        raise InvalidInput("a data URL must have the form 'data:<type>;base64,<data>'.", index=index)
    return {"inlineData": {"mimeType": kind.partition(";")[0].strip().lower(), "data": data}}
