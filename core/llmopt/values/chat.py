"""A conversation's values: what is said, what comes back, in one piece or event by event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from llmopt.values.embeddings import Usage
from llmopt.values.secret import repr_names, repr_size


@frozen(kw_only=True)
class ToolCall:
    """A tool that the model wants called.

    Attributes:
        id: what the answer to it must name as ``tool_call_id``; "" where the server gives none.
        name: of the tool.
        arguments: JSON text as the model wrote it, which need not be valid.
    """

    id: str = ""
    name: str = ""
    arguments: str = field(default="", repr=repr_size)


@frozen(kw_only=True)
class ToolCallPart:
    """A fragment of a tool call in a stream.

    Attributes:
        index: which call of the answer it belongs to.
        id: of the call, "" in fragments that do not repeat it.
        name: of the tool, "" likewise.
        arguments: the next piece of the arguments' JSON text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = field(default="", repr=repr_size)


@frozen
class Message:
    """One message of a conversation; a plain mapping does as well.

    Attributes:
        role: "system", "user", "assistant" or "tool"; what else the provider knows.
        content: the text, or a list of typed parts as the provider takes them; None for an assistant's
            message that only calls tools.
        name: of the speaker, "" for none.
        tool_calls: the calls that an assistant's message made.
        tool_call_id: in a message of role "tool", the call that it answers.
    """

    role: str
    content: str | Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    name: str = field(default="", kw_only=True)
    tool_calls: Sequence[ToolCall] = field(default=(), kw_only=True, repr=repr_size)
    tool_call_id: str = field(default="", kw_only=True)

    def as_dict(self) -> dict[str, Any]:
        """The message in the common dialect, without keys that say nothing."""
        told: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            told["name"] = self.name
        if self.tool_calls:
            told["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id:
            told["tool_call_id"] = self.tool_call_id
        return told


@frozen(kw_only=True)
class ChatEvent:
    """What one event of a stream added to the answer; a plugin's ``parse_stream_event`` gives them.

    Attributes:
        text: the next piece of the answer.
        reasoning: the next piece of what the model thought, where the server shows it.
        refusal: the next piece of a refusal, where the server keeps it apart from the answer.
        tool_calls: fragments of tool calls.
        finish_reason: why the model ended, in the server's word ("stop", "length", "tool_calls",
            "content_filter" ...); None before it did.
        usage: the tokens of the whole answer so far; a later one replaces it.
        model: the model that answers, "" when the event does not say.
        id: the provider's id of the answer, "" when the event does not say.
        last: whether it is the provider's own end of the stream, after which nothing counts.
        raw: the event's JSON as it came, for what is special to one provider.
    """

    text: str = field(default="", repr=repr_size)
    reasoning: str = field(default="", repr=repr_size)
    refusal: str = field(default="", repr=repr_size)
    tool_calls: tuple[ToolCallPart, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    id: str = ""
    last: bool = False
    raw: Mapping[str, Any] = field(factory=dict, repr=repr_names)

    @property
    def adds(self) -> bool:
        """Whether it adds to the answer: pings, filters' verdicts and bare usage do not."""
        return bool(
            self.text or self.reasoning or self.refusal or self.tool_calls or self.finish_reason is not None
        )


@frozen(kw_only=True)
class ChatReply:
    """A whole answer.

    Attributes:
        text: the answer; "" where the model only called tools or refused.
        reasoning: what the model thought, where the server shows it.
        refusal: the refusal, where the server keeps it apart from the answer.
        tool_calls: tools that the model wants called, in order.
        finish_reason: why the model ended, in the server's word; None when it does not say.
        usage: what the answer reports, None when it reports nothing.
        model: the model that answered, as it names itself; "" when it does not.
        id: the provider's id of the answer.
        request_id: the provider's id of the request, from the headers; filled in by the core.
        raw: the answer's JSON as it came; empty for an answer that was put together from a stream.
    """

    text: str = field(default="", repr=repr_size)
    reasoning: str = field(default="", repr=repr_size)
    refusal: str = field(default="", repr=repr_size)
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    model: str = ""
    id: str = ""
    request_id: str | None = None
    raw: Mapping[str, Any] = field(factory=dict, repr=repr_names)

    @property
    def message(self) -> Message:
        """The answer as the conversation's next message."""
        said = self.text or self.refusal
        return Message("assistant", said or None, tool_calls=self.tool_calls)


# One decoded event of a streamed answer, before anybody has read what is in it.


@frozen(kw_only=True)
class ServerEvent:
    """One event of ``text/event-stream``, or one line of ``application/x-ndjson``.

    Attributes:
        event: the event's type: "message" where the server names none, "line" for a line of
            newline-delimited JSON.
        data: the data, its lines joined with a line feed; it may be empty.
        id: the last event id that the server gave, "" when it gave none.
    """

    event: str = "message"
    data: str = field(default="", repr=repr_size)
    id: str = ""
