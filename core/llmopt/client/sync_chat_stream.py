"""A streamed answer for a synchronous caller."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, Self

from llmopt.client.loop_thread import LoopThread
from llmopt.errors import ClientClosed
from llmopt.operations.chat_source import ChatSource
from llmopt.operations.chat_view import ChatView
from llmopt.values.chat import ChatEvent


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
