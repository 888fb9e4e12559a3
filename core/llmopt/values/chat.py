"""Values of a conversation: messages, tool calls, the reply, and the events of a streamed reply.

``provider_data`` of a message, a reply, an event or a tool call is what the provider wants back unchanged, such as the
signature of a reasoning: a mapping of JSON values that only the plugin reads, which put it there. llmopt keeps it, and the
common dialect sends none of another's. Its keys begin with the name of the plugin, because a conversation may move to another.

Pure: no I/O, no clock, no module-level state. A value keeps the lists and mappings that it is given, without a copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from attrs import field, frozen

from llmopt.values.embeddings import Usage
from llmopt.values.secret import repr_names, repr_size


@frozen(kw_only=True)
class ToolCall:
    """A call of a tool that the model requests.

    Attributes:
        id: identifier that the message with the result must repeat as ``tool_call_id``. For a server that sends none, the
            core makes one.
        name: name of the tool.
        arguments: JSON text as the model wrote it; it may be invalid JSON.
        provider_data: what the provider wants back with the next request, see above.
    """

    id: str = ""
    name: str = ""
    arguments: str = field(default="", repr=repr_size)
    provider_data: Mapping[str, Any] = field(factory=dict, repr=repr_size, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """The call in the common dialect, as a part of a message."""
        function = {"name": self.name, "arguments": self.arguments}
        call: dict[str, Any] = {"id": self.id, "type": "function", "function": function}
        return {**call, "provider_data": self.provider_data} if self.provider_data else call


@frozen
class Message:
    """One message of a conversation. A mapping with the same keys may be used instead.

    Attributes:
        role: "system", "user", "assistant", "tool" or another role that the provider knows.
        content: the text, or a list of typed parts in the provider's form; None for a message that only calls tools.
        name: name of the speaker, "" for none.
        tool_calls: the tool calls of an assistant's message.
        tool_call_id: in a message of role "tool", the id of the call that it answers.
        provider_data: what the provider wants back with this message, see the module.
    """

    role: str
    content: str | Sequence[Mapping[str, Any]] | None = field(default=None, repr=False)
    name: str = field(default="", kw_only=True)
    tool_calls: Sequence[ToolCall] = field(default=(), kw_only=True, repr=repr_size)
    tool_call_id: str = field(default="", kw_only=True)
    provider_data: Mapping[str, Any] = field(factory=dict, kw_only=True, repr=repr_size, hash=False)

    def as_dict(self) -> dict[str, Any]:
        """The message in the common dialect, without empty optional keys."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            message["name"] = self.name
        if self.tool_calls:
            message["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.tool_call_id:
            message["tool_call_id"] = self.tool_call_id
        if self.provider_data:
            message["provider_data"] = self.provider_data
        return message


@frozen(kw_only=True)
class ChatReply:
    """A complete reply.

    Attributes:
        text: the text; "" if the model only called tools or refused.
        reasoning: the model's reasoning, where the server shows it.
        refusal: the refusal, where the server separates it from the text.
        tool_calls: the requested tool calls, in order.
        finish_reason: why generation ended, in the server's word; None if it does not say.
        usage: the token usage that the server reports, None if it reports none.
        model: the model's name for itself; "" if the server does not say.
        id: the provider's id of the reply.
        request_id: the provider's id of the request, from the response headers; set by the core.
        provider_data: what the provider wants back with the next request, see above.
        raw: the JSON of the response; empty for a reply that was assembled from a stream.
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
    provider_data: Mapping[str, Any] = field(factory=dict, repr=repr_size, hash=False)
    raw: Mapping[str, Any] = field(factory=dict, repr=repr_names)

    @property
    def message(self) -> Message:
        """The reply as the next message of the conversation."""
        content = self.text or self.refusal
        return Message(
            "assistant", content or None, tool_calls=self.tool_calls, provider_data=self.provider_data
        )


@frozen(kw_only=True)
class ToolCallPart:
    """A fragment of a tool call in a stream.

    Attributes:
        index: position of the call in the reply.
        id: of the call; "" in fragments that do not repeat it.
        name: of the tool; "" in fragments that do not repeat it.
        arguments: the next piece of the JSON text of the arguments.
        provider_data: as in an event.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = field(default="", repr=repr_size)
    provider_data: Mapping[str, Any] = field(factory=dict, repr=repr_size, hash=False)


@frozen(kw_only=True)
class ChatEvent:
    """What one event of a stream adds to the reply; returned by a plugin's ``parse_stream_event``.

    Attributes:
        text: the next piece of the text.
        reasoning: the next piece of the model's reasoning, where the server shows it.
        refusal: the next piece of a refusal, where the server separates it from the text.
        tool_calls: fragments of tool calls.
        finish_reason: why generation ended, in the server's word ("stop", "length", "tool_calls", "content_filter"
            ...); None before the end.
        usage: the token usage of the whole reply so far. From a plugin it may be what this event alone tells: the core
            completes it by what earlier events told, see `Usage`.
        model: the model's name for itself, "" if the event does not say.
        id: the provider's id of the reply, "" if the event does not say.
        last: whether this is the provider's end of the stream; later events are ignored.
        whole: whether the text is that of the whole reply so far and not its next piece. The core replaces such an
            event by what it adds, so that a caller never sees one.
        unknown: for an event of a type that llmopt does not know, the name of that type, or "unnamed"; "" for all
            others. Such an event adds nothing to the reply.
        provider_data: what the provider wants back with the next request. Of a key that several events have, the last
            value counts: what must be joined, such as a signature in pieces, the plugin joins in its state.
        raw: the JSON of the event.
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
    whole: bool = False
    unknown: str = ""
    provider_data: Mapping[str, Any] = field(factory=dict, repr=repr_size, hash=False)
    raw: Mapping[str, Any] = field(factory=dict, repr=repr_names)

    @property
    def adds(self) -> bool:
        """Whether it adds to the reply. Pings, results of content filters and usage alone do not."""
        return bool(
            self.text or self.reasoning or self.refusal or self.tool_calls or self.finish_reason is not None
        )


@frozen
class StreamStep:
    """What ``parse_stream_event`` makes of one event, and what it has to know for the next one.

    Attributes:
        events: what the event adds to the reply.
        state: passed to the hook with the next event of the same stream. The hook makes a new value, and changes none.
    """

    events: tuple[ChatEvent, ...]
    state: Any = field(default=None, repr=False)


@runtime_checkable
class EventDecoder(Protocol):
    """Turns the bytes of one stream into the events of the server, as they come; see the hook ``decode_stream``."""

    def feed(self, data: bytes, /) -> Iterable[ServerEvent]:
        """The events that these bytes complete; may be a generator.

        Raises:
            InvalidResponse: they cannot be decoded. The events before it are valid.
        """

    def end(self) -> Iterable[ServerEvent]:
        """The events that the end of the body completes; raises as `feed`, where it is in the middle of one."""


@frozen(kw_only=True)
class ServerEvent:
    """One event of a ``text/event-stream`` body or one line of ``application/x-ndjson``, not parsed yet.

    Attributes:
        event: type of the event: "message" if the server states none, "line" for newline-delimited JSON.
        data: the data, its lines joined with a line feed; may be empty.
        id: the last event id that the server sent, "" if none.
    """

    event: str = "message"
    data: str = field(default="", repr=repr_size)
    id: str = ""
