"""The events of a stream, put together into a whole answer."""

from __future__ import annotations

from typing import Final

import msgspec
from attrs import evolve

from llmopt.values.chat import ChatEvent, ChatReply, ToolCall, ToolCallPart
from llmopt.values.embeddings import Usage


class Gathered:
    """What the events so far come to.

    Attributes:
        finish_reason: why the model ended, None while it has not.
        model: the model that answers, "" while it is not known.
        id: the provider's id of the answer, "" while it is not known.
        last: whether the provider's own end of the stream has come.
    """

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.model = ""
        self.id = ""
        self.last = False
        self._usage: Usage | None = None
        self._text: Final[list[str]] = []
        self._reasoning: Final[list[str]] = []
        self._refusal: Final[list[str]] = []
        self._calls: Final[list[_Call]] = []

    def add(self, event: ChatEvent) -> None:
        """Take the next event in."""
        if event.text:
            self._text.append(event.text)
        if event.reasoning:
            self._reasoning.append(event.reasoning)
        if event.refusal:
            self._refusal.append(event.refusal)
        for part in event.tool_calls:
            self._add_part(part)
        self.finish_reason = event.finish_reason or self.finish_reason
        self._usage = event.usage or self._usage
        self.model = event.model or self.model
        self.id = event.id or self.id
        self.last = self.last or event.last

    @property
    def usage(self) -> Usage | None:
        """The last usage that was told, as that of one request; None while none was."""
        return None if self._usage is None else evolve(self._usage, requests=1)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """What the model thought so far."""
        return "".join(self._reasoning)

    @property
    def refusal(self) -> str:
        """The refusal so far."""
        return "".join(self._refusal)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order; the arguments of the last one may be unfinished."""
        ordered = sorted(self._calls, key=lambda call: call.index)
        return tuple(ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in ordered)

    def reply(self, request_id: str | None = None) -> ChatReply:
        """All of it as an answer."""
        return ChatReply(
            text=self.text,
            reasoning=self.reasoning,
            refusal=self.refusal,
            tool_calls=self.tool_calls,
            finish_reason=self.finish_reason,
            usage=self.usage,
            model=self.model,
            id=self.id,
            request_id=request_id,
        )

    def _add_part(self, part: ToolCallPart) -> None:
        # The newest call of an index: servers that number every call 0 begin another one with a new id.
        found = next((call for call in reversed(self._calls) if call.index == part.index), None)
        if found is None or found.is_over(part):
            found = _Call(part.index)
            self._calls.append(found)
        found.add(part)


class _Call:
    """One tool call while it comes."""

    def __init__(self, index: int) -> None:
        self.index: Final = index
        self.id = ""
        self.name = ""
        self._arguments: Final[list[str]] = []

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    def add(self, part: ToolCallPart) -> None:
        self.id = self.id or part.id
        self.name = self.name or part.name
        if part.arguments:
            self._arguments.append(part.arguments)

    def is_over(self, part: ToolCallPart) -> bool:
        """Whether a fragment with the same index begins another call."""
        if part.id and self.id:
            return part.id != self.id
        # Without ids, a name after arguments that are whole is a call of its own.
        return bool(part.name and not part.id and self._arguments and _is_json(self.arguments))


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except msgspec.DecodeError:
        return False
    return True
