"""Embedding a list of texts: check the texts and options, send each distinct text once, keep the order.

The checks do no I/O. `embed` first reads all of the caller's iterable, on the event loop, which a slow synchronous one
blocks. Then it awaits, through `EmbedRun`, the cache, perhaps a request for the server's limits, and the batches, each
in a task if there are several. An error of the provider belongs to the result of its batch and cancels nothing; it is
raised when all batches have ended. The caller's cancellation, and any other exception, cancels the batches in flight.
`EmbedRun` calls the plugin's hooks and shares state
with other calls; this file keeps nothing between calls, and reads no clock.
"""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from itertools import chain
from typing import Final

from llmopt.errors import InvalidInput, LLMOptError
from llmopt.operations.call_options import EmbedOptions, checked_extra
from llmopt.operations.embed_batches import Batch, make_batches
from llmopt.operations.embed_results import BatchResult, Collector, failure_of
from llmopt.operations.embed_run import EmbedRun
from llmopt.policies.tasks import concurrent_map
from llmopt.values.calls import EmbedCall, ErrorMode
from llmopt.values.embeddings import Embeddings

_MAX_DIMENSIONS: Final = 1_000_000


async def embed(run: EmbedRun, texts: Iterable[str] | AsyncIterable[str], *, errors: ErrorMode) -> Embeddings:
    """Embed all texts. See ``AsyncClient.embed``."""
    check_texts_argument(texts)
    # Lists first: isinstance() with an abstract class is slow.
    if isinstance(texts, (list, tuple)) or not isinstance(texts, AsyncIterable):
        given = list(texts)
    else:
        given = [text async for text in texts]
    listed, invalid = check_texts(given)
    if invalid and errors == "raise":
        raise next(iter(invalid.values()))
    valid = [text for at, text in enumerate(listed) if at not in invalid] if invalid else listed
    # A dict and not a set: it keeps the order, so that neighbouring texts share a batch.
    distinct = list(dict.fromkeys(valid))
    collector = Collector(distinct, run.model)
    if distinct and run.may_cache:
        await run.open_cache()
        await collect(run, distinct, collector, _send_batches)
    elif distinct:
        await _send_batches(run, distinct, range(len(distinct)), collector)
    result = collector.result(listed, invalid)
    if result.errors and errors == "raise":
        raise failure_of(result, run.requests)
    return result


Send = Callable[[EmbedRun, Sequence[str], Sequence[int], Collector], Awaitable[None]]
"""Requests the vectors of distinct texts, and adds them to a collector at the given positions."""


async def collect(run: EmbedRun, texts: Sequence[str], collector: Collector, send: Send) -> None:
    """Read the vectors of distinct texts from the cache, and request those that are missing."""
    cached = await run.read_cache(texts)
    if cached is None:
        await send(run, texts, range(len(texts)), collector)
        return
    positions, rows = cached
    hits = set(positions)
    missing = [at for at in range(len(texts)) if at not in hits]
    if missing:
        await send(run, [texts[at] for at in missing], missing, collector)
    # The model of the fresh rows is known only now, so they are added before the cached ones.
    if collector.accepts(rows):
        collector.add(BatchResult(rows=[(range(len(positions)), rows)]), positions)
    else:
        # By now another model answers to the name.
        await send(run, [texts[at] for at in positions], positions, collector)


async def _send_batches(
    run: EmbedRun, texts: Sequence[str], positions: Sequence[int], collector: Collector
) -> None:
    if not run.limits_known:
        await run.fetch_limits()
    batches = make_batches(texts, run.batcher())
    # One batch, the usual case, needs neither a task nor a queue.
    first = next(batches)
    if len(first.texts) == len(texts):
        collector.add(await run.send(first.texts), positions)
        return

    async def send(batch: Batch) -> tuple[Batch, BatchResult]:
        return batch, await run.send(batch.texts)

    concurrency = run.max_concurrency
    source = _as_async(chain([first], batches))
    # All results have a place already, so that nothing bounds how far ahead the batches are made.
    results = concurrent_map(source, send, concurrency=concurrency, lookahead=len(texts) + concurrency)
    # An error must cancel the other requests now, not when the garbage collector finds the generator.
    async with aclosing(results):
        async for batch, result in results:
            collector.add(result, positions[batch.start : batch.start + len(batch.texts)])


async def _as_async(batches: Iterator[Batch]) -> AsyncIterator[Batch]:
    for batch in batches:
        yield batch


# Which texts and options can be sent: checked before any I/O.


def check_texts_argument(texts: object) -> None:
    """Check that an argument is a list of texts, not something that only iterates like one.

    Raises:
        InvalidInput: it is a single text, bytes, a mapping, or not iterable at all.
    """
    if isinstance(texts, (list, tuple)):
        return
    if isinstance(texts, (str, bytes, bytearray)):
        raise InvalidInput(f"the texts must be a list of str, not one {type(texts).__name__}; write [text].")
    if isinstance(texts, Mapping) or not isinstance(texts, (Iterable, AsyncIterable)):
        raise InvalidInput(f"the texts must be a list of str, not {type(texts).__name__}.")


def check_texts(texts: list[str]) -> tuple[list[str], dict[int, LLMOptError]]:
    """All texts as plain `str`, and the errors of those that cannot be sent, by position."""
    if set(map(type, texts)) != {str}:
        texts = [plain(text) for text in texts]
    elif "" not in texts and all(map(str.isascii, texts)):
        # Three passes in C over all texts are faster than one in Python over each.
        return texts, {}
    errors = ((at, text_error(text, at)) for at, text in enumerate(texts))
    return texts, {at: error for at, error in errors if error is not None}


def text_error(text: object, index: int) -> InvalidInput | None:
    """Why a text cannot be sent; None if it can. The message never contains the text."""
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


def plain(text: str) -> str:
    """A text as ``str`` itself. Subclasses (of numpy, enums, markup) may print or encode as something else."""
    # `str(text)` would call the subclass's own ``__str__``.
    return text if type(text) is str or not isinstance(text, str) else str.__str__(text)


async def as_async(texts: Iterable[str] | AsyncIterable[str]) -> AsyncGenerator[str, None]:
    """Any iterable, as an asynchronous iterator of plain texts."""
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield plain(text)
    else:
        for text in texts:
            yield plain(text)


def embed_call(model: str, options: EmbedOptions) -> EmbedCall:
    """Check the options of an embedding call.

    Raises:
        InvalidInput: an option has a value that no provider accepts.
    """
    dimensions, input_type = options.dimensions, options.input_type
    # The type and not isinstance: True is an int, too.
    if dimensions is not None and (type(dimensions) is not int or not 0 < dimensions <= _MAX_DIMENSIONS):
        raise InvalidInput(f"dimensions must be a positive whole number, not {dimensions!r:.40}.")
    if input_type is not None and not (isinstance(input_type, str) and input_type):
        raise InvalidInput("input_type must be a word such as 'query' or 'document'.")
    extra = {} if options.extra is None else checked_extra(options.extra)
    return EmbedCall(model=model, dimensions=dimensions, input_type=input_type, extra=extra)
