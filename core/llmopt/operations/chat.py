"""One chat: what is asked, and the two ways to get the answer."""

from __future__ import annotations

from typing import Any, Final

from attrs import evolve

from llmopt.engine.engine import Engine
from llmopt.engine.live_stream import LiveStream
from llmopt.engine.outcome import request_id
from llmopt.engine.request import Request, StreamRequest
from llmopt.operations.chat_tokens import answer_tokens, prompt_tokens
from llmopt.policies.deadline import Deadline
from llmopt.policies.tokens import TokenEstimator
from llmopt.providers.provider import Provider
from llmopt.values.calls import ChatCall
from llmopt.values.chat import ChatReply
from llmopt.values.embeddings import Usage
from llmopt.values.failure import Failure
from llmopt.values.http import HttpResponse
from llmopt.values.settings import Settings

_MOST_BYTES: Final = 64 << 20
_MOST_STREAMED_BYTES: Final = 512 << 20


class ChatJob:
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
