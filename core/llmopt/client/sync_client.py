"""The synchronous client: the same methods as the asynchronous one, run on an event loop in a thread of its own.

Making a client reads the configuration file and the environment, in the caller's thread. The first call starts the
thread, which sends the requests, uses the caches and runs token providers and listeners while the caller blocks; a lock
guards its start and its end, so that several threads may use one client. In the caller's thread an iterable of texts
is read, a list of models that is fresh in memory is returned, and the first chat with a provider imports its plugin
and calls the hook `provider_profile`. After a fork, a child reads the configuration again and starts with new objects.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.async_client import AsyncClient
from llmopt.client.loop_thread import LoopThread, register_exit_handler
from llmopt.client.options import CacheChoice, SharedChoice, TokenCounters
from llmopt.client.sync_streams import SyncChatStream, SyncEmbedStream
from llmopt.config.schema import Config
from llmopt.errors import ClientClosed, LLMOptError
from llmopt.operations.call_options import ChatOptions, EmbedOptions
from llmopt.operations.chat import Messages
from llmopt.operations.embed import check_texts_argument
from llmopt.operations.models import CacheMode
from llmopt.policies.clock import Clock
from llmopt.values.calls import ErrorMode, PartOrder, Priority, WhenOpen
from llmopt.values.catalog import Catalog
from llmopt.values.chat import ChatReply
from llmopt.values.embeddings import Embeddings
from llmopt.values.events import OnEvent

if TYPE_CHECKING:
    import httpx

    from llmopt.client.components import Components


class Client:
    """Sends embedding, chat and model-list requests to any number of providers.

    The arguments and methods are those of `llmopt.AsyncClient`, without ``await``. It may be used from several threads at
    once, and inside a running event loop. Use it in ``with``, or call `close`; a client that is never closed does not
    keep the interpreter from exiting. A forked child process may continue to use it, with connections of its own.
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
        shared: SharedChoice = None,
        clock: Clock | None = None,
        token_counter: TokenCounters | None = None,
    ) -> None:
        # The arguments are those of the asynchronous client; tests/client/test_parity.py checks that they agree.
        arguments = {name: value for name, value in locals().items() if name != "self"}

        def make() -> AsyncClient:
            return AsyncClient(**arguments)

        # Not a partial, whose repr would show the configuration.
        self._make: Final[Callable[[], AsyncClient]] = make
        # Made now and not at the first call, so that a wrong configuration is reported here.
        self._client: AsyncClient = make()
        self._thread: LoopThread | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._unregister_exit_handler = register_exit_handler(self._stop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The constructor may have raised before the attribute was set.
        thread = getattr(self, "_thread", None)
        if thread is not None and not self._closed and thread.pid == os.getpid():
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a client holds connections and cannot be pickled; make one in the other process")

    def close(self) -> None:
        """Cancel running calls, close all connections and end the thread.

        Calls that are still running, and later ones, raise `ClientClosed`.
        """
        self._stop(None)

    def _stop(self, timeout: float | None) -> None:
        # A forked child must not close the parent's connections, and must not wait for the lock: a thread of the
        # parent may have held it during the fork, and does not exist in the child.
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            thread, self._thread = self._thread, None
        # Outside the lock: closing waits for the loop's thread, whose callbacks may use the client.
        self._unregister_exit_handler()
        if thread is not None:
            thread.stop(self._client.aclose, timeout)

    def _running_thread(self) -> LoopThread:
        """The loop thread of this process, started by the first call."""
        if self._pid != os.getpid():
            self._reset_after_fork()
        with self._lock:
            if self._closed:
                raise ClientClosed("the client is closed; make a new one.")
            if self._thread is None:
                self._thread = LoopThread()
            return self._thread

    def _reset_after_fork(self) -> None:
        """In a forked child: start with new objects, and use none of the parent's, not even its lock."""
        self._lock = threading.Lock()
        self._client = self._make()
        self._thread = None
        self._pid = os.getpid()

    @property
    def _components(self) -> Components:
        return self._client._components  # noqa: SLF001 - both clients share this implementation

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
        priority: Priority = "interactive",
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Embeddings:
        """Embed texts; see `llmopt.AsyncClient.embed`. The iterable is read in the caller's thread."""
        thread = self._running_thread()
        check_texts_argument(texts)
        options = EmbedOptions(dimensions, input_type, deadline, errors, when_open, priority, extra, headers)
        return thread.run(self._components.embed(model, list(texts), options))

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
        priority: Priority = "bulk",
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        order: PartOrder = "input",
    ) -> SyncEmbedStream:
        """Embed an iterable of any length; see `llmopt.AsyncClient.embed_iter`.

        The iterable is read in the caller's thread, while the caller waits for the next part.

        Returns:
            An iterator of `EmbeddedPart`. Use it in ``with`` if the loop may be left early.
        """
        check_texts_argument(texts)
        options = EmbedOptions(dimensions, input_type, deadline, errors, when_open, priority, extra, headers)
        thread, components = self._running_thread(), self._components
        return SyncEmbedStream(
            thread, texts, lambda source: components.embed_stream(model, source, options, order)
        )

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
        priority: Priority = "interactive",
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ChatReply:
        """Send a conversation and wait for the complete reply; see `llmopt.AsyncClient.chat`."""
        options = ChatOptions.from_arguments(locals())
        thread = self._running_thread()
        return thread.run(self._components.chat_run(model, messages, options).send())

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
        priority: Priority = "interactive",
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        buffer_size: int = 100,
    ) -> SyncChatStream:
        """Send a conversation and receive the reply as a stream of events; see `llmopt.AsyncClient.stream`.

        Returns:
            An iterator of `llmopt.ChatEvent`; use it in ``with``.
        """
        options = ChatOptions.from_arguments(locals())
        thread = self._running_thread()
        return SyncChatStream(thread, self._components.chat_run(model, messages, options), buffer_size)

    def list_models(
        self,
        provider: str,
        *,
        deadline: float | None = None,
        cached: CacheMode = "auto",
        headers: Mapping[str, str] | None = None,
    ) -> Catalog:
        """List all models of one provider; see `llmopt.AsyncClient.list_models`."""
        thread = self._running_thread()
        if cached == "auto" and headers is None:
            # A fresh list in memory needs no switch to the loop's thread and back, which takes ten times as long.
            models = self._components.fresh_models(provider)
            if models is not None:
                return models
        return thread.run(self._components.list_models(provider, deadline, cached, headers))

    def batch_list_models(
        self,
        providers: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        cached: CacheMode = "auto",
    ) -> Mapping[str, Catalog | LLMOptError]:
        """List the models of many providers; see `llmopt.AsyncClient.batch_list_models`."""
        thread = self._running_thread()
        return thread.run(self._components.batch_list_models(providers, deadline, timeout, cached))

    def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Load the lists of models into the cache; see `llmopt.AsyncClient.warm`."""
        return self.batch_list_models(providers, deadline=deadline)

    def invalidate(self, provider: str | None = None) -> None:
        """Delete cached lists of models; see `llmopt.AsyncClient.invalidate`."""
        thread = self._running_thread()
        thread.run(self._components.invalidate(provider))

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges as plain values; see `llmopt.AsyncClient.stats`."""
        return self._client.stats()
