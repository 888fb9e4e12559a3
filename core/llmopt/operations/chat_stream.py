"""A streamed answer for an asynchronous caller."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, Final, Self

from llmopt.operations.chat_source import ChatSource
from llmopt.operations.chat_view import ChatView
from llmopt.values.chat import ChatEvent


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
