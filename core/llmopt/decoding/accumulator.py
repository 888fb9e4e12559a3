"""Accumulates the events of a chat stream into a whole reply.

No I/O and no clock; `new_call_id`, which a `ReplyAccumulator` calls if it is passed in, takes random bytes from the
system. One object belongs to one stream and has no lock. With a synchronous stream, the user's thread adds the
events, and the event loop's thread reads the reply while the user's thread waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import msgspec
from attrs import define, evolve, field

from llmopt.values.chat import ChatEvent, ChatReply, ToolCall, ToolCallPart
from llmopt.values.embeddings import Usage
from llmopt.values.lenient_json import REPLACEMENT, join_halves


class ReplyAccumulator:
    """The reply so far, from the events received so far.

    Args:
        new_id: makes the id of a tool call that has none from the server; None to leave it empty.

    Attributes:
        usage_so_far: the last value of each count that was reported, None if none was.
        stated_reason: why the model stopped, in the server's word; None while it does not say.
        provider_data: what the provider wants back with the next request; of each key the last value.
        model: the model that replies, "" while unknown.
        id: the provider's id of the reply, "" while unknown.
        last: whether the provider has marked the end of the stream.
    """

    def __init__(self, new_id: Callable[[], str] | None = None) -> None:
        self._new_id: Final = new_id
        self.stated_reason: str | None = None
        self.provider_data: dict[str, Any] = {}
        self.model = ""
        self.id = ""
        self.last = False
        self.usage_so_far: Usage | None = None
        # Joined when asked for: adding to one str copies the text again for every event.
        self._text: Final[list[str]] = []
        self._reasoning: Final[list[str]] = []
        self._refusal: Final[list[str]] = []
        self._calls: Final[list[_PartialCall]] = []

    def add(self, event: ChatEvent) -> None:
        """Add the next event."""
        if event.text:
            self._text.append(event.text)
        if event.reasoning:
            self._reasoning.append(event.reasoning)
        if event.refusal:
            self._refusal.append(event.refusal)
        for part in event.tool_calls:
            self._add_part(part)
        if event.provider_data:
            self.provider_data.update(event.provider_data)
        self.stated_reason = event.finish_reason or self.stated_reason
        # The last count of each kind counts: some servers repeat a running usage in every event.
        if event.usage is not None:
            self.usage_so_far = event.usage.after(self.usage_so_far)
        self.model = event.model or self.model
        self.id = event.id or self.id
        self.last = self.last or event.last

    @property
    def usage(self) -> Usage | None:
        """The last usage reported, counted as one request; None if none was reported yet."""
        return None if self.usage_so_far is None else evolve(self.usage_so_far, requests=1)

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped, None while it has not."""
        ended = self.last or self.stated_reason is not None
        return finish_reason(self.stated_reason, called=bool(self._calls)) if ended else None

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The model's reasoning so far."""
        return "".join(self._reasoning)

    @property
    def refusal(self) -> str:
        """The refusal so far."""
        return "".join(self._refusal)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order; the arguments of the last one may be unfinished."""
        ordered = sorted(self._calls, key=lambda call: call.index)
        return tuple(
            ToolCall(
                id=call.id or call.own_id,
                name=call.name,
                arguments=call.arguments,
                provider_data=dict(call.provider_data),
            )
            for call in ordered
        )

    def reply(self, request_id: str | None = None) -> ChatReply:
        """Return everything so far as a reply."""
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
            provider_data=dict(self.provider_data),
        )

    def _add_part(self, part: ToolCallPart) -> None:
        same_index = [call for call in self._calls if call.index == part.index]
        # Some servers number every call 0: the id tells then, or else the newest call goes on.
        call = next((call for call in same_index if part.id and call.id == part.id), None)
        call = call or (same_index[-1] if same_index else None)
        if call is None or call.ends_before(part):
            call = _PartialCall(part.index, self._new_id() if self._new_id is not None else "")
            self._calls.append(call)
        call.add(part)


@define(eq=False)
class _PartialCall:
    """A tool call whose arguments are still arriving."""

    index: int
    own_id: str
    id: str = ""
    name: str = ""
    provider_data: dict[str, Any] = field(factory=dict)
    _arguments: list[str] = field(factory=list)

    @property
    def arguments(self) -> str:
        return "".join(self._arguments)

    def add(self, part: ToolCallPart) -> None:
        self.id = self.id or part.id
        self.name = self.name or part.name
        if part.arguments:
            self._arguments.append(part.arguments)
        if part.provider_data:
            self.provider_data.update(part.provider_data)

    def ends_before(self, part: ToolCallPart) -> bool:
        """Whether a fragment with the same index begins another call.

        An id alone says nothing: some servers make a new one for each fragment.
        """
        if part.name and self.name and part.name != self.name:
            return True
        if not (part.name or part.id) or not self._is_whole():
            return False
        if part.arguments.strip():
            return True
        # Without arguments it begins a call by another id, or, where there are no ids, by a name.
        return bool(part.name) and (part.id != self.id if part.id else not self.id)

    def _is_whole(self) -> bool:
        """Whether the arguments so far are a JSON object or list."""
        # Asked for every fragment that has an id: the last character answers for nearly all.
        last = next((piece for piece in reversed(self._arguments) if piece.strip()), "")
        if not last.rstrip().endswith(("}", "]")):
            return False
        try:
            msgspec.json.decode(self.arguments, type=msgspec.Raw)
        except msgspec.DecodeError:
            return False
        return True


def finish_reason(stated: str | None, *, called: bool) -> str | None:
    """Why a reply has ended: "tool_calls" also where a server that calls tools says "stop", as Gemini does, or nothing."""
    return "tool_calls" if called and (stated or _ORDINARY).lower() == _ORDINARY else stated


_ORDINARY: Final = "stop"


def new_call_id() -> str:
    """An id for a tool call of a server that sends none: the message with the result must name one."""
    return f"call_{os.urandom(12).hex()}"


class HalfJoiner:
    """Joins the two halves of a surrogate pair that came in two events of a stream.

    JavaScript counts UTF-16 units: a server that cuts a text by them may send an emoji in two halves. In each event, a
    half without the other one was replaced before it was parsed, see `llmopt.values.lenient_json`.

    Attributes:
        held: the first half, whose other one is awaited; 0 if there is none.
    """

    def __init__(self) -> None:
        self.held = 0
        self._in_reasoning = False

    def join(self, events: Iterable[ChatEvent], halves: Sequence[int]) -> tuple[ChatEvent, ...]:
        """The events, with what was held back before them and without what is held back now.

        Args:
            events: of one event of the server.
            halves: those that were replaced in it.
        """
        return tuple([self._join(event, halves) for event in events])

    def _join(self, event: ChatEvent, halves: Sequence[int]) -> ChatEvent:
        if event.whole:
            # It repeats what was held back.
            self.held = 0
            return event
        text, reasoning = event.text, event.reasoning
        ends = event.last or event.finish_reason is not None
        if self.held and (text or reasoning or ends):
            if self._in_reasoning:
                reasoning = self._completed(reasoning, halves)
            else:
                text = self._completed(text, halves)
        if halves and halves[-1] < _LOW_HALVES and not ends:
            self._in_reasoning = not text.endswith(REPLACEMENT)
            if not self._in_reasoning:
                self.held, text = halves[-1], text[:-1]
            elif reasoning.endswith(REPLACEMENT):
                self.held, reasoning = halves[-1], reasoning[:-1]
        return evolve(event, text=text, reasoning=reasoning)

    def _completed(self, text: str, halves: Sequence[int]) -> str:
        first, self.held = self.held, 0
        if halves and halves[0] >= _LOW_HALVES and text.startswith(REPLACEMENT):
            return join_halves(chr(first) + chr(halves[0])) + text[1:]
        return REPLACEMENT + text


_LOW_HALVES: Final = 0xDC00
