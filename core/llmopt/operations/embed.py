"""Embedding a list of texts: validate, send identical texts once, cut, send, put back in order."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Literal

from llmopt.errors import LLMOptError
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
    distinct = list(dict.fromkeys(_without(faults, listed) if faults else listed))
    if distinct and len(distinct) == len(listed) and not job.keeps:
        await job.ask_limits()
        batch = job.cutter().full_from(distinct, 0)
        if batch is not None and len(batch.texts) == len(distinct):
            return _checked(_alone(await job.run(batch), distinct, job.model), errors)
    collected = Collector(distinct, job.model)
    await _collect(job, distinct, collected)
    return _checked(collected.result(listed, faults), errors)


def _without(faults: Mapping[int, LLMOptError], texts: list[str]) -> list[str]:
    return [text for row, text in enumerate(texts) if row not in faults]


def _alone(outcome: Outcome, texts: list[str], model: str) -> Embeddings:
    """The result of distinct texts that went in one batch, which needs no putting together where all went well."""
    if outcome.vectors is not None and not outcome.errors:
        return Embeddings(vectors=outcome.vectors, usage=outcome.usage, model=outcome.model or model)
    collected = Collector(texts, model)
    collected.take(outcome)
    return collected.result(texts, {})


async def _collect(job: EmbedJob, distinct: list[str], collected: Collector) -> None:
    """Take distinct texts from what is kept, and send the others."""
    recalled = await job.recall(distinct) if distinct and job.keeps else NOTHING_RECALLED
    if not recalled:
        await _send(job, distinct, collected)
        return
    known = set(recalled.at)
    missed = [at for at in range(len(distinct)) if at not in known]
    await _send(job, [distinct[at] for at in missed], collected, missed)
    if not collected.recall(recalled):
        # Another model answers to the name by now.
        await _send(job, [distinct[at] for at in recalled.at], collected, recalled.at)


def _checked(result: Embeddings, errors: ErrorMode) -> Embeddings:
    if result.errors and errors == "raise":
        raise failure_of(result)
    return result


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
