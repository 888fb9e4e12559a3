"""A streamed chat reply: opened when it is entered or first read, read event by event, and closed once.

`ReplyStream` holds the connection and what was received so far. `ChatStream` adds asynchronous iteration, and
`llmopt.client.sync_streams.SyncChatStream` adds synchronous iteration.

Opening and reading await the engine's connection; there is no other I/O and no clock. A complete reply teaches the
token estimator of the model, which other calls share. A tool call without an id gets a random one. A stream has no
lock: a second reader gets an error. One that is deleted while open warns, and closes its connection on the loop that
opened it.
"""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, ClassVar, Final, Self

from llmopt.decoding.accumulator import ReplyAccumulator, new_call_id
from llmopt.engine.streaming import LiveStream
from llmopt.errors import LLMOptError, StreamError, StreamInterrupted
from llmopt.operations.chat import ChatRun, check_buffer_size
from llmopt.values.chat import ChatEvent, ChatReply, ToolCall
from llmopt.values.embeddings import Usage


class ReplyStream:
    """A streamed reply, and what was received of it so far.

    The properties cover the events that iterating has returned, also after an error or after closing.

    Args:
        run: the call.
        buffer_size: how many events are parsed at once, 1 to 10,000.

    Raises:
        InvalidInput: ``buffer_size`` is out of range.
    """

    _statement: ClassVar[str] = "with"

    def __init__(self, run: ChatRun, buffer_size: int) -> None:
        self._buffer_size: Final = check_buffer_size(buffer_size)
        self._run: Final = run
        self._reply: Final = ReplyAccumulator(new_call_id)
        self._request_id: str | None = None
        # Events that were parsed and not returned yet.
        self._ready: Final[deque[ChatEvent]] = deque()
        self._live: LiveStream | None = None
        self._error: LLMOptError | None = None
        self._complete = False
        self._closed = False
        self._reading = False

    @property
    def text(self) -> str:
        """The text so far."""
        return self._reply.text

    @property
    def reasoning(self) -> str:
        """The model's reasoning so far, where the server shows it."""
        return self._reply.reasoning

    @property
    def refusal(self) -> str:
        """The refusal so far, where the server separates it from the text."""
        return self._reply.refusal

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The tool calls so far, in order; the arguments of the last one may be incomplete."""
        return self._reply.tool_calls

    @property
    def finish_reason(self) -> str | None:
        """Why generation ended, in the server's word; None before the end."""
        return self._reply.finish_reason

    @property
    def usage(self) -> Usage | None:
        """The token usage, None until the server reports it; most servers report it at the end."""
        return self._reply.usage

    @property
    def model(self) -> str:
        """The model's name for itself; "" until it is received."""
        return self._reply.model

    @property
    def request_id(self) -> str | None:
        """The provider's id of the request; None before the reply begins, and if there is none."""
        return self._request_id

    @property
    def reply(self) -> ChatReply:
        """Everything so far, in the form that ``chat`` returns."""
        return self._reply.reply(self._request_id)

    def __repr__(self) -> str:
        state = "not started" if self._live is None else "ended" if self._live.ended else "running"
        return f"<{type(self).__name__} {state}: {len(self.text)} characters>"

    def __del__(self, warn: Any = warnings.warn) -> None:
        # The constructor may have raised before the attribute was set.
        live: LiveStream | None = getattr(self, "_live", None)
        if live is not None and live.holds_connection:
            warn(f"unclosed {self!r}; use it in `{self._statement}`", ResourceWarning, source=self)
            live.close_soon()

    async def _read(self) -> list[ChatEvent]:
        """Read the next events, after all earlier ones were returned; [] at the end.

        Raises:
            StreamInterrupted, StreamIdle: the reply broke off; ``text`` and ``partial`` hold what was received.
            LLMOptError: there is no reply.
        """
        if self._closed or self._complete:
            return []
        if self._error is not None:
            raise self._error.copy()
        if self._reading:
            raise RuntimeError("another task is already reading this stream.")
        self._reading = True
        try:
            live = self._live or await self._open()
            events = await live.read()
            if self._closed:
                raise StreamInterrupted("it was closed.", sent="yes")
        except LLMOptError as error:
            failure = self._with_partial_reply(error)
            # A copy is stored: the raised error refers to the frames that it passed through.
            self._error = failure.copy()
            raise failure from failure.__cause__
        # A cancelled read has lost events; a later read must not continue as if nothing was missing.
        except BaseException:
            self._error = self._with_partial_reply(
                StreamInterrupted("reading the stream was cancelled.", sent="yes")
            )
            raise
        finally:
            self._reading = False
        if not events:
            self._complete = True
            # Only from a complete reply: the usage of a broken one may be a running count.
            self._run.learn_usage(self._reply.usage)
        return events

    async def _open(self) -> LiveStream:
        self._live = live = await self._run.open_stream(self._buffer_size)
        self._request_id = live.request_id
        if self._closed:
            # Another task closed this stream while it was being opened, and had nothing to close.
            await live.aclose()
        return live

    def _with_partial_reply(self, error: LLMOptError) -> LLMOptError:
        if self._closed:
            error = StreamInterrupted("the stream was closed while it was read.", sent="yes")
        if isinstance(error, StreamError):
            error.partial = self.reply
            error.text = error.partial.text
        return error

    async def _close(self) -> None:
        self._closed = True
        if self._live is not None:
            await self._live.aclose()


class ChatStream(ReplyStream):
    """The events of a streamed reply, and the reply so far.

    Use it in ``async with`` and ``async for``. The request is sent on entering the block, or when the first event is
    requested. The connection is read only as fast as events are requested. Leaving the block early, an exception in
    it, a cancellation and `aclose` all end the request.
    """

    _statement = "async with"

    async def __aenter__(self) -> Self:
        if not self._ready:
            self._ready.extend(await self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatEvent:
        """The next event.

        Raises:
            StreamInterrupted, StreamIdle: the reply broke off; ``text`` and ``partial`` hold what was received.
            LLMOptError: there is no reply.
        """
        if not self._ready:
            self._ready.extend(await self._read())
            if not self._ready:
                raise StopAsyncIteration
        # Added when it is returned, not when it is parsed: the properties cover what the caller has seen.
        event = self._ready.popleft()
        self._reply.add(event)
        return event

    async def aclose(self) -> None:
        """End the request; the rest of the reply is discarded. The properties keep what was received."""
        self._ready.clear()
        await self._close()
