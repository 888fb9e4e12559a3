"""Embedding a list of texts: validate, send identical texts once, cut, send, put back in order."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Literal

from llmopt.errors import LLMOptError
from llmopt.operations.collect import Collector, failure_of
from llmopt.operations.embed_job import EmbedJob
from llmopt.operations.flow import OrderedFlow
from llmopt.operations.inputs import as_list, fault_of, refuse_single
from llmopt.operations.plan import Batch, cut
from llmopt.values.embeddings import Embeddings

ErrorMode = Literal["raise", "return"]
"""What to do with items that fail: raise them at the end, or return them beside the vectors."""


async def embed(job: EmbedJob, texts: Iterable[str] | AsyncIterable[str], *, errors: ErrorMode) -> Embeddings:
    """All texts at once. See ``AsyncClient.embed``."""
    refuse_single(texts)
    listed = await as_list(texts)
    faults = _faults(listed)
    if faults and errors == "raise":
        raise next(iter(faults.values()))
    good = [text for row, text in enumerate(listed) if row not in faults] if faults else listed
    distinct = list(dict.fromkeys(good))
    if distinct:
        await job.ask_limits()
    batches = cut(distinct, job.cutter())
    collected = Collector(distinct, job.model)
    if distinct:
        width = job.width
        flow = OrderedFlow(_in_turn(batches), job.run, width=width, ahead=len(distinct) + width)
        async for outcome in flow:
            collected.take(outcome)
    result = collected.result(listed, faults)
    if result.errors and errors == "raise":
        raise failure_of(result)
    return result


def _faults(texts: list[str]) -> dict[int, LLMOptError]:
    found = ((row, fault_of(text, row)) for row, text in enumerate(texts))
    return {row: fault for row, fault in found if fault is not None}


async def _in_turn(batches: Iterator[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch
