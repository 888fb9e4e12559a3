"""Chat: check the arguments, estimate the tokens, send the request and parse the reply.

`ChatRun` is one call of ``chat`` or ``stream``; `send` and `open_stream` await the engine. The checks and the estimate
do no I/O, and read the caller's messages in the caller's thread. Streamed replies are read in
`llmopt.operations.chat_stream`.

The token estimator belongs to the model's state, which all calls share without a lock; each complete reply corrects
it. Parsing calls the plugin's hook `parse_chat`, or `stream_parser` and the parser that it makes if the server streams
unasked; for large replies in a worker thread. A tool call without an id gets a random one, from the system. No clock:
the deadline is passed in.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import evolve

from llmopt.compatible.chat import plain_messages, provider_data_of
from llmopt.decoding.accumulator import ReplyAccumulator, finish_reason, new_call_id
from llmopt.decoding.ndjson import decoder_of, detect_format
from llmopt.decoding.sse import StreamDecoder
from llmopt.engine.attempt import CallScope
from llmopt.engine.engine import Engine
from llmopt.engine.event_reader import EventReader, ParseEvent
from llmopt.engine.request import Request, StreamRequest
from llmopt.engine.responses import request_id
from llmopt.engine.streaming import LiveStream, Outcome
from llmopt.errors import InvalidInput, InvalidResponse
from llmopt.operations.call_events import CallEvents, observed
from llmopt.operations.call_options import ChatOptions, checked_extra
from llmopt.operations.learned_rates import LearnedRates
from llmopt.operations.token_estimate import TokenEstimator
from llmopt.policies.clock import Deadline
from llmopt.providers.registry import Provider
from llmopt.values.calls import ChatCall, Priority, Settings, check_json
from llmopt.values.chat import ChatReply, Message
from llmopt.values.embeddings import Usage
from llmopt.values.http import Failure, HttpResponse
from llmopt.values.profile import StreamEnd

Messages = Iterable[Mapping[str, Any] | Message]
"""A conversation, oldest message first."""
MAX_BUFFER_SIZE: Final = 10_000
# Far above the longest reply of a model; it bounds what a broken server can make the client allocate.
_MAX_REPLY_BYTES: Final = 64 << 20
_MAX_STREAM_BYTES: Final = 512 << 20
_encode: Final = msgspec.json.Encoder().encode


class ChatRun(CallScope):
    """One call of ``chat`` or ``stream`` with one model.

    Args:
        engine: sends the request.
        provider: the provider that gets it.
        call: the checked request.
        estimator: estimates the tokens of a text, as learned for this model.
        rates: what was learned of the model's rate limits.
        deadline: for the whole call.
        wait_when_open: whether to wait while the circuit of the provider is open.
        priority: which of the calls that wait are sent first.
    """

    def __init__(
        self,
        engine: Engine,
        provider: Provider,
        call: ChatCall,
        *,
        estimator: TokenEstimator,
        rates: LearnedRates,
        deadline: Deadline,
        wait_when_open: bool,
        priority: Priority,
    ) -> None:
        super().__init__(engine.telemetry, "chat", call.model, provider.endpoints[0])
        self._engine: Final = engine
        self._provider: Final = provider
        self._call: Final = call
        self._estimator: Final = estimator
        self._rates: Final = rates
        self._deadline: Final = deadline
        self._wait_when_open: Final = wait_when_open
        self._priority: Final[Priority] = priority
        self._prompt: Final = _Prompt(call)
        self._prompt_tokens: Final = estimator.total(self._prompt.texts) + self._prompt.other_tokens

    async def send(self) -> ChatReply:
        """Send the request and wait for the complete reply.

        Raises:
            LLMOptError: there is no reply.
        """
        request: Request[ChatReply] = Request(
            call=self._call,
            parse=self._parse,
            deadline=self._deadline,
            tokens=self._prompt_tokens + self._reply_tokens,
            output_tokens=self._reply_tokens,
            wait_when_open=self._wait_when_open,
            priority=self._priority,
            max_body=_MAX_REPLY_BYTES,
            usage_of=lambda reply: reply.usage,
            scope=self,
        )
        self._rates.restore_soon(self._call)
        work = self._engine.run(self._provider, request)
        reply = await observed(self, self._engine.clock, work, self._call.messages)
        self.learn_usage(reply.usage)
        return reply

    async def open_stream(self, buffer_size: int) -> LiveStream:
        """Send the request and wait for the first event of the reply.

        Args:
            buffer_size: how many events are parsed at once.

        Raises:
            LLMOptError: there is no reply.
        """
        # An endpoint that must not be asked gets the request without it, see `StreamPipeline`.
        include_usage = any(endpoint.stream_usage for endpoint in self._provider.endpoints)
        request = StreamRequest(
            call=evolve(self._call, stream=True, include_usage=include_usage),
            parse=self._parse,
            deadline=self._deadline,
            tokens=self._prompt_tokens + self._reply_tokens,
            output_tokens=self._reply_tokens,
            wait_when_open=self._wait_when_open,
            priority=self._priority,
            max_body=_MAX_STREAM_BYTES,
            buffer_size=buffer_size,
            scope=self,
        )
        self._rates.restore_soon(self._call)
        if not self.recording:
            return await self._engine.open(self._provider, request)
        with self.bound():
            return await self._observed_stream(request)

    async def _observed_stream(self, request: StreamRequest) -> LiveStream:
        """The stream, with the events of the call before its request and after its end."""
        events = CallEvents(self, self._engine.clock, self._call.messages, stream=True)
        try:
            live = await self._engine.open(self._provider, request)
        except BaseException as error:
            events.end(error)
            raise

        def ended(outcome: Outcome) -> None:
            events.add(live.reader.reply.reply())
            events.end(outcome)

        live.on_end.append(ended)
        return live

    def learn_usage(self, usage: Usage | None) -> None:
        """Correct the estimator by the reported token count of the prompt."""
        # What an image costs is not known well enough to tell the text's part of the usage.
        if usage is not None and not self._prompt.has_media:
            text_tokens = usage.prompt_tokens - self._prompt.other_tokens
            self._estimator.learn(self._prompt.texts, text_tokens)

    @property
    def _reply_tokens(self) -> int:
        # Providers charge ``max_tokens`` to the rate limit before the reply begins.
        limit = self._call.max_tokens
        return _DEFAULT_REPLY_TOKENS if limit is None else limit

    def _parse(self, response: HttpResponse, settings: Settings) -> ChatReply | Failure:
        hooks = self._provider.hooks
        content_type = response.headers.get("content-type", "")
        decoder = decoder_of(detect_format(content_type, response.body, ended=True) or "whole")
        if decoder is None or not response.body:
            reply = hooks.parse_chat(self._call, response, settings)
        else:
            parse = hooks.stream_parser(self._call, settings)
            streamed = _read_streamed_reply(decoder, response.body, parse, self._stream_end(settings))
            reply = streamed if isinstance(streamed, Failure) else streamed.reply()
        if isinstance(reply, Failure):
            return reply
        calls = tuple(call if call.id else evolve(call, id=new_call_id()) for call in reply.tool_calls)
        return evolve(
            reply,
            usage=None if reply.usage is None else evolve(reply.usage.after(None), requests=1),
            tool_calls=calls,
            finish_reason=finish_reason(reply.finish_reason, called=bool(calls)),
            request_id=request_id(response.headers, settings),
        )

    def _stream_end(self, settings: Settings) -> StreamEnd:
        """What completes a stream of the endpoint with these settings."""
        endpoints = self._provider.endpoints
        return next((each.stream_end for each in endpoints if each.base_url == settings.base_url), "finish")


def _read_streamed_reply(
    decoder: StreamDecoder, body: bytes, parse: ParseEvent, end: StreamEnd
) -> ReplyAccumulator | Failure:
    """Read a whole body that a server streamed although it was not asked to.

    Raises:
        InvalidResponse: the body is not a complete reply.
    """
    reader = EventReader(
        decoder,
        parse,
        lambda failure: InvalidResponse(failure.error.message),
        end=end,
        max_events=sys.maxsize,
    )
    for data in (body, b""):
        reader.feed(data)
        while reader.take():
            pass
    if reader.failure is not None:
        return reader.failure
    if reader.fault is not None:
        raise reader.fault
    return reader.reply


# The estimate of a prompt's tokens, for the rate limiter. The usage that replies report corrects it.

_TOKENS_PER_MESSAGE: Final = 4
"""For the role and the separators of a message."""
_TOKENS_PER_MEDIA_PART: Final = 500
"""For a part without text, such as an image; the size of its data says nothing about its tokens."""
_DEFAULT_REPLY_TOKENS: Final = 256
"""For a reply without ``max_tokens``."""


class _Prompt:
    """What of a prompt is estimated.

    Attributes:
        texts: its texts, those of tools and of their calls as JSON.
        other_tokens: estimated tokens of everything else.
        has_media: whether it has parts without text.
    """

    def __init__(self, call: ChatCall) -> None:
        self.texts: Final[list[str]] = []
        self.other_tokens = 0
        self.has_media = False
        for message in plain_messages(call.messages):
            self._add(message)
        if call.tools:
            self.texts.append(_encode(call.tools).decode())

    def _add(self, message: Mapping[str, Any]) -> None:
        self.other_tokens += _TOKENS_PER_MESSAGE
        content = message.get("content")
        if isinstance(content, str):
            self.texts.append(content)
        for part in content if isinstance(content, (list, tuple)) else ():
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                self.texts.append(text)
            else:
                self.other_tokens += _TOKENS_PER_MEDIA_PART
                self.has_media = True
        if calls := message.get("tool_calls"):
            self.texts.append(_encode(calls).decode())


# The checks of the arguments. They run before any I/O.


def chat_call(model: str, messages: Messages, options: ChatOptions) -> ChatCall:
    """The request for a chat, with checked messages and options.

    Raises:
        InvalidInput: no provider could accept a message or an option; ``index`` is the position of the message.
    """
    return ChatCall(
        model=model,
        messages=_messages(messages),
        max_tokens=_integer("max_tokens", options.max_tokens, minimum=1),
        temperature=_number("temperature", options.temperature, minimum=0.0),
        top_p=_number("top_p", options.top_p, minimum=0.0, maximum=1.0),
        stop=_stop(options.stop),
        seed=_integer("seed", options.seed),
        presence_penalty=_number("presence_penalty", options.presence_penalty),
        frequency_penalty=_number("frequency_penalty", options.frequency_penalty),
        tools=_tools(options.tools),
        tool_choice=_word_or_mapping("tool_choice", options.tool_choice),
        parallel_tool_calls=_boolean("parallel_tool_calls", options.parallel_tool_calls),
        response_format=_mapping("response_format", options.response_format),
        reasoning_effort=_word("reasoning_effort", options.reasoning_effort),
        extra=checked_extra(options.extra),
    )


def check_buffer_size(value: object) -> int:
    """The ``buffer_size`` of a stream.

    Raises:
        InvalidInput: it is not a whole number from 1 to `MAX_BUFFER_SIZE`.
    """
    if type(value) is not int or not 1 <= value <= MAX_BUFFER_SIZE:
        raise InvalidInput(
            f"buffer_size must be a whole number from 1 to {MAX_BUFFER_SIZE}, not {value!r:.40}."
        )
    return value


def _messages(messages: Messages) -> tuple[Mapping[str, Any], ...]:
    if isinstance(messages, (str, bytes, bytearray, Mapping, Message)) or not isinstance(messages, Iterable):
        raise InvalidInput(
            f"the messages must be a list, not {_type_of(messages)}; for one question write "
            '[{"role": "user", "content": "..."}].'
        )
    checked = tuple(_message(message, index) for index, message in enumerate(messages))
    if not checked:
        raise InvalidInput("the list of messages is empty; give at least one message.")
    return checked


def _message(message: object, index: int) -> Mapping[str, Any]:
    fields = message.as_dict() if isinstance(message, Message) else message
    if not isinstance(fields, Mapping):
        raise InvalidInput(
            f"message {index} is {_type_of(message)}, not a mapping with role and content.", index=index
        )
    role = fields.get("role")
    if not (isinstance(role, str) and role):
        raise InvalidInput(f"message {index} has no role, such as 'user'.", index=index)
    # An assistant message that only calls tools has no content.
    if "content" not in fields and not any(value for key, value in fields.items() if key != "role"):
        raise InvalidInput(f"message {index} has no content.", index=index)
    plain = dict(fields)
    check_json(plain, f"message {index}", index)
    if not all(isinstance(data, Mapping) for data in provider_data_of(plain)):
        raise InvalidInput(
            f"provider_data of message {index} is not a mapping, as replies have it.", index=index
        )
    return plain


def _tools(value: object) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInput(f"tools must be a list of mappings, not {_type_of(value)}.")
    tools = tuple(value)
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InvalidInput(f"tool {number} is {_type_of(tool)}, not a mapping.")
        check_json(dict(tool), f"tool {number}")
    return tools


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    # A text is a sequence of texts: checked first, else "END" would become three stop words.
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidInput("stop must be a text or a list of texts, none of them empty.")
    check_json(list(texts), "stop")
    return tuple(texts)


def _integer(name: str, value: object, *, minimum: int | None = None) -> int | None:
    if value is None:
        return None
    if type(value) is not int or (minimum is not None and value < minimum):
        expected = "a whole number" if minimum is None else f"a whole number of {minimum} or more"
        raise InvalidInput(f"{name} must be {expected}, not {value!r:.40}.")
    return value


def _number(
    name: str, value: object, *, minimum: float = -math.inf, maximum: float = math.inf
) -> float | None:
    if value is None:
        return None
    # NaN and infinity are no JSON (RFC 8259, section 6), and True is an int.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number, not {value!r:.40}.")
    if not minimum <= value <= maximum:
        expected = f"{minimum:g} or more" if maximum == math.inf else f"from {minimum:g} to {maximum:g}"
        raise InvalidInput(f"{name} must be {expected}, not {value!r:.40}.")
    return value


def _boolean(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidInput(f"{name} must be True or False, not {_type_of(value)}.")


def _word(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not (isinstance(value, str) and value.isprintable() and value):
        raise InvalidInput(f"{name} must be a word such as 'low', not {_type_of(value)}.")
    return value


def _mapping(name: str, value: object) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} must be a mapping, not {_type_of(value)}.")
    plain = dict(value)
    check_json(plain, name)
    return plain


def _word_or_mapping(name: str, value: object) -> str | Mapping[str, Any] | None:
    return _mapping(name, value) if isinstance(value, Mapping) else _word(name, value)


def _type_of(value: object) -> str:
    return f"of type {type(value).__name__}"
