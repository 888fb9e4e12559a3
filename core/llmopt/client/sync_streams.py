"""Streams for synchronous callers: the parts of an embedding, and the events of a chat reply.

The work runs on the loop's thread. The iterable of texts is read in the caller's thread only, because some iterables,
such as a database cursor, may only be used in the thread that made them: the loop sends a request for more texts, and
the caller, which is waiting for the next part anyway, answers it.

Requests and the cache are accessed from the loop's thread, where plugins' hooks and the user's listener run too;
worker threads call synchronous token providers and parse large responses. The caller blocks in each step, without a
time limit of this file's; the requests of an embedding go on while it works with a part. A queue carries requests for
texts to the caller, and the loop's `call_soon_threadsafe` the texts back. The iterable is read in pieces, limited by
the system's monotonic clock. A stream is for one thread at a time and has no lock.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Final, Self

from llmopt.client.loop_thread import LoopThread
from llmopt.errors import ClientClosed
from llmopt.operations.chat import ChatRun
from llmopt.operations.chat_stream import ReplyStream
from llmopt.operations.embed_stream import EmbedStream
from llmopt.policies.tasks import settle
from llmopt.values.chat import ChatEvent
from llmopt.values.embeddings import EmbeddedPart

_MAX_TEXTS: Final = 512
"""Texts that are handed over at once; each switch between the threads costs more than many texts."""
_MAX_READ_S: Final = 0.01
"""A slow iterable is not read for longer than this before its texts are handed over."""


class SyncEmbedStream(Iterator[EmbeddedPart]):
    """The parts of an embedding. Use it in ``with``, so that leaving the loop early cancels the work.

    Args:
        thread: runs the event loop.
        texts: the caller's iterable.
        open_stream: makes the stream, on the loop, from an asynchronous iterable.
    """

    def __init__(
        self,
        thread: LoopThread,
        texts: Iterable[str],
        open_stream: Callable[[AsyncIterator[str]], EmbedStream],
    ) -> None:
        self._thread: Final = thread
        self._texts: Final = _CallersTexts(iter(texts))

        async def open_on_loop() -> EmbedStream:
            return open_stream(self._texts.on_loop())

        self._stream: Final = thread.run(open_on_loop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> EmbeddedPart:
        requests = self._texts.requests
        task = self._thread.submit(_next_part(self._stream))
        # The caller waits for one queue; this wakes it when the part is ready.
        task.future.add_done_callback(lambda _: requests.put(None))
        try:
            # The None of an earlier part may still be in the queue, so only the future says that the part is ready.
            while not task.future.done():
                request = requests.get()
                if request is not None and task.future.done():
                    # The part is returned first, however long the iterable takes for its next text.
                    requests.put(request)
                elif request is not None:
                    self._texts.answer(request)
        except BaseException:
            task.cancel()
            self.close()
            raise
        part = task.result()
        if part is None:
            raise StopIteration
        return part

    def close(self) -> None:
        """Cancel the running requests."""
        # Once the client is closed there is nothing left to close.
        with suppress(ClientClosed, RuntimeError):
            self._thread.run(self._stream.aclose())


async def _next_part(stream: EmbedStream) -> EmbeddedPart | None:
    return await anext(stream, None)


_Request = asyncio.Future[tuple[list[str], bool]]
"""The loop's request for texts; the result is the texts, and whether there may be more."""


class _CallersTexts:
    """Passes texts from the caller's thread to the loop.

    Args:
        texts: read in the caller's thread only.

    Attributes:
        requests: requests of the loop; None wakes the caller for another reason.
    """

    def __init__(self, texts: Iterator[str]) -> None:
        self.requests: Final[queue.SimpleQueue[_Request | None]] = queue.SimpleQueue()
        self._texts: Final = texts
        self._error: Exception | None = None

    async def on_loop(self) -> AsyncIterator[str]:
        """The texts, for the loop."""
        loop = asyncio.get_running_loop()
        more = True
        while more:
            request: _Request = loop.create_future()
            self.requests.put(request)
            texts, more = await request
            for text in texts:
                yield text

    def answer(self, request: _Request) -> None:
        """Read texts and send them to the loop, in the caller's thread.

        An exception of the iterable is sent after the texts that were read before it.
        """
        texts: list[str] = []
        more = False
        until = time.monotonic() + _MAX_READ_S
        if self._error is None:
            try:
                for text in self._texts:
                    texts.append(text)
                    if len(texts) >= _MAX_TEXTS or time.monotonic() >= until:
                        more = True
                        break
            except Exception as error:  # noqa: BLE001 - raised to the caller
                self._error = error
                more = True
        outcome = (texts, more) if self._error is None or texts else self._error
        request.get_loop().call_soon_threadsafe(settle, request, outcome)


class SyncChatStream(ReplyStream, Iterator[ChatEvent]):
    """The events of a streamed reply, and the reply so far. Use it in ``with``.

    Events that arrived together are taken from the loop's thread together, because a switch of threads costs more
    than an event.

    Args:
        thread: runs the event loop.
        run: the call.
        buffer_size: as for `ReplyStream`.
    """

    def __init__(self, thread: LoopThread, run: ChatRun, buffer_size: int) -> None:
        super().__init__(run, buffer_size)
        self._thread: Final = thread

    def __enter__(self) -> Self:
        if not self._ready:
            self._ready.extend(self._thread.run(self._read()))
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatEvent:
        """The next event; raises what `llmopt.operations.chat_stream.ChatStream` raises."""
        if not self._ready:
            self._ready.extend(self._thread.run(self._read()))
            if not self._ready:
                raise StopIteration
        event = self._ready.popleft()
        self._reply.add(event)
        return event

    def close(self) -> None:
        """End the request; the rest of the reply is discarded. The properties keep what was received."""
        self._ready.clear()
        try:
            self._thread.run(self._close())
        except (ClientClosed, RuntimeError):
            # The client was closed before, and its loop with it.
            if self._live is not None:
                self._live.close_soon()
