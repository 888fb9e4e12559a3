"""One chat: what is asked, and the two ways to get the answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypedDict

import msgspec
from attrs import evolve

from llmopt.engine.engine import Engine
from llmopt.engine.request import Request, StreamRequest
from llmopt.engine.responses import request_id
from llmopt.engine.streaming import LiveStream
from llmopt.errors import InvalidInput
from llmopt.operations.embed import checked_extra
from llmopt.policies.batch_size import TokenEstimator
from llmopt.policies.clock import Deadline
from llmopt.providers.registry import Provider
from llmopt.values.calls import ChatCall, Settings
from llmopt.values.chat import ChatReply, Message
from llmopt.values.embeddings import Usage
from llmopt.values.http import Failure, HttpResponse

# How many tokens a chat is about to cost, for the rate limiter. An estimate: answers correct it.

_A_MESSAGE: Final = 4
"""What the frame of a message costs, its role among it."""
_A_PART: Final = 500
"""A part that is no text, such as an image: its bytes say nothing of its tokens."""
_AN_ANSWER: Final = 256
"""What an answer is taken for when nobody bounds it."""


def prompt_tokens(call: ChatCall, estimator: TokenEstimator) -> int:
    """The tokens of the question."""
    tokens = sum(_of_message(message, estimator) for message in call.messages)
    if call.tools:
        tokens += estimator.estimate(msgspec.json.encode(call.tools).decode())
    return tokens


def answer_tokens(call: ChatCall) -> int:
    """The tokens of the answer; providers charge ``max_tokens`` before it begins."""
    return _AN_ANSWER if call.max_tokens is None else call.max_tokens


def _of_message(message: Mapping[str, Any], estimator: TokenEstimator) -> int:
    content = message.get("content")
    tokens = _A_MESSAGE
    if isinstance(content, str):
        tokens += estimator.estimate(content)
    elif isinstance(content, (list, tuple)):
        tokens += sum(_of_part(part, estimator) for part in content)
    if calls := message.get("tool_calls"):
        tokens += estimator.estimate(msgspec.json.encode(calls).decode())
    return tokens


def _of_part(part: object, estimator: TokenEstimator) -> int:
    text = part.get("text") if isinstance(part, Mapping) else part
    return estimator.estimate(text) if isinstance(text, str) else _A_PART


_MOST_BYTES: Final = 64 << 20
_MOST_STREAMED_BYTES: Final = 512 << 20


class ChatRun:
    """One chat with one model.

    Args:
        engine: sends the request.
        provider: whom to ask.
        call: what to ask.
        estimator: tokens of a text, as learned of the model.
        deadline: of the whole call.
        wait_when_open: whether to wait while the provider is given a rest.
    """

    def __init__(
        self,
        engine: Engine,
        provider: Provider,
        call: ChatCall,
        *,
        estimator: TokenEstimator,
        deadline: Deadline,
        wait_when_open: bool,
    ) -> None:
        self._engine: Final = engine
        self._provider: Final = provider
        self._call: Final = call
        self._estimator: Final = estimator
        self._deadline: Final = deadline
        self._wait_when_open: Final = wait_when_open
        self._prompt_tokens = 0

    async def ask(self) -> ChatReply:
        """The whole answer at once.

        Raises:
            LLMOptError: there is none.
        """
        asked = self._asked()
        request: Request[ChatReply] = Request(
            call=self._call, max_body=_MOST_BYTES, usage_of=lambda reply: reply.usage, **asked
        )
        reply = await self._engine.run(self._provider, request)
        self.learn(reply.usage)
        return reply

    async def open(self, buffer_size: int) -> LiveStream:
        """The answer as a stream, with its first event there.

        Raises:
            LLMOptError: there is none.
        """
        asked = self._asked()
        # Where it helps to ask for it, as the profile says. All endpoints of an entry are of one kind.
        usage = self._provider.endpoints[0].stream_usage
        request = StreamRequest(
            call=evolve(self._call, stream=True, include_usage=usage),
            max_body=_MOST_STREAMED_BYTES,
            prompt_tokens=self._prompt_tokens,
            buffer_size=buffer_size,
            **asked,
        )
        return await self._engine.open(self._provider, request)

    def learn(self, usage: Usage | None) -> None:
        """What the question really cost."""
        if usage is not None:
            self._estimator.learn(self._prompt_tokens, usage.prompt_tokens)

    def _asked(self) -> dict[str, Any]:
        self._prompt_tokens = prompt_tokens(self._call, self._estimator)
        return {
            "parse": self._parse,
            "deadline": self._deadline,
            "tokens": self._prompt_tokens + answer_tokens(self._call),
            "wait_when_open": self._wait_when_open,
        }

    def _parse(self, response: HttpResponse, settings: Settings) -> ChatReply | Failure:
        reply = self._provider.hooks.parse_chat(self._call, response, settings)
        if isinstance(reply, Failure):
            return reply
        usage = None if reply.usage is None else evolve(reply.usage, requests=1)
        return evolve(reply, usage=usage, request_id=request_id(response.headers))


# What can be asked in a chat. Everything here happens before any I/O.

MAX_BUFFER_SIZE: Final = 10_000
"""The largest ``buffer_size``."""
Messages = Iterable[Mapping[str, Any] | Message]
"""A conversation, oldest message first."""
_encode: Final = msgspec.json.Encoder().encode


class ChatOptions(TypedDict):
    """The parameters of a chat as the user gave them, not checked; see `llmopt.values.calls.ChatCall`."""

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    stop: str | Sequence[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    tools: Iterable[Mapping[str, Any]] | None
    tool_choice: str | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: Mapping[str, Any] | None
    reasoning_effort: str | None


def chat_call(
    model: str, messages: Messages, parameters: ChatOptions, extra: Mapping[str, Any] | None
) -> ChatCall:
    """A chat as asked for, checked.

    Raises:
        InvalidInput: a message or a parameter that no provider could take; for a message ``index`` says which.
    """
    return ChatCall(
        model=model,
        messages=_messages(messages),
        max_tokens=_whole("max_tokens", parameters["max_tokens"], least=1),
        temperature=_number("temperature", parameters["temperature"], 0.0, math.inf),
        top_p=_number("top_p", parameters["top_p"], 0.0, 1.0),
        stop=_stop(parameters["stop"]),
        seed=_whole("seed", parameters["seed"]),
        presence_penalty=_number("presence_penalty", parameters["presence_penalty"]),
        frequency_penalty=_number("frequency_penalty", parameters["frequency_penalty"]),
        tools=_tools(parameters["tools"]),
        tool_choice=_word_or_mapping("tool_choice", parameters["tool_choice"]),
        parallel_tool_calls=_switch("parallel_tool_calls", parameters["parallel_tool_calls"]),
        response_format=_mapping("response_format", parameters["response_format"]),
        reasoning_effort=_word("reasoning_effort", parameters["reasoning_effort"]),
        extra=checked_extra(extra),
    )


def check_buffer_size(value: object) -> int:
    """How many events may be parsed together.

    Raises:
        InvalidInput: it is no whole number from 1 to `MAX_BUFFER_SIZE`.
    """
    if type(value) is not int or not 1 <= value <= MAX_BUFFER_SIZE:
        raise InvalidInput(
            f"buffer_size must be a whole number from 1 to {MAX_BUFFER_SIZE}, not {value!r:.40}."
        )
    return value


def _messages(messages: Messages) -> tuple[Mapping[str, Any], ...]:
    if isinstance(messages, (str, bytes, bytearray, Mapping, Message)) or not isinstance(messages, Iterable):
        raise InvalidInput(
            f"the messages must be a list, not {_kind(messages)}; for one question write "
            '[{"role": "user", "content": "..."}].'
        )
    checked = tuple(_message(message, index) for index, message in enumerate(messages))
    if not checked:
        raise InvalidInput("the messages are empty; there must be one at least.")
    return checked


def _message(message: object, index: int) -> Mapping[str, Any]:
    told = message.as_dict() if isinstance(message, Message) else message
    if not isinstance(told, Mapping):
        raise InvalidInput(
            f"message {index} is {_kind(message)}, not a mapping with role and content.", index=index
        )
    role = told.get("role")
    if not (isinstance(role, str) and role):
        raise InvalidInput(f"message {index} has no role, such as 'user'.", index=index)
    if "content" not in told and not any(value for key, value in told.items() if key != "role"):
        raise InvalidInput(f"message {index} has no content.", index=index)
    plain = dict(told)
    _refuse_unsendable(plain, f"message {index}", index)
    return plain


def _refuse_unsendable(value: object, name: str, index: int | None = None) -> None:
    """What a message or a schema holds must be JSON; its text never stands in the error."""
    try:
        _encode(value)
    except UnicodeEncodeError:
        raise InvalidInput(
            f"{name} holds half of a surrogate pair; it was cut or decoded wrongly. "
            "Read it with errors='replace', or repair it.",
            index=index,
        ) from None
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput(f"{name} holds something that JSON cannot express.", index=index) from None


def _tools(value: object) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise InvalidInput(f"tools must be a list of mappings, not {_kind(value)}.")
    tools = tuple(value)
    for number, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise InvalidInput(f"tool {number} is {_kind(tool)}, not a mapping.")
        _refuse_unsendable(dict(tool), f"tool {number}")
    return tools


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text for text in texts):
        raise InvalidInput("stop must be a text or a list of texts, none of them empty.")
    _refuse_unsendable(list(texts), "stop")
    return tuple(texts)


def _whole(name: str, value: object, *, least: int | None = None) -> int | None:
    if value is None:
        return None
    if type(value) is not int or (least is not None and value < least):
        what = "a whole number" if least is None else f"a whole number of {least} or more"
        raise InvalidInput(f"{name} must be {what}, not {value!r:.40}.")
    return value


def _number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number, not {value!r:.40}.")
    if not least <= value <= most:
        bounds = f"{least:g} or more" if most == math.inf else f"from {least:g} to {most:g}"
        raise InvalidInput(f"{name} must be {bounds}, not {value!r:.40}.")
    return value


def _switch(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise InvalidInput(f"{name} must be True or False, not {_kind(value)}.")


def _word(name: str, value: object) -> str | None:
    if value is None:
        return None
    if not (isinstance(value, str) and value.isprintable() and value):
        raise InvalidInput(f"{name} must be a word such as 'low', not {_kind(value)}.")
    return value


def _mapping(name: str, value: object) -> Mapping[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise InvalidInput(f"{name} must be a mapping, not {_kind(value)}.")
    plain = dict(value)
    _refuse_unsendable(plain, name)
    return plain


def _word_or_mapping(name: str, value: object) -> str | Mapping[str, Any] | None:
    return _mapping(name, value) if isinstance(value, Mapping) else _word(name, value)


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"
