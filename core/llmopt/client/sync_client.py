"""The synchronous client: the asynchronous one on a thread of its own, without a logic of its own."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.async_client import AsyncCatalogs, AsyncChat, AsyncClient
from llmopt.client.loop_thread import LoopThread, register_exit_handler
from llmopt.client.options import CacheChoice, WhenOpen
from llmopt.client.sync_streams import SyncChatStream, SyncEmbedStream
from llmopt.config.schema import Config
from llmopt.errors import ClientClosed, LLMOptError
from llmopt.operations.chat import Messages
from llmopt.operations.embed import ErrorMode, check_texts_argument
from llmopt.operations.models import CacheMode
from llmopt.policies.clock import Clock
from llmopt.values.catalog import Catalog
from llmopt.values.chat import ChatReply
from llmopt.values.embeddings import Embeddings
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx


# What the synchronous client does with lists of models.


class SyncCatalogs:
    """The methods of `llmopt.Client` for lists of models."""

    _client: AsyncCatalogs

    def _running(self) -> LoopThread:
        raise NotImplementedError

    def list_models(
        self, provider: str, *, deadline: float | None = None, cached: CacheMode = "auto"
    ) -> Catalog:
        """All models of one provider; see `llmopt.AsyncClient.list_models`."""
        thread = self._running()
        if cached == "auto":
            # What is at hand need not cross to the other thread and back, which takes ten times as long.
            found = self._client._cached_models(provider)  # noqa: SLF001 - the mirror's own other half
            if found is not None:
                return found
        return thread.run(self._client.list_models(provider, deadline=deadline, cached=cached))

    def batch_list_models(
        self,
        providers: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        cached: CacheMode = "auto",
    ) -> Mapping[str, Catalog | LLMOptError]:
        """The models of many providers; see `llmopt.AsyncClient.batch_list_models`."""
        thread = self._running()
        return thread.run(
            self._client.batch_list_models(providers, deadline=deadline, timeout=timeout, cached=cached)
        )

    def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Have the lists of models at hand; see `llmopt.AsyncClient.warm`."""
        thread = self._running()
        return thread.run(self._client.warm(providers, deadline=deadline))

    def invalidate(self, provider: str | None = None) -> None:
        """Let kept lists of models go; see `llmopt.AsyncClient.invalidate`."""
        thread = self._running()
        thread.run(self._client.invalidate(provider))


# The chat methods of the synchronous client.


class SyncChat:
    """What `llmopt.Client` does with conversations."""

    _client: AsyncChat

    def _running(self) -> LoopThread:
        raise NotImplementedError

    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        tools: Iterable[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        deadline: float | None = None,
        when_open: WhenOpen = "fail",
        extra: Mapping[str, Any] | None = None,
    ) -> ChatReply:
        """Ask for an answer, and wait for the whole of it; see `llmopt.AsyncClient.chat`."""
        thread = self._running()
        return thread.run(
            self._client.chat(
                model,
                messages,
                max_tokens=max_tokens,
                temperature=temperature,
                top_p=top_p,
                stop=stop,
                seed=seed,
                presence_penalty=presence_penalty,
                frequency_penalty=frequency_penalty,
                tools=tools,
                tool_choice=tool_choice,
                parallel_tool_calls=parallel_tool_calls,
                response_format=response_format,
                reasoning_effort=reasoning_effort,
                deadline=deadline,
                when_open=when_open,
                extra=extra,
            )
        )

    def stream(
        self,
        model: str,
        messages: Messages,
        *,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        presence_penalty: float | None = None,
        frequency_penalty: float | None = None,
        tools: Iterable[Mapping[str, Any]] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        response_format: Mapping[str, Any] | None = None,
        reasoning_effort: str | None = None,
        deadline: float | None = None,
        when_open: WhenOpen = "fail",
        extra: Mapping[str, Any] | None = None,
        buffer_size: int = 100,
    ) -> SyncChatStream:
        """Ask for an answer, and get it while it comes; see `llmopt.AsyncClient.stream`.

        Returns:
            An iterator of `llmopt.ChatEvent`, to be used in ``with``.
        """
        thread = self._running()
        stream = self._client.stream(
            model,
            messages,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            tools=tools,
            tool_choice=tool_choice,
            parallel_tool_calls=parallel_tool_calls,
            response_format=response_format,
            reasoning_effort=reasoning_effort,
            deadline=deadline,
            when_open=when_open,
            extra=extra,
            buffer_size=buffer_size,
        )
        return SyncChatStream(thread, stream.source)


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
        self._forget_exit = register_exit_handler(self._stop)

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
        check_texts_argument(texts)
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
        check_texts_argument(texts)
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
