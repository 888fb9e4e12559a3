"""A wrong answer must never become a shifted row: what every answer is held against."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from llmopt.errors import InvalidResponse, LLMOptError, PartialFailure
from llmopt.operations.embed_batches import Batch
from llmopt.operations.embed_cache import CachedVectors, same_model
from llmopt.operations.embed_recovery import Recovered
from llmopt.values.embeddings import NO_USAGE, EmbeddedRows, Embeddings, Usage, in_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
_FEW: Final = 8_192


def in_input_order(rows: EmbeddedRows, count: int, dimensions: int | None) -> NDArray[np.float32]:
    """The rows in the order of the texts.

    Args:
        rows: what the answer holds.
        count: texts in the request.
        dimensions: length a vector must have, None for any.

    Returns:
        float32, shape (count, d), C-contiguous.

    Raises:
        InvalidResponse: count, indices, type, length or finiteness are wrong; ``reason`` says which.
    """
    import numpy as np

    vectors = rows.vectors
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise _invalid(f"the plugin gave {vectors.dtype} vectors of {vectors.ndim} axes.", "type")
    if vectors.shape[0] != count:
        sent = "1 text was" if count == 1 else f"{count} texts were"
        raise _invalid(f"{sent} sent and {vectors.shape[0]} vectors came back.", "count")
    if vectors.shape[1] == 0:
        raise _invalid("the vectors of the answer are empty.", "dimensions")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise _invalid(
            f"the vectors of the answer have {vectors.shape[1]} numbers, expected {dimensions}.", "dimensions"
        )
    ordered = _ordered(vectors, rows.indices, count)
    if not _surely_finite(ordered):
        finite = np.isfinite(ordered)
        if not finite.all():
            bad = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise _invalid(f"vector {bad} of the answer holds a number that is not finite.", "non_finite")
    return np.ascontiguousarray(ordered)


def _surely_finite(vectors: NDArray[np.float32]) -> bool:
    """A quick look at few numbers: a sum of squares is finite only if all of them are."""
    import numpy as np

    if vectors.size > _FEW:
        return False
    flat = vectors.reshape(-1)
    return math.isfinite(np.vdot(flat, flat))


def _ordered(
    vectors: NDArray[np.float32], indices: NDArray[np.int64] | None, count: int
) -> NDArray[np.float32]:
    import numpy as np

    if indices is None:
        return vectors
    expected = in_order(count)
    if indices is expected:
        return vectors
    if indices.shape != (count,):
        raise _invalid(f"{count} texts were sent, {indices.size} indices came back.", "index")
    if np.array_equal(indices, expected):
        return vectors
    if not np.array_equal(np.sort(indices), expected):
        raise _invalid(f"the indices of the answer are not 0 to {count - 1}, each once.", "index")
    ordered = np.empty_like(vectors)
    ordered[indices] = vectors
    return ordered


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")


# What one batch of texts came to.


@frozen(kw_only=True, eq=False)
class Outcome:
    """What a batch came to: vectors for its texts in order, or the errors of those that failed.

    Attributes:
        batch: the batch.
        vectors: float32, shape (texts, d), a failed row is NaN; None when all failed.
        errors: by position in the batch.
        usage: what it cost.
        model: who answered, None when nobody did.
    """

    batch: Batch
    vectors: NDArray[np.float32] | None = field(default=None, repr=False)
    errors: Mapping[int, LLMOptError] = field(factory=dict)
    usage: Usage = NO_USAGE
    model: str | None = None


def assemble(
    batch: Batch,
    slots: Sequence[Sequence[int]],
    recovered: Recovered,
    hopeless: Mapping[int, LLMOptError],
) -> Outcome:
    """Put the answers of a batch back in order.

    Args:
        batch: the batch.
        slots: for each distinct text that was sent, the rows where it stands in the batch.
        recovered: answers and errors, by position among the distinct texts.
        hopeless: errors of texts that were not sent, by row.
    """
    errors = dict(hopeless)
    for position, error in recovered.errors.items():
        errors.update({row: error.copy() for row in slots[position]})
    return Outcome(
        batch=batch,
        vectors=_vectors(batch, slots, recovered),
        errors=errors,
        usage=_usage(recovered),
        model=recovered.rows[0][1].model if recovered.rows else None,
    )


def whole(batch: Batch, recovered: Recovered) -> Outcome | None:
    """The outcome of a batch of distinct texts that one answer had vectors for; None when it is another."""
    if recovered.errors or len(recovered.rows) != 1:
        return None
    part, rows = recovered.rows[0]
    # In another order when the texts were shared with a call that has them in another order.
    if part != tuple(range(len(batch.texts))):
        return None
    return Outcome(batch=batch, vectors=rows.vectors, usage=_usage(recovered), model=rows.model)


def _usage(recovered: Recovered) -> Usage:
    if len(recovered.rows) == 1:
        usage = recovered.rows[0][1].usage or NO_USAGE
    else:
        usage = sum((rows.usage or NO_USAGE for _, rows in recovered.rows), NO_USAGE)
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        requests=recovered.requests,
    )


def _vectors(
    batch: Batch, slots: Sequence[Sequence[int]], recovered: Recovered
) -> NDArray[np.float32] | None:
    import numpy as np

    if not recovered.rows:
        return None
    first = recovered.rows[0][1].vectors
    vectors = np.full((len(batch.texts), first.shape[1]), np.nan, dtype=np.float32)
    for part, rows in recovered.rows:
        for position, row in zip(part, rows.vectors, strict=True):
            vectors[slots[position]] = row
    return vectors


# The outcomes of batches, put together into one result in input order.


class Collector:
    """Puts the outcomes of distinct texts together into the result of all texts."""

    def __init__(self, distinct: list[str], model: str) -> None:
        self._distinct: Final = distinct
        self._vectors: NDArray[np.float32] | None = None
        self._blank: Final[list[slice | list[int]]] = []
        self._errors: Final[dict[int, LLMOptError]] = {}
        self._usage = NO_USAGE
        self._requested: Final = model
        self._model: str | None = None

    def take(self, outcome: Outcome, places: Sequence[int] | None = None) -> None:
        """Put one batch's rows and errors where they belong.

        Args:
            outcome: of the batch.
            places: of all texts that were cut into batches among the distinct ones; None when they are all.
        """
        start = outcome.batch.start
        end = start + len(outcome.batch.texts)
        self._usage += outcome.usage
        self._model = self._model or outcome.model
        for row, error in outcome.errors.items():
            self._errors[start + row if places is None else places[start + row]] = error
        rows = slice(start, end) if places is None else list(places[start:end])
        if outcome.vectors is None:
            self._blank.append(rows)
        elif self._vectors is None and places is None and len(outcome.vectors) == len(self._distinct):
            # One batch for all: its array is the result's.
            self._vectors = outcome.vectors
        else:
            self._space(outcome.vectors.shape[1])[rows] = outcome.vectors

    def recall(self, recalled: CachedVectors) -> bool:
        """Put vectors that were kept where they belong; False, if they do not belong to those that came."""
        if recalled.vectors is None:
            return True
        came = self._vectors
        if came is not None and not same_model(recalled, came, self._model, self._requested):
            return False
        self._model = self._model or recalled.model
        self._space(recalled.vectors.shape[1])[list(recalled.at)] = recalled.vectors
        return True

    def _space(self, dimensions: int) -> NDArray[np.float32]:
        import numpy as np

        if self._vectors is None:
            # Every row is written once, by `take`, by `recall` or in the end.
            self._vectors = np.empty((len(self._distinct), dimensions), dtype=np.float32)
        return self._vectors

    def result(self, texts: list[str], faults: Mapping[int, LLMOptError]) -> Embeddings:
        """The result for all texts, repeated ones and those that could not be sent among them."""
        import numpy as np

        vectors, errors = self._vectors, dict(self._errors)
        if vectors is None:
            vectors = np.empty((len(self._distinct), 0), dtype=np.float32)
        for rows in self._blank:
            vectors[rows] = np.nan
        if faults or len(self._distinct) < len(texts):
            vectors, errors = self._expand(vectors, texts, faults)
        return Embeddings(
            vectors=vectors,
            usage=self._usage,
            model=self._model or self._requested,
            errors=dict(sorted(errors.items())) if errors else {},
        )

    def _expand(
        self, vectors: NDArray[np.float32], texts: list[str], faults: Mapping[int, LLMOptError]
    ) -> tuple[NDArray[np.float32], dict[int, LLMOptError]]:
        import numpy as np

        place = {text: row for row, text in enumerate(self._distinct)}
        good = [row for row in range(len(texts)) if row not in faults]
        source = [place[texts[row]] for row in good]
        expanded = np.full((len(texts), vectors.shape[1]), np.nan, dtype=np.float32)
        expanded[good] = vectors[source]
        errors = dict(faults)
        for row, origin in zip(good, source, strict=True):
            if origin in self._errors:
                errors[row] = self._errors[origin].copy()
        return expanded, errors


def failure_of(result: Embeddings) -> LLMOptError:
    """The exception that a result with errors is raised as.

    One cause for everything is raised itself; else a `PartialFailure` that carries the result.
    """
    causes = {(type(error), error.message) for error in result.errors.values()}
    first = next(iter(result.errors.values()))
    if len(result.errors) == len(result) and len(causes) == 1:
        return first.copy()
    had = len(result) - len(result.errors)
    rest = f" The other {had} are in `result`." if had else ""
    return PartialFailure(
        f"{len(result.errors)} of {len(result)} texts could not be embedded; the first: "
        f"{first.message.rstrip('.')}.{rest}",
        result=result,
        provider=first.provider,
        model=first.model,
        endpoint=first.endpoint,
        sent=first.sent,
    )
