"""Embedding an iterable that may never end: bounded memory, results in order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable
from contextlib import aclosing
from typing import Final, Self

from attrs import frozen

from llmopt.errors import InvalidInput, LLMOptError
from llmopt.operations.embed import ErrorMode, as_async, check_texts_argument, text_error
from llmopt.operations.embed_batches import Batch, Batcher
from llmopt.operations.embed_results import failure_of
from llmopt.operations.embed_run import EmbedRun
from llmopt.policies.tasks import ordered_map
from llmopt.values.embeddings import EmbeddedPart, Embeddings


class EmbedStream:
    """The parts of an embedding, in order. Use it in ``async with`` to stop the work on leaving.

    Iterating yields `EmbeddedPart`. At most two parts for each request under way are held in memory.

    Args:
        job: the call.
        texts: any iterable; it is read as far as there is room for its texts.
        errors: "raise" ends with the first failed part, after all parts before it; "return" puts
            the errors into the parts.
    """

    def __init__(
        self, job: EmbedRun, texts: Iterable[str] | AsyncIterable[str], *, errors: ErrorMode
    ) -> None:
        check_texts_argument(texts)
        self._job: Final = job
        self._errors: Final = errors
        self._texts: Final = texts
        self._parts: Final = self._run()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EmbeddedPart:
        return await anext(self._parts)

    async def aclose(self) -> None:
        """Stop the work that is under way."""
        await self._parts.aclose()

    async def _run(self) -> AsyncGenerator[EmbeddedPart, None]:
        width = self._job.width
        results = ordered_map(self._pieces(), self._embed, concurrency=width, lookahead=2 * width)
        async with aclosing(results) as parts:
            async for part in parts:
                if part.errors and self._errors == "raise":
                    raise failure_of(_as_result(part))
                yield part

    async def _pieces(self) -> AsyncIterator[Batch | _Fault]:
        """Batches; an input that cannot be sent ends the batch before it and stands alone.

        When the iterable raises, what it gave before is still sent.
        """
        await self._job.recall(())
        await self._job.ask_limits()
        cutter: Final = self._job.cutter()
        source = _Source(self._texts)
        async with aclosing(aiter(source)) as texts:
            async for row, text in texts:
                fault = text_error(text, row)
                if fault is None:
                    if (batch := cutter.add(text)) is not None:
                        yield batch
                else:
                    async for piece in self._around(fault, cutter, row):
                        yield piece
        if (batch := cutter.flush()) is not None:
            yield batch
        if source.failure is not None:
            raise source.failure

    async def _around(self, fault: InvalidInput, cutter: Batcher, row: int) -> AsyncIterator[Batch | _Fault]:
        if (batch := cutter.flush()) is not None:
            yield batch
        if self._errors == "raise":
            raise fault
        cutter.skip()
        yield _Fault(start=row, error=fault)

    async def _embed(self, piece: Batch | _Fault) -> EmbeddedPart:
        import numpy as np

        if isinstance(piece, _Fault):
            nothing = np.full((1, self._job.dimensions or 0), np.nan, dtype=np.float32)
            return EmbeddedPart(
                start=piece.start, vectors=nothing, errors={piece.start: piece.error}, model=self._job.model
            )
        outcome = await self._job.run(piece, recall=True)
        vectors = outcome.vectors
        if vectors is None:
            vectors = np.empty((len(piece.texts), 0), dtype=np.float32)
        return EmbeddedPart(
            start=piece.start,
            vectors=vectors,
            errors={piece.start + row: error for row, error in outcome.errors.items()},
            usage=outcome.usage,
            model=outcome.model or self._job.model,
        )


class _Source:
    """The caller's iterable, numbered; its exception is kept until the texts before it are through."""

    def __init__(self, texts: Iterable[str] | AsyncIterable[str]) -> None:
        self._texts: Final = texts
        self.failure: Exception | None = None

    async def __aiter__(self) -> AsyncGenerator[tuple[int, str], None]:
        row = 0
        try:
            async with aclosing(as_async(self._texts)) as texts:
                async for text in texts:
                    yield row, text
                    row += 1
        except Exception as error:  # noqa: BLE001 - the caller's own, raised to the caller
            self.failure = error


@frozen(kw_only=True)
class _Fault:
    """An input that cannot be sent, at its place in the whole input."""

    start: int
    error: LLMOptError


def _as_result(part: EmbeddedPart) -> Embeddings:
    return Embeddings(
        vectors=part.vectors,
        usage=part.usage,
        model=part.model,
        errors={row - part.start: error for row, error in part.errors.items()},
    )
