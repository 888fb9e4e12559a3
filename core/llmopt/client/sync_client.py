"""The synchronous client: the asynchronous one on a thread of its own, without a logic of its own."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.arguments import WhenOpen
from llmopt.client.async_client import AsyncClient
from llmopt.client.cache_plan import CacheChoice
from llmopt.client.loop_thread import LoopThread, at_exit
from llmopt.client.sync_catalogs import SyncCatalogs
from llmopt.client.sync_chat import SyncChat
from llmopt.client.sync_stream import SyncEmbedStream
from llmopt.config.tree import Config
from llmopt.errors import ClientClosed
from llmopt.operations.embed import ErrorMode
from llmopt.operations.inputs import refuse_single
from llmopt.policies.clock import Clock
from llmopt.values.embeddings import Embeddings
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx


class Client(SyncChat, SyncCatalogs):
    """Asks any number of providers. Safe to use from many threads, and inside a running event loop.

    Arguments and methods are those of `llmopt.AsyncClient`, without ``await``. Use it in ``with``,
    or call `close`; a client that nobody closes keeps no program from ending. A forked child may go
    on using it, with connections of its own.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | str | os.PathLike[str] | Config | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        cache: CacheChoice = None,
        plugins: Sequence[object] = (),
        on_event: OnEvent | None = None,
        flags: Mapping[str, bool] | None = None,
        clock: Clock | None = None,
    ) -> None:
        def make() -> AsyncClient:
            return AsyncClient(
                config,
                transport=transport,
                cache=cache,
                plugins=plugins,
                on_event=on_event,
                flags=flags,
                clock=clock,
            )

        self._make: Final[Callable[[], AsyncClient]] = make
        self._client: AsyncClient = make()
        self._thread: LoopThread | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._forget_exit = at_exit(self._stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        thread = getattr(self, "_thread", None)
        if thread is not None and not self._closed and thread.pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a client holds connections and cannot be pickled; make one in the other process")

    def close(self) -> None:
        """Close all connections and end the thread. Calls made later raise `ClientClosed`."""
        self._stop(None)

    def _stop(self, timeout: float | None) -> None:
        # A child never closes what is its parent's, and never waits for a lock that a thread of
        # its parent's may have held.
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        self._forget_exit()
        if thread is not None:
            thread.stop(self._client.aclose, timeout)

    def _running(self) -> LoopThread:
        """The thread of this process, started at the first call."""
        if self._pid != os.getpid():
            self._start_over()
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed; make a new one.")
            if self._thread is None:
                self._thread = LoopThread()
            return self._thread

    def _start_over(self) -> None:
        """In a forked child: nothing of the parent's is touched, not even its lock."""
        self._lock = threading.Lock()
        self._client = self._make()
        self._thread = None
        self._pid = os.getpid()

    def embed(
        self,
        model: str,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        input_type: str | None = None,
        deadline: float | None = None,
        errors: ErrorMode = "raise",
        when_open: WhenOpen = "fail",
        extra: Mapping[str, Any] | None = None,
    ) -> Embeddings:
        """Embed texts; see `llmopt.AsyncClient.embed`. The texts are read in the caller's thread."""
        thread = self._running()
        refuse_single(texts)
        return thread.run(
            self._client.embed(
                model,
                list(texts),
                dimensions=dimensions,
                input_type=input_type,
                deadline=deadline,
                errors=errors,
                when_open=when_open,
                extra=extra,
            )
        )

    def embed_iter(
        self,
        model: str,
        texts: Iterable[str],
        *,
        dimensions: int | None = None,
        input_type: str | None = None,
        deadline: float | None = None,
        errors: ErrorMode = "raise",
        when_open: WhenOpen = "wait",
        extra: Mapping[str, Any] | None = None,
    ) -> SyncEmbedStream:
        """Embed an iterable of any length; see `llmopt.AsyncClient.embed_iter`.

        The iterable is read in the caller's thread, while the caller waits for the next part.

        Returns:
            An iterator of `EmbeddedPart`, to be used in ``with`` where the loop may be left early.
        """
        refuse_single(texts)
        client = self._client
        return SyncEmbedStream(
            self._running(),
            texts,
            lambda source: client.embed_iter(
                model,
                source,
                dimensions=dimensions,
                input_type=input_type,
                deadline=deadline,
                errors=errors,
                when_open=when_open,
                extra=extra,
            ),
        )

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges as plain values; see `llmopt.AsyncClient.stats`."""
        return self._client.stats()
