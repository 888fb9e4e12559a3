"""A streamed answer for an asynchronous caller."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, Final, Self

from llmopt.decoding.accumulator import ReplyAccumulator
from llmopt.engine.responses import request_id
from llmopt.engine.streaming import LiveStream
from llmopt.errors import LLMOptError, StreamError, StreamInterrupted
from llmopt.operations.chat import ChatRun
from llmopt.values.chat import ChatEvent, ChatReply, ToolCall
from llmopt.values.embeddings import Usage

# A streamed answer from the first request to the end: opened when wanted, read in turn, closed once.


class ChatSource:
    """Where the events of one answer come from, whoever hands them out.

    Args:
        job: the chat.
        buffer_size: most events that are parsed together.

    Attributes:
        gathered: what was handed out; whoever hands an event out adds it.
        request_id: the provider's id of the request, None before the answer began.
    """

    def __init__(self, job: ChatRun, *, buffer_size: int) -> None:
        self.gathered: Final = ReplyAccumulator()
        self.request_id: str | None = None
        self._job: Final = job
        self._buffer_size: Final = buffer_size
        self._live: LiveStream | None = None
        self._error: LLMOptError | None = None
        self._over = False
        self._closed = False
        self._reading = False

    @property
    def state(self) -> str:
        """How it stands, in a word or two."""
        return "not begun" if self._live is None else "over" if self._live.ended else "under way"

    @property
    def unclosed(self) -> bool:
        """Whether it holds a connection."""
        return self._live is not None and self._live.holds_connection

    async def read(self) -> list[ChatEvent]:
        """The next events, to be asked for when all before them were handed out; [] at the end.

        Raises:
            StreamInterrupted, StreamIdle: the answer broke off; ``text`` and ``partial`` are what had come.
            LLMOptError: there was no answer.
        """
        if self._closed or self._over:
            return []
        if self._error is not None:
            raise self._error.copy()
        if self._reading:
            raise RuntimeError("another task is reading this stream already.")
        self._reading = True
        try:
            live = self._live or await self._open()
            events = await live.read()
            if self._closed:
                raise StreamInterrupted("it was closed.", sent="yes")
        except LLMOptError as error:
            told = self._told(error)
            # A copy: the one that is raised holds the frames it came through.
            self._error = told.copy()
            raise told from told.__cause__
        except BaseException:
            self._error = self._told(StreamInterrupted("reading the stream was cancelled.", sent="yes"))
            raise
        finally:
            self._reading = False
        if not events:
            self._over = True
            self._job.learn(self.gathered.usage)
        return events

    async def _open(self) -> LiveStream:
        self._live = live = await self._job.open(self._buffer_size)
        self.request_id = request_id(live.head.headers)
        if self._closed:
            # By another task, which found nothing to close yet.
            await live.aclose()
        return live

    def _told(self, error: LLMOptError) -> LLMOptError:
        """The error, with what had come of the answer."""
        if self._closed:
            error = StreamInterrupted("the stream was closed while it was read.", sent="yes")
        if isinstance(error, StreamError):
            error.partial = self.gathered.reply(self.request_id)
            error.text = error.partial.text
        return error

    async def aclose(self) -> None:
        """Stop, and let the connection go: the rest is not wanted."""
        self._closed = True
        if self._live is not None:
            await self._live.aclose()

    def abandon(self) -> None:
        """As `aclose`, at some time soon, from any thread."""
        if self._live is not None:
            self._live.close_soon()


# What can be known of a streamed answer while it comes and afterwards.


class ChatView:
    """A streamed answer as far as its events were handed out, whatever became of the rest.

    Attributes:
        source: where the events come from.
    """

    def __init__(self, source: ChatSource) -> None:
        self.source: Final = source
        self._gathered: Final = source.gathered

    @property
    def text(self) -> str:
        """The answer so far."""
        return self._gathered.text

    @property
    def reasoning(self) -> str:
        """What the model thought so far, where the server shows it."""
        return self._gathered.reasoning

    @property
    def refusal(self) -> str:
        """The refusal so far, where the server keeps it apart from the answer."""
        return self._gathered.refusal

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order; the arguments of the last one may be unfinished."""
        return self._gathered.tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why the model ended, in the server's word; None while it has not."""
        return self._gathered.finish_reason

    @property
    def usage(self) -> Usage | None:
        """The tokens, None while the server has not told them; most tell them at the end."""
        return self._gathered.usage

    @property
    def model(self) -> str:
        """The model that answers, as it names itself; "" while it has not."""
        return self._gathered.model

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request, None before the answer began and where there is none."""
        return self.source.request_id

    @property
    def reply(self) -> ChatReply:
        """All of it so far, as ``chat`` would give it."""
        return self._gathered.reply(self.source.request_id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.source.state}: {len(self.text)} characters>"


class ChatStream(ChatView):
    """The events of an answer, as they come, and the answer as it grows.

    Use it in ``async with`` and ``async for``. The request is sent on entering, or when the first event is
    asked for. What arrives is read as fast as it is asked for and no faster. Leaving the block early, an
    exception in it, a cancellation and `aclose` all let the connection go.

    Args:
        source: where the events come from.
    """

    def __init__(self, source: ChatSource) -> None:
        super().__init__(source)
        self._ready: Final[deque[ChatEvent]] = deque()

    async def __aenter__(self) -> Self:
        if not self._ready:
            self._ready.extend(await self.source.read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatEvent:
        """The next event.

        Raises:
            StreamInterrupted, StreamIdle: the answer broke off; ``text`` and ``partial`` are what had come.
            LLMOptError: there was no answer.
        """
        if not self._ready:
            self._ready.extend(await self.source.read())
            if not self._ready:
                raise StopAsyncIteration
        event = self._ready.popleft()
        self.source.gathered.add(event)
        return event

    async def aclose(self) -> None:
        """Stop: the rest of the answer is not wanted. What was handed out stays to be looked at."""
        self._ready.clear()
        await self.source.aclose()

    def __del__(self, warn: Any = warnings.warn) -> None:
        source = getattr(self, "source", None)
        if source is not None and source.unclosed:
            warn(f"unclosed {self!r}; use it in `async with`", ResourceWarning, source=self)
            source.abandon()
