"""The asynchronous client: the public methods, their documentation, and the check of the client's arguments.

Making a client reads the configuration file and the environment, and opens nothing else. The first use of any method,
`stats` and `aclose` too, imports and makes the components (`llmopt.client.components`), on the caller's thread; the
first request imports the connection pool, or httpx for the user's transport.

The methods await the network and the cache through the components, which also run the plugins' hooks and the user's
transport, store, token providers and ``on_event``, most of it on the event loop of the call. Event loops in several
threads may use one client, without a lock: two may make components at once, and an atomic ``dict.setdefault`` gives
both the same. The clock is the user's, if one is given, else the system's.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.options import (
    CacheChoice,
    SharedChoice,
    TokenCounters,
    cache_options,
    check_client_arguments,
    load_wrappers,
    shared_options,
    with_flags,
)
from llmopt.config.load import load_config
from llmopt.config.schema import Config
from llmopt.errors import LLMOptError
from llmopt.operations.call_options import ChatOptions, EmbedOptions
from llmopt.values.calls import ErrorMode, PartOrder, Priority, WhenOpen
from llmopt.values.resources import local_errors

if TYPE_CHECKING:
    import httpx

    from llmopt.client.components import Components
    from llmopt.operations.chat import Messages
    from llmopt.operations.chat_stream import ChatStream
    from llmopt.operations.embed_stream import EmbedStream
    from llmopt.operations.models import CacheMode
    from llmopt.policies.clock import Clock
    from llmopt.values.catalog import Catalog
    from llmopt.values.chat import ChatReply
    from llmopt.values.embeddings import Embeddings
    from llmopt.values.events import OnEvent


class AsyncClient:
    """Sends embedding, chat and model-list requests to any number of providers.

    One client holds one connection pool, one rate limiter and one circuit breaker per endpoint, so an application should
    make one and share it. Use it in ``async with``, or call `aclose`. No connection is opened before the first call.

    Args:
        config: a mapping with the keys of ``llmopt.toml``, the path of such a file, or a `Config`. By default
            ``llmopt.toml`` is read from the current directory, else from the user's configuration directory. The
            values of a mapping override those of the file and of environment variables.
        transport: an httpx transport (`httpx.AsyncBaseTransport`) to use for every provider instead of llmopt's
            own connection pool.
        cache: what is cached, and where. None (default): lists of models, on disk in the user's cache directory.
            True: also vectors, there. A path: the same in that directory. "memory": both, in this process only. An
            object with the methods of `llmopt.CacheStore`: both, in that store. False: nothing.
        plugins: wrapper plugins, which are called around the hooks of every provider, and around those that the
            configuration's ``wrappers`` names.
        on_event: a function that is called with every event (`llmopt.values.events`), on the event loop; it must
            return quickly.
        flags: switches that override those of the configuration, such as ``{"retry": False}``.
        shared: the store through which processes with one key share their limits: a URL such as
            ``valkey://host:6379/0``, or an object with the methods of `llmopt.SharedState`. None (default): what the
            configuration's ``[shared]`` table names. False: nothing is shared.
        clock: source of time, for tests: `llmopt.testing.clock.SimulatedClock`.
        token_counter: a function that returns the number of tokens of a text, or a mapping of such functions by
            "provider/model". Without one llmopt estimates, and learns from the usage that responses report. It runs on
            the event loop, once for most texts, and is tried when the client is made.

    Raises:
        ConfigError: the configuration or an argument is invalid; the message names the key.
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
        check_client_arguments(
            transport=transport, plugins=plugins, on_event=on_event, flags=flags, token_counter=token_counter
        )
        # Now and not at the first call, so that a mistake is reported where the client is made.
        loaded = load_config(config, environ=os.environ)
        if flags is not None:
            loaded = with_flags(loaded, flags)
        if loaded.wrappers:
            plugins = [*load_wrappers(loaded.wrappers), *plugins]
        caching = cache_options(cache, loaded, custom_transport=transport is not None)
        sharing = shared_options(shared, loaded, os.environ)

        def make() -> Components:
            with local_errors("the client could not be started"):
                from llmopt.client.components import Components

                return Components(
                    loaded,
                    caching,
                    transport=transport,
                    plugins=plugins,
                    on_event=on_event,
                    clock=clock,
                    token_counter=token_counter,
                    shared=sharing,
                )

        self._make: Final = make
        self._made: dict[str, Components] = {}

    @property
    def _components(self) -> Components:
        # Most of llmopt is imported by the first use. Two threads may come here at once, and must get the same
        # object: dict.setdefault is atomic.
        return self._made.get("components") or self._made.setdefault("components", self._make())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a client holds connections and cannot be pickled; make one in the other process")

    async def aclose(self) -> None:
        """Cancel running calls, close all connections and finish pending cache writes.

        Calls that are still running, and later ones, raise `ClientClosed`.
        """
        await self._components.aclose()

    async def embed(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
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
        """Embed texts; row i of the result belongs to text i.

        Identical texts are sent once. The texts are split into batches by the provider's limits on items, tokens and
        bytes, and several batches are sent concurrently.

        Args:
            model: "provider/model", such as "openai/text-embedding-3-small".
            texts: an iterable, or asynchronous iterable, of non-empty str. An empty one gives a result of shape
                (0, 0) without a request.
            dimensions: length of the vectors, for models that can shorten them; None (default) for the model's own.
            input_type: what the texts are for, such as "query" or "document", for models that distinguish it.
            deadline: seconds for the whole call; None (default) for the provider's ``timeouts.total``, which is
                unlimited unless configured.
            errors: "raise" (default) raises when any text failed; "return" returns NaN rows for the failed texts,
                and their errors in ``errors``.
            when_open: what to do while the circuit of the provider is open: "fail" (default) or "wait".
            priority: "interactive" (default) or "bulk". Of the calls that have to wait, interactive ones are sent
                first; bulk calls keep at least a tenth of what the provider allows.
            extra: more keys for the request body, sent unchanged.
            headers: more headers for the requests of this call, as under ``headers`` in llmopt.toml. Calls that differ in
                them share no result, but for headers that only trace a call (docs/configuration.md).

        Returns:
            ``vectors`` as float32 of shape (number of texts, dimensions), ``usage``, ``model`` and ``errors``.

        Raises:
            InvalidInput: a text or an option is invalid; ``index`` is the position of the text. Nothing was sent.
            QueueFull: 10,000 calls wait for this provider and model already. Nothing was sent.
            PartialFailure: some texts failed; ``result`` holds all the others.
            LLMOptError: every text failed, all for this reason.
        """
        options = EmbedOptions(dimensions, input_type, deadline, errors, when_open, priority, extra, headers)
        return await self._components.embed(model, texts, options)

    def embed_iter(
        self,
        model: str,
        texts: Iterable[str] | AsyncIterable[str],
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
    ) -> EmbedStream:
        """Embed an iterable of any length in bounded memory.

        Args:
            model: "provider/model".
            texts: an iterable, or asynchronous iterable, of non-empty str; it may be infinite.
            dimensions: as for `embed`.
            input_type: as for `embed`.
            deadline: seconds for the whole iteration; the default is as for `embed`.
            errors: "raise" (default) ends the iteration at the first part with a failed text; "return" continues.
            when_open: as for `embed`, but "wait" is the default.
            priority: as for `embed`, but "bulk" is the default.
            extra: as for `embed`.
            headers: as for `embed`.
            order: "input" (default) yields the parts in the order of the texts; "completion" yields each as soon as it is
                there, and ``start`` tells its place. A slow request then holds up no other part.

        Returns:
            An asynchronous iterator of `EmbeddedPart`. Use it in ``async with`` if the loop may be left early, so
            that running requests are cancelled.

        Raises:
            InvalidInput: an option is invalid.

        Iterating raises what `embed` raises, after all parts before the error in the order of the texts, else at once.
        """
        options = EmbedOptions(dimensions, input_type, deadline, errors, when_open, priority, extra, headers)
        return self._components.embed_stream(model, texts, options, order)

    async def chat(
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
        """Send a conversation and wait for the complete reply.

        A parameter that is None (the default of each) is not sent, so the provider's default applies; the others are
        sent under the provider's name for them. A request whose connection broke after it was sent may have been
        executed, and is repeated at most once.

        Args:
            model: "provider/model", such as "mistral/mistral-small-latest".
            messages: the conversation, oldest message first: `llmopt.Message`, or mappings with "role" and "content"
                in the common dialect.
            max_tokens: maximum number of generated tokens, reasoning included.
            temperature: sampling temperature; 0 is the least random.
            top_p: nucleus sampling: the share of probability to choose from, 0 to 1.
            stop: a text, or several, at which generation ends.
            seed: for reproducible sampling, where the provider supports it.
            presence_penalty: penalty for tokens that already occurred, -2 to 2.
            frequency_penalty: penalty for tokens by how often they occurred, -2 to 2.
            tools: definitions of the tools that the model may call, in the common dialect.
            tool_choice: "auto", "none", "required", or a mapping that names a tool.
            parallel_tool_calls: whether one reply may call several tools.
            response_format: a mapping such as ``{"type": "json_object"}``, or one with a JSON schema.
            reasoning_effort: "none", "minimal", "low", "medium", "high" or another word that the provider defines.
            deadline: seconds for the whole call; None (default) for the provider's ``timeouts.total``, which is
                unlimited unless configured. Each attempt has a timeout of its own (``timeouts.chat``, 600 s).
            when_open: what to do while the circuit of the provider is open: "fail" (default) or "wait".
            priority: "interactive" (default) or "bulk", as for `embed`.
            extra: more keys for the request body, sent unchanged; they override all other parameters.
            headers: more headers for the requests of this call, as for `embed`.

        Returns:
            The reply: text, reasoning, refusal, tool calls, finish reason and usage.

        Raises:
            InvalidInput: a message or a parameter is invalid; ``index`` is the position of the message. Nothing was
                sent.
            QueueFull: 10,000 calls wait for this provider and model already. Nothing was sent.
            LLMOptError: there is no reply; the class says what the caller can do.
        """
        options = ChatOptions.from_arguments(locals())
        return await self._components.chat_run(model, messages, options).send()

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
    ) -> ChatStream:
        """Send a conversation and receive the reply as a stream of events.

        ::

            async with client.stream("openai/gpt-5-mini", messages) as reply:
                async for event in reply:
                    print(event.text, end="", flush=True)
            print(reply.usage)

        The arguments are those of `chat`, and ``buffer_size``: of the events that arrived together, how many are
        parsed at once, 1 to 10,000 (default 100). It does not delay anything and does not change the result.
        ``deadline`` bounds the whole stream.

        The request is sent on entering the block. A failure before the first event is retried like any other; after
        the first event nothing is repeated. If the first event takes longer than ``timeouts.first_event`` (60 s, 300 s
        with a ``reasoning_effort``) the attempt fails with `AttemptTimeout`; a longer silence later raises
        `StreamIdle`. docs/configuration.md has all timeouts.

        Returns:
            An asynchronous iterator of `llmopt.ChatEvent`. Its ``text``, ``reasoning``, ``tool_calls``, ``usage``,
            ``finish_reason`` and ``reply`` hold what was received so far. Use it in ``async with``, so that leaving
            the loop early ends the request.

        Raises:
            InvalidInput: a message or a parameter is invalid.

        Entering the block and iterating raise `StreamInterrupted` or `StreamIdle` if the stream breaks off, with what
        was received in ``text`` and ``partial``, and any `LLMOptError` that `chat` raises.
        """
        options = ChatOptions.from_arguments(locals())
        return self._components.chat_stream(model, messages, options, buffer_size)

    async def list_models(
        self,
        provider: str,
        *,
        deadline: float | None = None,
        cached: CacheMode = "auto",
        headers: Mapping[str, str] | None = None,
    ) -> Catalog:
        """List all models of one provider, in the provider's order.

        The list is cached for an hour (``cache_ttl``). For a day after that the cached list is returned at once, marked
        ``stale``, while a new one is requested in the background; and for a week if the provider cannot be reached.

        Args:
            provider: name of the provider entry.
            deadline: seconds for the whole call; None (default) for the provider's ``timeouts.total``, else 30.
            cached: "auto" (default) as described above; "refresh" always sends a request; "offline" never sends one
                and returns the cached list of any age.
            headers: more headers for the requests of this call. The list may depend on them, so that it is always
                requested, and not stored.

        Returns:
            A sequence of `Model`, with the age of the list and whether it is stale.

        Raises:
            NotCached: ``cached`` is "offline" and there is no cached list.
            LLMOptError: the provider gave no list, and none is cached.
        """
        return await self._components.list_models(provider, deadline, cached, headers)

    async def batch_list_models(
        self,
        providers: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        cached: CacheMode = "auto",
    ) -> Mapping[str, Catalog | LLMOptError]:
        """List the models of many providers, at most ten concurrently.

        A provider that failed less than five seconds ago, and has no cached list, is not asked again.

        Args:
            providers: names of provider entries; None (default) for all that are configured or have a key.
            deadline: seconds for the whole call; None (default) for unlimited.
            timeout: seconds for each provider, not counting the wait for its turn; None (default) for the provider's
                ``timeouts.total``, else 8.
            cached: as for `list_models`.

        Returns:
            For each provider its list of models, or its error.

        Raises:
            ConfigError: an argument is invalid.
        """
        return await self._components.batch_list_models(providers, deadline, timeout, cached)

    async def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Load the lists of models into the cache, at start-up.

        Args:
            providers: as for `batch_list_models`.
            deadline: as for `batch_list_models`.

        Returns:
            What `batch_list_models` returns.
        """
        return await self.batch_list_models(providers, deadline=deadline)

    async def invalidate(self, provider: str | None = None) -> None:
        """Delete cached lists of models, in memory and in the store.

        Args:
            provider: name of the provider entry; None (default) for all.
        """
        await self._components.invalidate(provider)

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges as plain values: for each provider in use, for each of its endpoints."""
        return self._components.engine.stats()
