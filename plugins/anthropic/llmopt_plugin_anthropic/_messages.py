"""Conversations of the common dialect as Anthropic's ``system`` and ``messages``.

System messages at the start become ``system``; results of tools become blocks of one user message, with the user's words
behind them; an answer of Claude's goes back as the blocks that it came in, because a signed block must not be changed.
Blocks that already have Anthropic's form are sent as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from llmopt import InvalidInput

OWN: Final = "anthropic.blocks"
"""The plugin's key in ``provider_data``: the blocks of an answer, as Anthropic wrote them."""
_SYSTEM: Final = ("system", "developer")
Block = dict[str, Any]


def conversation_of(
    messages: Sequence[Mapping[str, Any]], *, system_turns: bool, model: str
) -> tuple[str | list[Block], list[Block]]:
    """The value of ``system``, "" for none, and the messages.

    Args:
        messages: in the common dialect.
        system_turns: whether the model takes a system message behind others.
        model: its name, for messages.

    Raises:
        InvalidInput: Anthropic has no place for something in them.
    """
    start = next((n for n, each in enumerate(messages) if each["role"] not in _SYSTEM), len(messages))
    rest = messages[start:]
    if not system_turns and any(each["role"] in _SYSTEM for each in rest):
        raise InvalidInput(
            f"the model {model} takes system messages at the start of a conversation only; move them there, or "
            "make them user messages."
        )
    return _system([each.get("content") for each in messages[:start]]), list(_turns(rest, start))


def _system(contents: Sequence[Any]) -> str | list[Block]:
    if all(isinstance(each, str) for each in contents):
        return "\n\n".join(contents)
    return [block for each in contents for block in _blocks(each, 0)]


def _turns(messages: Sequence[Mapping[str, Any]], first: int) -> Iterator[Block]:
    """The messages; results of tools, and the user's words behind them, come as one."""
    results: list[Block] = []
    for index, message in enumerate(messages, start=first):
        role = message["role"]
        if role == "tool":
            results.append(_result(message, index))
            continue
        if results and role == "user":
            results += _blocks(message.get("content"), index)
            continue
        if results:
            yield {"role": "user", "content": results}
            results = []
        turn = _turn(role, message, index)
        # An answer without anything in it, such as a refusal, which Anthropic refuses to read again.
        if turn["content"] or role != "assistant":
            yield turn
    if results:
        yield {"role": "user", "content": results}


def _turn(role: str, message: Mapping[str, Any], index: int) -> Block:
    content = message.get("content")
    if role == "assistant":
        return {"role": role, "content": _answer(message, index)}
    if role not in ("user", *_SYSTEM):
        raise InvalidInput(
            f"Anthropic has no role {role!r:.40}; use system, user, assistant or tool.", index=index
        )
    named = "user" if role == "user" else "system"
    return {"role": named, "content": content if isinstance(content, str) else _blocks(content, index)}


def _result(message: Mapping[str, Any], index: int) -> Block:
    result: Block = {"type": "tool_result", "tool_use_id": message.get("tool_call_id")}
    content = message.get("content")
    if content:
        result["content"] = content if isinstance(content, str) else _blocks(content, index)
    if isinstance(failed := message.get("is_error"), bool):
        result["is_error"] = failed
    return result


def _answer(message: Mapping[str, Any], index: int) -> str | list[Block]:
    """An assistant's message: the kept blocks, or text and calls."""
    data = message.get("provider_data") or {}
    calls = message.get("tool_calls") or ()
    kept = data.get(OWN)
    content = message.get("content")
    if kept is None and not calls and (content is None or isinstance(content, str)):
        return content if content and content.strip() else ""
    # Anthropic refuses to read a blank text again, although some answers have one.
    every = kept if kept is not None else _blocks(content, index)
    blocks = [each for each in every if each.get("type") != "text" or each.get("text", "").strip()]
    there = {block.get("id") for block in blocks if block.get("type") == "tool_use"}
    return [*blocks, *(_use(call, index) for call in calls if call.get("id") not in there)]


def _use(call: Mapping[str, Any], index: int) -> Block:
    function = call.get("function") or {}
    return {
        "type": "tool_use",
        "id": call.get("id"),
        "name": function.get("name"),
        "input": _input(function.get("arguments"), index),
    }


def _input(arguments: object, index: int) -> object:
    """The arguments of a call as an object, which Anthropic demands."""
    if isinstance(arguments, Mapping):
        return arguments
    text = arguments if isinstance(arguments, str) and arguments else "{}"
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise InvalidInput(
            "the arguments of a tool call are no JSON object, perhaps because the answer was cut at max_tokens; "
            "leave the call out, or repair them.",
            index=index,
        ) from None


# Parts of a content.


def _blocks(content: object, index: int) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    parts: Iterable[Any] = content if isinstance(content, (list, tuple)) else [content]
    return [_block(part, index) for part in parts]


def _block(part: Any, index: int) -> Block:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    match part:
        case {"type": "image_url", "image_url": {"url": str(url)} | str(url)}:
            return {"type": "image", "source": _source(url, index), **_more(part)}
        case {"type": "file", "file": Mapping() as file}:
            return {"type": "document", **_document(file, index), **_more(part)}
        case {"type": "input_audio"}:
            raise InvalidInput("Anthropic takes no audio; leave the part out.", index=index)
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case Mapping():
            return dict(part)
    raise InvalidInput("a part of the content is neither text nor a mapping.", index=index)


def _more(part: Mapping[str, Any]) -> Block:
    """What a part has besides, such as ``cache_control``."""
    return {key: value for key, value in part.items() if key not in ("type", part["type"])}


def _source(url: str, index: int) -> Block:
    """Where an image is: in the request, or at an address."""
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    kind, data = _data(url, index)
    return {"type": "base64", "media_type": kind, "data": data}


def _data(url: str, index: int) -> tuple[str, str]:
    head, comma, data = url.removeprefix("data:").partition(",")
    kind, mark, encoding = head.rpartition(";")
    if not comma or not mark or encoding.strip().lower() != "base64":
        raise InvalidInput("a data URL must have the form 'data:<type>;base64,<data>'.", index=index)
    return kind.partition(";")[0].strip().lower(), data


def _document(file: Mapping[str, Any], index: int) -> Block:
    title = {"title": file["filename"]} if file.get("filename") else {}
    if file.get("file_id"):
        return {"source": {"type": "file", "file_id": file["file_id"]}, **title}
    data = file.get("file_data")
    if not isinstance(data, str):
        raise InvalidInput("a part of type file needs file_data or file_id.", index=index)
    return {"source": _source(data, index), **title}
