"""Embedding a list of texts: validate, send identical texts once, cut, send, put back in order."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Literal

from llmopt.operations.collect import Collector, failure_of
from llmopt.operations.embed_cache import NOTHING_RECALLED
from llmopt.operations.embed_job import EmbedJob
from llmopt.operations.embed_outcome import Outcome
from llmopt.operations.flow import OrderedFlow
from llmopt.operations.inputs import as_list, faults_of, refuse_single
from llmopt.operations.plan import Batch, cut
from llmopt.values.embeddings import Embeddings

ErrorMode = Literal["raise", "return"]
"""What to do with items that fail: raise them at the end, or return them beside the vectors."""


async def embed(job: EmbedJob, texts: Iterable[str] | AsyncIterable[str], *, errors: ErrorMode) -> Embeddings:
    """All texts at once. See ``AsyncClient.embed``."""
    refuse_single(texts)
    listed = await as_list(texts)
    faults = faults_of(listed)
    if faults and errors == "raise":
        raise next(iter(faults.values()))
    good = [text for row, text in enumerate(listed) if row not in faults] if faults else listed
    distinct = list(dict.fromkeys(good))
    collected = Collector(distinct, job.model)
    if len(distinct) == len(listed) and not job.keeps and (outcome := await _in_one(job, distinct)):
        if outcome.vectors is not None and not outcome.errors:
            # The usual case of one request needs no putting together.
            return Embeddings(vectors=outcome.vectors, usage=outcome.usage, model=outcome.model or job.model)
        collected.take(outcome)
        return _checked(collected.result(listed, faults), errors)
    recalled = await job.recall(distinct) if distinct and job.keeps else NOTHING_RECALLED
    if not recalled:
        await _send(job, distinct, collected)
    else:
        known = set(recalled.at)
        missed = [at for at in range(len(distinct)) if at not in known]
        await _send(job, [distinct[at] for at in missed], collected, missed)
        if not collected.recall(recalled):
            # Another model answers to the name by now.
            await _send(job, [distinct[at] for at in recalled.at], collected, recalled.at)
    return _checked(collected.result(listed, faults), errors)


def _checked(result: Embeddings, errors: ErrorMode) -> Embeddings:
    if result.errors and errors == "raise":
        raise failure_of(result)
    return result


async def _in_one(job: EmbedJob, texts: list[str]) -> Outcome | None:
    """What distinct texts come to that fit into one request; None when they do not."""
    if not texts:
        return None
    await job.ask_limits()
    batch = job.cutter().full_from(texts, 0)
    return await job.run(batch) if batch is not None and len(batch.texts) == len(texts) else None


async def _send(
    job: EmbedJob, texts: list[str], collected: Collector, places: Sequence[int] | None = None
) -> None:
    """Have distinct texts embedded.

    Args:
        job: the call.
        texts: the texts.
        collected: takes the results.
        places: of these texts among all distinct ones; None when they are all of them.
    """
    if not texts:
        return
    await job.ask_limits()
    batches = cut(texts, job.cutter())
    width = job.width
    flow = OrderedFlow(_in_turn(batches), job.run, width=width, ahead=len(texts) + width)
    async with aclosing(aiter(flow)) as outcomes:
        async for outcome in outcomes:
            collected.take(outcome, places)


async def _in_turn(batches: Iterator[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch
