"""Embedding an iterable of any length: bounded memory, results in the order of the texts or of their completion.

Requests and the cache go through `EmbedRun`, which is awaited. Batches are sent in tasks of their own on the event
loop, and the caller's iterable is read there too, a little ahead of the results. No clock. What calls share is in
`EmbedRun`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Final, Self

from attrs import frozen

from llmopt.errors import InvalidInput
from llmopt.operations.call_events import CallEvents
from llmopt.operations.embed import as_async, check_texts_argument, collect, text_error
from llmopt.operations.embed_batches import Batch
from llmopt.operations.embed_results import Collector, failure_of
from llmopt.operations.embed_run import EmbedRun
from llmopt.policies.tasks import concurrent_map, require_asyncio
from llmopt.values.calls import ErrorMode, PartOrder
from llmopt.values.embeddings import NO_USAGE, EmbeddedPart, Embeddings


class EmbedStream:
    """The parts of an embedding. Use it in ``async with``, so that leaving the loop early stops the work.

    Iterating yields `EmbeddedPart`. At most two parts for each concurrent request are in memory.

    Args:
        run: the call.
        texts: any iterable; read only as far as requests can be made.
        errors: "raise" raises at the first failed part, after all parts before it; "return" puts the errors
            into the parts.
        order: of the parts: that of the texts, or each when it is there.
    """

    def __init__(
        self,
        run: EmbedRun,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        errors: ErrorMode,
        order: PartOrder = "input",
    ) -> None:
        check_texts_argument(texts)
        self._run: Final = run
        self._errors: Final = errors
        self._in_order: Final = order == "input"
        self._texts: Final = texts
        self._parts: Final = self._embed_all()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EmbeddedPart:
        require_asyncio()
        # Here and not in the generator, which would leave the scope to the caller's other calls.
        with self._run.bound():
            return await anext(self._parts)

    async def aclose(self) -> None:
        """Stop the requests that are being sent, and reading the iterable, which stays the caller's to close."""
        await self._parts.aclose()

    async def _embed_all(self) -> AsyncGenerator[EmbeddedPart, None]:
        concurrency = self._run.max_concurrency
        results = concurrent_map(
            self._batches(),
            self._embed,
            concurrency=concurrency,
            lookahead=2 * concurrency,
            in_order=self._in_order,
        )
        events = CallEvents(self._run, self._run.clock, self._texts, stream=True)
        # Closed in this task, also when the caller leaves the loop early: it cancels the requests in flight.
        with events:
            async with aclosing(results):
                async for start, result in results:
                    if result.errors and self._errors == "raise":
                        raise failure_of(result, self._run.requests)
                    part = EmbeddedPart(
                        start=start,
                        vectors=result.vectors,
                        errors={start + row: error for row, error in result.errors.items()},
                        usage=result.usage,
                        model=result.model,
                    )
                    events.add(part)
                    yield part

    async def _batches(self) -> AsyncIterator[Batch | _Invalid]:
        """Batches. A text that cannot be sent ends the batch before it and comes alone.

        When the iterable raises, the texts before the exception are still sent.
        """
        await self._run.open_cache()
        if not self._run.limits_known:
            await self._run.fetch_limits()
        batcher: Final = self._run.batcher()
        source = _Source(self._texts)
        async with aclosing(aiter(source)) as texts:
            async for position, text in texts:
                error = text_error(text, position)
                if error is None:
                    if (batch := batcher.add(text)) is not None:
                        yield batch
                else:
                    if (batch := batcher.flush()) is not None:
                        yield batch
                    if self._errors == "raise":
                        raise error
                    # The next batch must start behind this text, or its vectors would move up by one.
                    batcher.skip()
                    yield _Invalid(start=position, error=error)
        if (batch := batcher.flush()) is not None:
            yield batch
        # Raised last: the texts before it were paid for and belong to the caller.
        if source.error is not None:
            raise source.error

    async def _embed(self, batch: Batch | _Invalid) -> tuple[int, Embeddings]:
        if isinstance(batch, _Invalid):
            return batch.start, self._failed(batch.error)
        # Within the batch only: memory stays bounded for an input of any length.
        distinct = tuple(dict.fromkeys(batch.texts))
        collector = Collector(distinct, self._run.model)
        await collect(self._run, distinct, collector, _send_one)
        return batch.start, collector.result(batch.texts, {})

    def _failed(self, error: InvalidInput) -> Embeddings:
        import numpy as np

        vectors = np.full((1, self._run.dimensions or 0), np.nan, dtype=np.float32)
        return Embeddings(vectors=vectors, usage=NO_USAGE, model=self._run.model, errors={0: error})


async def _send_one(
    run: EmbedRun, texts: Sequence[str], positions: Sequence[int], collector: Collector
) -> None:
    collector.add(await run.send(tuple(texts)), positions)


class _Source:
    """The caller's iterable, numbered. Its exception is kept until the texts before it are sent."""

    def __init__(self, texts: Iterable[str] | AsyncIterable[str]) -> None:
        self._texts: Final = texts
        self.error: Exception | None = None

    async def __aiter__(self) -> AsyncGenerator[tuple[int, str], None]:
        position = 0
        try:
            async with aclosing(as_async(self._texts)) as texts:
                async for text in texts:
                    yield position, text
                    position += 1
        except Exception as error:  # noqa: BLE001 - the caller's own, raised to the caller
            self.error = error


@frozen(kw_only=True)
class _Invalid:
    """A text that cannot be sent, at its position in the whole input."""

    start: int
    error: InvalidInput
