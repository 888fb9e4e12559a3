"""Answers of Gemini: a whole one is the one event of a stream, and each event of a stream has the new parts alone.

Thoughts are summaries of a reasoning and do not come back, unless they are signed. All other parts go into
``provider_data`` once one of them is more than plain text: a signature must come back on its part. Texts that are not
signed are joined, so that a stream leaves what a whole answer leaves.

Of several candidates only the first is read; ``raw`` has them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from llmopt import (
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpResponse,
    ServerEvent,
    StreamStep,
    ToolCall,
    ToolCallPart,
    Usage,
    reading,
)
from llmopt.values.error_shape import is_error
from llmopt_plugin_google._contents import ID, OWN
from llmopt_plugin_google._errors import EMPTY_REASONS, FAILED_REASONS

_FILTERED: Final = frozenset(
    {
        "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
        "IMAGE_RECITATION", "ESCALATION", "PUP_LIMITED_DISABLED", "MODEL_ARMOR",
    }
)  # fmt: skip
_REASONS: Final[Mapping[str, str]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "CONTINUATION": "length",
    **dict.fromkeys(_FILTERED, "content_filter"),
    **dict.fromkeys(EMPTY_REASONS, "stop"),
}
"""Gemini's finish reasons in the words of the common dialect. Others stay as they are."""
_JOIN_AT: Final = 256
"""Pieces of text that are joined at once: to join two with each event would copy a long answer again and again."""


class _Function(msgspec.Struct):
    name: str
    args: dict[str, Any] = {}
    id: str | None = None


class _Part(msgspec.Struct, rename="camel"):
    text: str = ""
    thought: bool = False
    thought_signature: str = ""
    function_call: _Function | None = None


class _Content(msgspec.Struct):
    parts: list[dict[str, Any]] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    index: int = 0


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None
    block_reason_message: str | None = None


class _Answer(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: dict[str, Any] | None = None
    model_version: str = ""
    response_id: str = ""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What the events so far have said.

    Attributes:
        parts: the parts that go back, as JSON.
        texts: plain text behind them, in pieces.
        special: whether a part is more than plain text.
        calls: number of calls.
        said: whether there was any content.
        usage: the last value of each count: fields come and go.
    """

    parts: tuple[bytes, ...] = ()
    texts: tuple[str, ...] = ()
    special: bool = False
    calls: int = 0
    said: bool = False
    usage: Mapping[str, int] = {}

    def __repr__(self) -> str:
        # Without the texts.
        return f"State(parts={len(self.parts)}, calls={self.calls})"

    @property
    def kept(self) -> dict[str, Any]:
        """The ``provider_data`` of the answer; nothing for text alone, which says all by itself."""
        if not self.special:
            return {}
        return {OWN: [msgspec.json.decode(part) for part in (*self.parts, *_text_part(self.texts))]}


_BEGIN: Final = State()


def reply_of(call: ChatCall, response: HttpResponse) -> ChatReply | Failure:
    """Read a whole answer.

    Raises:
        InvalidResponse: the body is none.
    """
    value = response.json
    if _is_error(value):
        return Failure.from_response(response, operation="chat", model=call.model)
    step = _read(call, reading.body(response), _BEGIN)
    if isinstance(step, Failure):
        return step
    (event,) = step.events
    if event.finish_reason is None:
        raise reading.invalid("the answer has no finish reason.", "truncated")
    called = event.finish_reason == "stop" and event.tool_calls
    return ChatReply(
        text=event.text,
        reasoning=event.reasoning,
        refusal=event.refusal,
        tool_calls=tuple(
            ToolCall(id=part.id, name=part.name, arguments=part.arguments, provider_data=part.provider_data)
            for part in event.tool_calls
        ),
        finish_reason="tool_calls" if called else event.finish_reason,
        usage=event.usage,
        model=event.model,
        id=event.id,
        provider_data=event.provider_data,
        raw=value,
    )


def step_of(call: ChatCall, event: ServerEvent, state: State | None) -> StreamStep | Failure:
    """Read one event.

    Raises:
        InvalidResponse: it cannot be read.
    """
    state = state or _BEGIN
    if not event.data.strip():
        return StreamStep((), state)
    if event.data.lstrip().startswith("[") and is_error(_list(event.data)):
        return Failure.from_event(event, model=call.model)
    value = reading.event(event)
    if _is_error(value):
        return Failure.from_event(event, model=call.model)
    return _read(call, value, state)


def _list(data: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _is_error(value: Any) -> bool:
    """Whether a value is an error. A prompt that was blocked is an answer, which the core's reading takes for none."""
    if isinstance(value, dict) and ("candidates" in value or "promptFeedback" in value):
        return bool(value.get("error"))
    return is_error(value)


def _read(call: ChatCall, value: dict[str, Any], state: State) -> StreamStep | Failure:
    answer = reading.as_type(value, _Answer)
    blocked = answer.prompt_feedback is not None and answer.prompt_feedback.block_reason
    if answer.candidates is None and not blocked and answer.usage_metadata is None:
        raise reading.invalid("the response has no candidate.", "count")
    first = next((each for each in answer.candidates or () if each.index == 0), None)
    raw_parts = first.content.parts if first is not None and first.content is not None else []
    parts = [reading.as_type(part, _Part) for part in raw_parts]
    after = _with_parts(state, raw_parts, parts)
    reason = first.finish_reason if first is not None else None
    if reason in FAILED_REASONS or (reason in EMPTY_REASONS and not after.said):
        return _ended_with(str(reason), first.finish_message if first is not None else None, call)
    counts = _counts(answer.usage_metadata)
    after = replace(after, usage={**state.usage, **counts})
    ended = reason is not None or bool(blocked)
    event = ChatEvent(
        text="".join(part.text for part in parts if not part.thought),
        reasoning="".join(part.text for part in parts if part.thought),
        refusal=(answer.prompt_feedback.block_reason_message or "")
        if blocked and answer.prompt_feedback
        else "",
        tool_calls=_calls(parts, state.calls),
        finish_reason="content_filter"
        if blocked
        else None
        if reason is None
        else _REASONS.get(reason, reason),
        usage=_usage(counts, after.usage),
        model=answer.model_version,
        id=answer.response_id,
        # At the end, when all parts are there.
        provider_data=after.kept if ended else {},
        raw=value,
    )
    return StreamStep((event,), after)


def _with_parts(state: State, raw: Sequence[Mapping[str, Any]], parts: Sequence[_Part]) -> State:
    """The state with more parts; plain text is joined, and empty text is none."""
    kept, texts, special = list(state.parts), state.texts, state.special
    for value, part in zip(raw, parts, strict=True):
        if part.thought and not part.thought_signature:
            continue
        if value.keys() <= {"text", "thought"}:
            if part.text:
                texts = (*texts, part.text) if len(texts) < _JOIN_AT else ("".join((*texts, part.text)),)
            continue
        special = True
        kept += [*_text_part(texts), msgspec.json.encode(value)]
        texts = ()
    said = state.said or any(
        not part.thought and (part.text or value.keys() - {"text", "thoughtSignature"})
        for value, part in zip(raw, parts, strict=True)
    )
    calls = state.calls + sum(part.function_call is not None for part in parts)
    return replace(state, parts=tuple(kept), texts=texts, special=special, calls=calls, said=said)


def _text_part(texts: Iterable[str]) -> list[bytes]:
    joined = "".join(texts)
    return [msgspec.json.encode({"text": joined})] if joined else []


def _calls(parts: Iterable[_Part], before: int) -> tuple[ToolCallPart, ...]:
    functions = [part.function_call for part in parts if part.function_call is not None]
    return tuple(
        ToolCallPart(
            index=before + number,
            id=function.id or "",
            name=function.name,
            arguments=msgspec.json.encode(function.args).decode(),
            provider_data={ID: function.id} if function.id else {},
        )
        for number, function in enumerate(functions)
    )


def _ended_with(reason: str, message: str | None, call: ChatCall) -> Failure:
    """The failure of an answer with such a finish reason, which Gemini sends without an error."""
    said = f"the model ended its answer with the finish reason {reason}" + (f": {message}" if message else "")
    body = msgspec.json.encode({"error": {"message": said, "code": reason}})
    return Failure(status=200, body=body, operation="chat", model=call.model)


def _counts(usage: Mapping[str, Any] | None) -> dict[str, int]:
    """The plausible counts of a usage, by Gemini's names."""
    counts = {name: reading.count(value) for name, value in (usage or {}).items()}
    return {name: count for name, count in counts.items() if type(count) is int}


def _usage(told: Mapping[str, int], known: Mapping[str, int]) -> Usage | None:
    """The usage with an event's counts, None if it tells none.

    Args:
        told: the counts of the event.
        known: these, and those of earlier events that it leaves out.
    """
    if not told:
        return None
    thoughts = known.get("thoughtsTokenCount", 0)
    prompt = known.get("promptTokenCount", 0) + known.get("toolUsePromptTokenCount", 0)
    output = known.get("candidatesTokenCount", 0) + thoughts
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=output,
        total_tokens=known.get("totalTokenCount", prompt + output),
        cached_tokens=known.get("cachedContentTokenCount", 0),
        reasoning_tokens=thoughts,
    )
