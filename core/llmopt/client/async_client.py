"""The asynchronous client: one engine, its providers, its connections."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from llmopt.client.arguments import WhenOpen, check_arguments, with_flags
from llmopt.client.async_catalogs import AsyncCatalogs
from llmopt.client.async_chat import AsyncChat
from llmopt.client.cache_plan import CacheChoice, plan_of
from llmopt.config.load import load_config
from llmopt.config.tree import Config
from llmopt.errors import ConfigError, LLMOptError

if TYPE_CHECKING:
    import httpx

    from llmopt.client.parts import Parts
    from llmopt.operations.embed import ErrorMode
    from llmopt.operations.embed_stream import EmbedStream
    from llmopt.policies.clock import Clock
    from llmopt.values.embeddings import Embeddings
    from llmopt.values.events import OnEvent

_EACH_S: Final = 8.0
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
        check_arguments(transport=transport, plugins=plugins, on_event=on_event, flags=flags)
        loaded = load_config(config, environ=os.environ)
        if flags is not None:
            loaded = with_flags(loaded, flags)
        plan = plan_of(cache, loaded, own_transport=transport is not None)

        def make() -> Parts:
            from llmopt.client.parts import Parts

            return Parts(loaded, plan, transport=transport, plugins=plugins, on_event=on_event, clock=clock)

        self._make: Final = make
        self._made: dict[str, Parts] = {}

    @property
    def _parts(self) -> Parts:
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
        await self._parts.aclose()

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

        job = self._parts.embed_job(model, dimensions, input_type, deadline, extra, when_open)
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

        job = self._parts.embed_job(model, dimensions, input_type, deadline, extra, when_open)
        return EmbedStream(job, texts, errors=_mode(errors))

    def stats(self) -> Mapping[str, Any]:
        """Counters and gauges as plain values: for each provider in use, for each of its endpoints."""
        return self._parts.engine.stats()


def _mode(errors: ErrorMode) -> ErrorMode:
    if errors not in ("raise", "return"):
        raise _wrong("errors", "'raise' or 'return'")
    return errors


def _wrong(name: str, choices: str) -> LLMOptError:
    return ConfigError(f"{name} must be {choices}.")
