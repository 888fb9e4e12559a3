"""The asynchronous client: one engine, its providers, its connections."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.options import CacheChoice, WhenOpen, cache_options, check_client_arguments, with_flags
from llmopt.config.load import load_config
from llmopt.config.schema import Config
from llmopt.errors import ConfigError, LLMOptError

if TYPE_CHECKING:
    import httpx

    from llmopt.client.components import Components
    from llmopt.client.options import WhenOpen
    from llmopt.operations.chat import ChatOptions, Messages
    from llmopt.operations.chat_stream import ChatStream
    from llmopt.operations.embed import ErrorMode
    from llmopt.operations.embed_stream import EmbedStream
    from llmopt.operations.models import CacheMode
    from llmopt.policies.clock import Clock
    from llmopt.providers.registry import Provider
    from llmopt.values.catalog import Catalog
    from llmopt.values.chat import ChatReply
    from llmopt.values.embeddings import Embeddings
    from llmopt.values.events import OnEvent


# What the asynchronous client does with lists of models.

_EACH_S: Final = 8.0
"""Seconds for each of many lists of models: one that hangs must not hold up all others."""


class AsyncCatalogs:
    """The methods of `llmopt.AsyncClient` for lists of models."""

    @property
    def _components(self) -> Components:
        raise NotImplementedError

    async def list_models(
        self, provider: str, *, deadline: float | None = None, cached: CacheMode = "auto"
    ) -> Catalog:
        """All models of one provider, in its order.

        The list is kept for an hour. After that it is still given for a day, marked as ``stale``, while
        a new one is asked for beside the call; and for a week where no new one can be had.

        Args:
            provider: name of the entry.
            deadline: seconds for the whole call; by default what is configured, else 30.
            cached: "auto" as above; "refresh" asks the provider whatever is kept; "offline" asks nobody
                and gives what is kept, however old.

        Raises:
            NotCached: nothing is kept, and ``cached`` is "offline".
            LLMOptError: the provider could not be asked, and nothing is kept.
        """
        parts = self._components
        found = parts.registry.get(provider)
        bound = parts.catalog_deadline(found, deadline)
        return await parts.catalogs.list(found, deadline=bound, mode=_cached(cached))

    async def batch_list_models(
        self,
        providers: Iterable[str] | None = None,
        *,
        deadline: float | None = None,
        timeout: float | None = None,
        cached: CacheMode = "auto",
    ) -> Mapping[str, Catalog | LLMOptError]:
        """The models of many providers at once, at most ten asked at the same time.

        A provider that failed less than five seconds ago, and of which nothing is kept, is not asked again.

        Args:
            providers: names of entries; by default all that are configured or have a key.
            deadline: seconds for the whole call.
            timeout: seconds for each provider, from its turn on; by default what is configured, else 8.
            cached: as for `list_models`.

        Returns:
            For each provider its catalogue, or the error that is its alone.
        """
        from llmopt.policies.clock import valid_seconds

        parts = self._components
        names = parts.registry.names() if providers is None else _names(providers)
        if timeout is not None:
            valid_seconds(timeout, "timeout")

        def each(provider: Provider) -> float | None:
            return timeout if timeout is not None else provider.endpoints[0].timeouts.total or _EACH_S

        bound = parts.engine.deadline(deadline)
        return await parts.batch.run(names, deadline=bound, each=each, mode=_cached(cached))

    async def warm(
        self, providers: Iterable[str] | None = None, *, deadline: float | None = None
    ) -> Mapping[str, Catalog | LLMOptError]:
        """Have the lists of models at hand, at start-up: `batch_list_models`, for its effect."""
        return await self.batch_list_models(providers, deadline=deadline)

    async def invalidate(self, provider: str | None = None) -> None:
        """Let the kept list of models of a provider go, or all of them, here and in the store."""
        parts = self._components
        for name in parts.registry.names() if provider is None else (provider,):
            # So that its store is known, wherever it is configured to be.
            with suppress(LLMOptError):
                parts.caches.catalogs(parts.registry.get(name))
        await parts.catalogs.invalidate(provider)

    def _cached_models(self, provider: str) -> Catalog | None:
        """A list that can be given at once, from any thread; None where more must be done."""
        found = self._components.registry.get_created(provider)
        return None if found is None else self._components.catalogs.peek(found)


def _cached(mode: CacheMode) -> CacheMode:
    if mode not in ("auto", "refresh", "offline"):
        raise _wrong("cached", "'auto', 'refresh' or 'offline'")
    return mode


def _names(providers: Iterable[str]) -> Iterable[str]:
    if isinstance(providers, str):
        raise _wrong("providers", "a list of names, such as ['local']")
    return providers


def _wrong(name: str, choices: str) -> ConfigError:
    return ConfigError(f"{name} must be {choices}.")


# The chat methods of the asynchronous client.


class AsyncChat:
    """What `llmopt.AsyncClient` does with conversations."""

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
        extra: Mapping[str, Any] | None = None,
    ) -> ChatReply:
        """Ask for an answer, and wait for the whole of it.

        Parameters that are None are not sent, and the provider's own defaults hold. Each is given the name that the
        provider has for it. A request that broke off, and may have been carried out, is repeated once at most.

        Args:
            model: "provider/model".
            messages: the conversation, oldest first: mappings with "role" and "content" in the common
                dialect, or `llmopt.Message`.
            max_tokens: most tokens of the answer, reasoning among them.
            temperature: how freely to choose, 0 for hardly.
            top_p: the share of likely tokens to choose from, 0 to 1.
            stop: text or texts at which the answer ends.
            seed: asks for the same answer each time, where the provider can.
            presence_penalty: against tokens that occurred, -2 to 2.
            frequency_penalty: against tokens by how often they occurred, -2 to 2.
            tools: the tools that the model may call, in the common dialect.
            tool_choice: "auto", "none", "required", or a mapping that names a tool.
            parallel_tool_calls: whether several tools may be called at once.
            response_format: a mapping such as ``{"type": "json_object"}``, or one with a JSON schema.
            reasoning_effort: how long to think: "none", "minimal", "low", "medium", "high" or the provider's word.
            deadline: seconds for the whole call, None for no bound but the attempt's 600 s.
            when_open: whether to fail or to wait while the provider is given a rest.
            extra: further keys of the request's body, passed on as given; they win over all others.

        Returns:
            The answer: text, reasoning, tool calls, finish reason, usage.

        Raises:
            InvalidInput: a message or a parameter cannot be sent; ``index`` is a message's. Nothing was sent.
            LLMOptError: there is no answer; the kind says what to do.
        """
        parameters: ChatOptions = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "seed": seed,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "tools": tools,
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
            "reasoning_effort": reasoning_effort,
        }
        return await self._components.chat_job(model, messages, parameters, deadline, when_open, extra).ask()

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
    ) -> ChatStream:
        """Ask for an answer, and get it while it comes.

        ::

            async with client.stream("openai/gpt-5-mini", messages) as answer:
                async for event in answer:
                    print(event.text, end="", flush=True)
            print(answer.usage)

        The request is sent on entering the block. A failure before the first event is retried like any other; once an event
        was handed out nothing is repeated. A first event that does not come within 60 s (300 s with a
        ``reasoning_effort``) is an `AttemptTimeout`, silence later a `StreamIdle`; all bounds are the
        provider's ``timeouts``, see docs/configuration.md.

        Args:
            model: as for `chat`, and so all that follow.
            messages: the conversation.
            max_tokens: most tokens of the answer.
            temperature: how freely to choose.
            top_p: the share of likely tokens.
            stop: where the answer ends.
            seed: for the same answer.
            presence_penalty: against tokens that occurred.
            frequency_penalty: against tokens by how often.
            tools: what the model may call.
            tool_choice: which of them.
            parallel_tool_calls: whether several at once.
            response_format: form of the answer.
            reasoning_effort: how long to think.
            deadline: seconds for the whole stream, None for no bound.
            when_open: whether to fail or to wait while the provider is given a rest.
            extra: further keys of the body.
            buffer_size: of the events that have arrived together, most that are parsed together. Nothing
                waits for so many, and what comes out is the same for any number.

        Returns:
            An asynchronous iterator of `llmopt.ChatEvent`; its ``text``, ``reasoning``, ``tool_calls``,
            ``usage``, ``finish_reason`` and ``reply`` are the answer so far. To be used in ``async with``,
            so that leaving the loop early ends the request.

        Raises:
            InvalidInput: a message or a parameter cannot be sent.

        Entering and iterating raise `StreamInterrupted` or `StreamIdle` for an answer that breaks off, with
        what had come as ``text`` and ``partial``, and any `LLMOptError` when there is no answer.
        """
        parameters: ChatOptions = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "stop": stop,
            "seed": seed,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "tools": tools,
            "tool_choice": tool_choice,
            "parallel_tool_calls": parallel_tool_calls,
            "response_format": response_format,
            "reasoning_effort": reasoning_effort,
        }
        from llmopt.operations.chat import check_buffer_size
        from llmopt.operations.chat_stream import ChatSource, ChatStream

        size = check_buffer_size(buffer_size)
        job = self._components.chat_job(model, messages, parameters, deadline, when_open, extra)
        return ChatStream(ChatSource(job, buffer_size=size))

    @property
    def _components(self) -> Components:
        raise NotImplementedError


"""Seconds for each of many lists of models: one that hangs must not hold up all others."""


class AsyncClient(AsyncChat, AsyncCatalogs):
    """Asks any number of providers, with one set of connections.

    Use it in ``async with``, or call `aclose`. Making one opens nothing and imports little.

    Args:
        config: a mapping as in ``llmopt.toml``, the path of such a file, or a `Config`; by default
            ``llmopt.toml`` here or in the user's configuration folder. A mapping is laid over the
            file and the environment.
        transport: an httpx transport to use for every provider, instead of llmopt's own pool.
        cache: what is kept, and where. By default lists of models are, on disk in the user's cache
            folder. True keeps the vectors of texts there as well; a path does the same in that
            folder, "memory" in this process alone, an object with the methods of
            `llmopt.CacheStore` wherever it likes; False keeps nothing.
        plugins: wrapper plugins, called around every provider's hooks.
        on_event: a function that gets every event (`llmopt.values.events`), on the event loop.
        flags: switches over those of the configuration, such as ``{"retry": False}``.
        clock: the time, for tests: `llmopt.testing.clock.SimulatedClock`.

    Raises:
        ConfigError: the configuration cannot be used; the message names the key.
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
        check_client_arguments(transport=transport, plugins=plugins, on_event=on_event, flags=flags)
        loaded = load_config(config, environ=os.environ)
        if flags is not None:
            loaded = with_flags(loaded, flags)
        plan = cache_options(cache, loaded, own_transport=transport is not None)

        def make() -> Components:
            from llmopt.client.components import Components

            return Components(
                loaded, plan, transport=transport, plugins=plugins, on_event=on_event, clock=clock
            )

        self._make: Final = make
        self._made: dict[str, Components] = {}

    @property
    def _components(self) -> Components:
        # Most of llmopt is imported here. Two threads that come at once must get the same: setdefault sees to that.
        return self._made.get("parts") or self._made.setdefault("parts", self._make())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a client holds connections and cannot be pickled; make one in the other process")

    async def aclose(self) -> None:
        """Close all connections, and write what the cache has still to write. Calls made later raise `ClientClosed`."""
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
        extra: Mapping[str, Any] | None = None,
    ) -> Embeddings:
        """Embed texts: row i of the result is text i.

        Identical texts are sent once. The texts are cut into as many requests as the provider's
        limits on items, tokens and bytes demand, and several are under way at once.

        Args:
            model: "provider/model".
            texts: any iterable of non-empty str; an empty one gives shape (0, 0) without a request.
            dimensions: length of the vectors, for models that can shorten them.
            input_type: what the texts are for, such as "query" or "document".
            deadline: seconds for the whole call, None for no bound.
            errors: "raise" raises when any text failed; "return" gives NaN rows and their errors.
            when_open: whether to fail or to wait while the provider is given a rest.
            extra: further keys of the request's body, passed on as given.

        Returns:
            float32 vectors of shape (number of texts, dimensions), the usage, and the errors.

        Raises:
            InvalidInput: a text cannot be sent; ``index`` says which. Nothing was sent.
            PartialFailure: some texts failed; ``result`` has all the others.
            LLMOptError: every text failed for this one reason.
        """
        from llmopt.operations.embed import embed

        job = self._components.embed_run(model, dimensions, input_type, deadline, extra, when_open)
        return await embed(job, texts, errors=_mode(errors))

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
        extra: Mapping[str, Any] | None = None,
    ) -> EmbedStream:
        """Embed an iterable of any length, in order, in bounded memory.

        Args:
            model: "provider/model".
            texts: any iterable of non-empty str, one that never ends among them.
            dimensions: as for `embed`.
            input_type: as for `embed`.
            deadline: seconds for the whole iteration, None for no bound.
            errors: "raise" ends with the first part that has a failed text; "return" goes on.
            when_open: as for `embed`; waiting is the default here.
            extra: as for `embed`.

        Returns:
            An asynchronous iterator of `EmbeddedPart`, to be used in ``async with`` where the loop
            may be left early. Before an error is raised, all parts before it come.
        """
        from llmopt.operations.embed_stream import EmbedStream

        job = self._components.embed_run(model, dimensions, input_type, deadline, extra, when_open)
        return EmbedStream(job, texts, errors=_mode(errors))

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges as plain values: for each provider in use, for each of its endpoints."""
        return self._components.engine.stats()


def _mode(errors: ErrorMode) -> ErrorMode:
    if errors not in ("raise", "return"):
        raise _wrong("errors", "'raise' or 'return'")
    return errors
