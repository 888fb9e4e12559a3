"""Embedding a list of texts: validate, send identical texts once, cut, send, put back in order."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from typing import Any, Final, Literal

import msgspec

from llmopt.errors import InvalidInput, LLMOptError
from llmopt.operations.embed_batches import Batch, cut
from llmopt.operations.embed_cache import NO_CACHED_VECTORS
from llmopt.operations.embed_results import Collector, Outcome, failure_of
from llmopt.operations.embed_run import EmbedRun
from llmopt.policies.tasks import ordered_map
from llmopt.values.calls import EmbedCall
from llmopt.values.embeddings import Embeddings

# Which texts can be sent. Everything here happens before any I/O.

_MOST_DIMENSIONS: Final = 1_000_000


def text_error(text: object, index: int) -> InvalidInput | None:
    """Why a text cannot be sent, None when it can.

    The text itself never stands in the message.
    """
    if not isinstance(text, str):
        return InvalidInput(f"text {index} is of type {type(text).__name__}, not str.", index=index)
    if not text:
        return InvalidInput(f"text {index} is empty; leave it out, or put a placeholder.", index=index)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return InvalidInput(
                f"text {index} holds half of a surrogate pair at character {error.start}; it was cut or decoded "
                "wrongly. Read it with errors='replace', or repair it.",
                index=index,
            )
    return None


def check_texts_argument(texts: object) -> None:
    """Refuse what looks like a list of texts and is something else.

    Raises:
        InvalidInput: a single text, bytes, a mapping, or not iterable at all.
    """
    if isinstance(texts, (list, tuple)):
        return
    if isinstance(texts, (str, bytes, bytearray)):
        raise InvalidInput(f"the texts must be a list of str, not one {type(texts).__name__}; write [text].")
    if isinstance(texts, Mapping) or not isinstance(texts, (Iterable, AsyncIterable)):
        raise InvalidInput(f"the texts must be a list of str, not {type(texts).__name__}.")


def plain(text: str) -> str:
    """A text as ``str`` itself: subclasses (numpy's, enums, markup) say the same to a provider."""
    return text if type(text) is str or not isinstance(text, str) else str.__str__(text)


async def as_async(texts: Iterable[str] | AsyncIterable[str]) -> AsyncGenerator[str, None]:
    """Any iterable, as an asynchronous iterator of plain texts."""
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield plain(text)
    else:
        for text in texts:
            yield plain(text)


async def as_list(texts: Iterable[str] | AsyncIterable[str]) -> list[str]:
    """Any iterable, as a list of plain texts."""
    if not isinstance(texts, (list, tuple)) and isinstance(texts, AsyncIterable):
        return [plain(text) async for text in texts]
    listed = list(texts)
    return listed if _are_plain(listed) else [plain(text) for text in listed]


def text_errors(texts: list[str]) -> dict[int, LLMOptError]:
    """Why texts cannot be sent, by position; empty when all can."""
    # Three looks by C at all of them are quicker than one by Python at each.
    if _are_plain(texts) and "" not in texts and all(map(str.isascii, texts)):
        return {}
    found = ((row, text_error(text, row)) for row, text in enumerate(texts))
    return {row: fault for row, fault in found if fault is not None}


def _are_plain(texts: list[str]) -> bool:
    return set(map(type, texts)) == {str}


def embed_call(
    model: str, *, dimensions: int | None, input_type: str | None, extra: Mapping[str, Any] | None
) -> EmbedCall:
    """The options of an embedding call, checked.

    Raises:
        InvalidInput: an option has a value that no provider could take.
    """
    if dimensions is not None and (type(dimensions) is not int or not 0 < dimensions <= _MOST_DIMENSIONS):
        raise InvalidInput(f"dimensions must be a positive whole number, not {dimensions!r:.40}.")
    if input_type is not None and not (isinstance(input_type, str) and input_type):
        raise InvalidInput("input_type must be a word such as 'query' or 'document'.")
    return EmbedCall(model=model, dimensions=dimensions, input_type=input_type, extra=checked_extra(extra))


def checked_extra(extra: object) -> Mapping[str, Any]:
    """Further keys of a request's body.

    Raises:
        InvalidInput: they are no mapping, or hold something that JSON does not have.
    """
    if extra is None:
        return {}
    if not isinstance(extra, Mapping) or not all(isinstance(key, str) for key in extra):
        raise InvalidInput("extra must be a mapping from names to JSON values.")
    plain = dict(extra)
    try:
        msgspec.json.encode(plain)
    except (TypeError, ValueError, RecursionError):
        raise InvalidInput("extra holds something that JSON cannot express.") from None
    if _holds_nonfinite(plain):
        raise InvalidInput("extra holds a number that is not finite.")
    return plain


def _holds_nonfinite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_holds_nonfinite, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_holds_nonfinite, value))


ErrorMode = Literal["raise", "return"]
"""What to do with items that fail: raise them at the end, or return them beside the vectors."""


async def embed(job: EmbedRun, texts: Iterable[str] | AsyncIterable[str], *, errors: ErrorMode) -> Embeddings:
    """All texts at once. See ``AsyncClient.embed``."""
    check_texts_argument(texts)
    listed = await as_list(texts)
    faults = text_errors(listed)
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


async def _collect(job: EmbedRun, distinct: list[str], collected: Collector) -> None:
    """Take distinct texts from what is kept, and send the others."""
    recalled = await job.recall(distinct) if distinct and job.keeps else NO_CACHED_VECTORS
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
    job: EmbedRun, texts: list[str], collected: Collector, places: Sequence[int] | None = None
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
    results = ordered_map(_in_turn(batches), job.run, concurrency=width, lookahead=len(texts) + width)
    async with aclosing(results) as outcomes:
        async for outcome in outcomes:
            collected.take(outcome, places)


async def _in_turn(batches: Iterator[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch
