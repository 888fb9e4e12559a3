"""A stream of embeddings for a synchronous caller, whose iterable is read in the caller's thread.

A database cursor belongs to the thread that made it, so the loop's thread never touches the
iterable: it asks for texts, and the caller, who waits for the next part anyway, reads them.
"""

from __future__ import annotations

import asyncio
import queue
import time
import warnings
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, Self

from llmopt.client.loop_thread import LoopThread
from llmopt.errors import ClientClosed
from llmopt.operations.chat_stream import ChatSource, ChatView
from llmopt.operations.embed_stream import EmbedStream
from llmopt.values.chat import ChatEvent
from llmopt.values.embeddings import EmbeddedPart

_MOST_TEXTS: Final = 512
_MOST_SECONDS: Final = 0.01


class _Feed:
    """The caller's iterable as the loop sees it: an asynchronous one that asks the caller for more."""

    def __init__(self, loop: asyncio.AbstractEventLoop, asks: queue.SimpleQueue[_Ask | None]) -> None:
        self._loop: Final = loop
        self._asks: Final = asks

    async def __aiter__(self) -> AsyncIterator[str]:
        while True:
            answer: asyncio.Future[tuple[list[str], bool]] = self._loop.create_future()
            self._asks.put(_Ask(self._loop, answer))
            texts, more = await answer
            for text in texts:
                yield text
            if not more:
                return


class _Ask:
    """One wish of the loop's for more texts."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, answer: asyncio.Future[tuple[list[str], bool]]
    ) -> None:
        self._loop: Final = loop
        self._answer: Final = answer

    def give(self, texts: list[str], *, more: bool) -> None:
        self._loop.call_soon_threadsafe(self._set, (texts, more))

    def fail(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail, error)

    def _set(self, value: tuple[list[str], bool]) -> None:
        if not self._answer.done():
            self._answer.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


class SyncEmbedStream(Iterator[EmbeddedPart]):
    """The parts of an embedding, in order. Use it in ``with`` to stop the work on leaving."""

    def __init__(
        self, thread: LoopThread, texts: Iterable[str], open_stream: Callable[[Any], EmbedStream]
    ) -> None:
        self._thread: Final = thread
        self._texts: Final = iter(texts)
        self._asks: Final[queue.SimpleQueue[_Ask | None]] = queue.SimpleQueue()
        self._held: BaseException | None = None
        self._stream: Final = thread.run(_opened(open_stream, _Feed(thread.loop, self._asks)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EmbeddedPart:
        work = self._thread.submit(_next(self._stream))
        work.future.add_done_callback(lambda _: self._asks.put(None))
        try:
            # A wake-up of an earlier part may still lie in the queue: only the future tells.
            while not work.future.done():
                ask = self._asks.get()
                if ask is not None and work.future.done():
                    # A part is ready: it goes first, however long the iterable takes for its next text.
                    self._asks.put(ask)
                elif ask is not None:
                    self._serve(ask)
        except BaseException:
            work.abandon()
            self.close()
            raise
        part = work.result()
        if part is None:
            raise StopIteration
        return part

    def _serve(self, ask: _Ask) -> None:
        """Read texts for the loop: many, unless they come slowly."""
        if self._held is not None:
            ask.fail(self._held)
            return
        texts: list[str] = []
        until = time.monotonic() + _MOST_SECONDS
        try:
            for text in self._texts:
                texts.append(text)
                if len(texts) >= _MOST_TEXTS or time.monotonic() >= until:
                    ask.give(texts, more=True)
                    return
        except Exception as error:  # noqa: BLE001 - raised to the caller, after all that came before it
            self._held = error
            if not texts:
                ask.fail(error)
                return
        ask.give(texts, more=self._held is not None)

    def close(self) -> None:
        """Stop the work that is under way."""
        # After the client there is nothing left to close.
        with suppress(ClientClosed, RuntimeError):
            self._thread.run(self._stream.aclose())


async def _opened(open_stream: Callable[[Any], EmbedStream], feed: _Feed) -> EmbedStream:
    return open_stream(feed)


async def _next(stream: EmbedStream) -> EmbeddedPart | None:
    return await anext(stream, None)


# A streamed answer for a synchronous caller.


class SyncChatStream(ChatView, Iterator[ChatEvent]):
    """The events of an answer, as they come, and the answer as it grows. Use it in ``with``.

    Events that arrive together cross from the loop's thread together: a crossing costs more than an event.

    Args:
        thread: where the loop runs.
        source: where the events come from.
    """

    def __init__(self, thread: LoopThread, source: ChatSource) -> None:
        super().__init__(source)
        self._thread: Final = thread
        self._ready: Final[deque[ChatEvent]] = deque()

    def __enter__(self) -> Self:
        if not self._ready:
            self._ready.extend(self._thread.run(self.source.read()))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatEvent:
        """The next event; raises as `llmopt.operations.chat_stream.ChatStream` does."""
        if not self._ready:
            self._ready.extend(self._thread.run(self.source.read()))
            if not self._ready:
                raise StopIteration
        event = self._ready.popleft()
        self.source.gathered.add(event)
        return event

    def close(self) -> None:
        """Stop: the rest of the answer is not wanted. What was handed out stays to be looked at."""
        self._ready.clear()
        try:
            self._thread.run(self.source.aclose())
        except (ClientClosed, RuntimeError):
            # The client was closed before, and its connections with it.
            self.source.abandon()

    def __del__(self, warn: Any = warnings.warn) -> None:
        source = getattr(self, "source", None)
        if source is not None and source.unclosed:
            warn(f"unclosed {self!r}; use it in `with`", ResourceWarning, source=self)
            source.abandon()
