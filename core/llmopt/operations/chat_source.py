"""A streamed answer from the first request to the end: opened when wanted, read in turn, closed once."""

from __future__ import annotations

from typing import Final

from llmopt.decoding.gather import Gathered
from llmopt.engine.live_stream import LiveStream
from llmopt.engine.outcome import request_id
from llmopt.errors import LLMOptError, StreamError, StreamInterrupted
from llmopt.operations.chat import ChatJob
from llmopt.values.chat import ChatEvent


class ChatSource:
    """Where the events of one answer come from, whoever hands them out.

    Args:
        job: the chat.
        buffer_size: most events that are parsed together.

    Attributes:
        gathered: what was handed out; whoever hands an event out adds it.
        request_id: the provider's id of the request, None before the answer began.
    """

    def __init__(self, job: ChatJob, *, buffer_size: int) -> None:
        self.gathered: Final = Gathered()
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
        return self._live is not None and self._live.held

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
            self._live.abandon()
