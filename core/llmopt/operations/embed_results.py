"""Results of embedding: check the vectors of a response, and build the `Embeddings` of a call.

A wrong response must never become a shifted row: number, order, length and finiteness of the vectors are
checked for every response before anything is done with it.

No I/O and no clock. numpy is imported at first use. A `Collector` belongs to one call; calls of one event
loop that wait for the same request share its `BatchResult`, without a lock, and each of the waiting takes a copy with
`BatchResult.moved`. One response for all texts is not copied here: its array, made by the plugin, becomes the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import define, evolve, field

from llmopt.errors import CircuitOpen, InvalidResponse, LLMOptError, LocalRejection, PartialFailure
from llmopt.values.embeddings import NO_USAGE, EmbeddedRows, Embeddings, Usage, in_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
_MAX_QUICK_CHECK: Final = 8_192
"""Up to this many numbers, one sum of squares is faster than checking each."""
Positions = tuple[int, ...] | range
"""Positions of texts in a batch. All texts in order are a `range`, which is compared without looking at each."""


def in_input_order(
    rows: EmbeddedRows, count: int, dimensions: int | None, *, requested: bool = False
) -> NDArray[np.float32]:
    """Check the vectors of a response, and put them in the order of the texts.

    Args:
        rows: what a plugin read from the response.
        count: number of texts in the request.
        dimensions: length that a vector must have, None for any.
        requested: whether the request asked for that length.

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
        raise _invalid(f"{sent} sent, but the response has {vectors.shape[0]} vectors.", "count")
    if vectors.shape[1] == 0:
        raise _invalid("the vectors of the response are empty.", "dimensions")
    if dimensions is not None and vectors.shape[1] != dimensions:
        raise _wrong_length(vectors.shape[1], dimensions, requested=requested)
    ordered = _ordered(vectors, rows.indices, count)
    if not _surely_finite(ordered):
        finite = np.isfinite(ordered)
        if not finite.all():
            bad = int(np.flatnonzero(~finite.all(axis=1))[0])
            raise _invalid(f"vector {bad} of the response holds a number that is not finite.", "non_finite")
    return np.ascontiguousarray(ordered)


def _ordered(
    vectors: NDArray[np.float32], indices: NDArray[np.int64] | None, count: int
) -> NDArray[np.float32]:
    import numpy as np

    if indices is None:
        return vectors
    expected = in_order(count)
    # `in_order` returns one shared array, so that identity proves the order without a comparison.
    if indices is expected:
        return vectors
    if indices.shape != (count,):
        raise _invalid(f"{count} texts were sent, {indices.size} indices came back.", "index")
    if np.array_equal(indices, expected):
        return vectors
    if not np.array_equal(np.sort(indices), expected):
        raise _invalid(f"the indices of the response are not 0 to {count - 1}, each once.", "index")
    ordered = np.empty_like(vectors)
    # One copy by index; sorting the rows would move them several times.
    ordered[indices] = vectors
    return ordered


def _surely_finite(vectors: NDArray[np.float32]) -> bool:
    import numpy as np

    if vectors.size > _MAX_QUICK_CHECK:
        return False
    # A sum of squares is finite only if every number is. The sum of large finite ones may overflow: no proof of a fault.
    flat = vectors.reshape(-1)
    return math.isfinite(np.vdot(flat, flat))


def _wrong_length(length: int, wanted: int, *, requested: bool) -> InvalidResponse:
    if requested:
        return _invalid(
            f"dimensions={wanted} was asked for, and the vectors of the response have {length} numbers: the server "
            f"or the model ignores `dimensions`. Leave it out, or shorten the vectors yourself if the model allows that.",
            "dimensions_ignored",
        )
    return _invalid(f"the vectors of the response have {length} numbers, expected {wanted}.", "dimensions")


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")


@define(kw_only=True, eq=False)
class BatchResult:
    """The result of a batch of distinct texts: for each of them a vector or an error.

    Attributes:
        rows: responses, each with the positions in the batch of the texts it has vectors for.
        errors: by position in the batch, for all other texts.
        requests: how many requests were answered with vectors.
    """

    rows: list[tuple[Positions, EmbeddedRows]] = field(factory=list)
    errors: dict[int, LLMOptError] = field(factory=dict)
    requests: int = 0

    @property
    def usage(self) -> Usage:
        """Tokens of all its responses, and the requests."""
        if len(self.rows) == 1:
            usage = self.rows[0][1].usage or NO_USAGE
        else:
            usage = sum((rows.usage or NO_USAGE for _, rows in self.rows), NO_USAGE)
        return Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            requests=self.requests,
        )

    @property
    def positions(self) -> set[int]:
        """The positions of the texts that have a vector."""
        return {at for part, _ in self.rows for at in part}

    def add(self, other: BatchResult) -> None:
        """Add the result of other texts of the same batch."""
        self.rows.extend(other.rows)
        self.errors.update(other.errors)
        self.requests += other.requests

    def moved(self, positions: Mapping[int, int]) -> BatchResult:
        """A copy for another batch: only the texts in ``positions``, which maps old positions to new ones."""
        rows = [_moved(part, each, positions) for part, each in self.rows]
        return BatchResult(
            rows=[(part, each) for part, each in rows if part],
            errors={positions[at]: error.copy() for at, error in self.errors.items() if at in positions},
            requests=self.requests,
        )


def _moved(
    part: Positions, rows: EmbeddedRows, positions: Mapping[int, int]
) -> tuple[Positions, EmbeddedRows]:
    chosen = [row for row, at in enumerate(part) if at in positions]
    moved = tuple(positions[part[row]] for row in chosen)
    if len(chosen) == len(part):
        # Copied, because each of the callers may write to its own array.
        return moved, evolve(rows, vectors=rows.vectors.copy())
    # The response also answers other texts: which part of the usage is for these texts is unknown.
    return moved, evolve(rows, vectors=rows.vectors[chosen], usage=None)


class Collector:
    """Builds the `Embeddings` of a call out of the results of its batches.

    Vectors are copied when they are added, except those of one response for all texts: beside the array of the whole
    result only the batches that are being sent are in memory.

    Args:
        texts: the distinct texts of the call.
        model: as requested.
    """

    def __init__(self, texts: Sequence[str], model: str) -> None:
        self._texts: Final = texts
        self._requested_model: Final = model
        self._vectors: NDArray[np.float32] | None = None
        self._errors: Final[dict[int, LLMOptError]] = {}
        self._usage = NO_USAGE
        self._model: str | None = None

    def add(self, result: BatchResult, positions: Sequence[int]) -> None:
        """Add the result of a batch.

        Args:
            result: of the batch.
            positions: for each text of the batch its position among the distinct texts.
        """
        usage = result.usage
        self._usage = usage if self._usage is NO_USAGE else self._usage + usage
        whole = range(len(positions))
        for part, rows in result.rows:
            self._model = self._model or rows.model
            self._write(positions if part == whole else [positions[at] for at in part], rows.vectors)
        for at, error in result.errors.items():
            self._errors[positions[at]] = error

    def accepts(self, cached: EmbeddedRows) -> bool:
        """Whether vectors from the cache are of the same model and length as those added before."""
        if self._vectors is None:
            return True
        return (
            cached.model == (self._model or self._requested_model)
            and cached.vectors.shape[1] == self._vectors.shape[1]
        )

    def result(self, texts: Sequence[str], invalid: Mapping[int, LLMOptError]) -> Embeddings:
        """The result for all texts.

        Args:
            texts: all texts of the call, in which distinct ones may be repeated.
            invalid: the errors of the texts that were not sent, by position among all.
        """
        import numpy as np

        vectors, errors = self._vectors, self._errors
        if vectors is None:
            # Every text failed: no response has told the length of a vector.
            vectors = np.empty((len(self._texts), 0), dtype=np.float32)
        if errors:
            # Not zeros: NaN cannot be mistaken for a vector in a search.
            vectors[list(errors)] = np.nan
        if invalid or len(self._texts) < len(texts):
            vectors, errors = self._expand(vectors, texts, invalid)
        return Embeddings(
            vectors=vectors,
            usage=self._usage,
            model=self._model or self._requested_model,
            errors=dict(sorted(errors.items())) if errors else {},
        )

    def _write(self, positions: Sequence[int], vectors: NDArray[np.float32]) -> None:
        import numpy as np

        count = len(self._texts)
        if self._vectors is None:
            if positions == range(count):
                # One response for all texts: its array is the result.
                self._vectors = vectors
                return
            # Every row is written once: here, or in `result` where its text failed.
            self._vectors = np.empty((count, vectors.shape[1]), dtype=np.float32)
        if isinstance(positions, range):
            self._vectors[positions.start : positions.stop] = vectors
        else:
            self._vectors[list(positions)] = vectors

    def _expand(
        self, vectors: NDArray[np.float32], texts: Sequence[str], invalid: Mapping[int, LLMOptError]
    ) -> tuple[NDArray[np.float32], dict[int, LLMOptError]]:
        import numpy as np

        position = {text: at for at, text in enumerate(self._texts)}
        valid = [row for row in range(len(texts)) if row not in invalid]
        source = [position[texts[row]] for row in valid]
        expanded = np.full((len(texts), vectors.shape[1]), np.nan, dtype=np.float32)
        expanded[valid] = vectors[source]
        errors = dict(invalid)
        for row, origin in zip(valid, source, strict=True):
            if origin in self._errors:
                errors[row] = self._errors[origin].copy()
        return expanded, errors


def failure_of(result: Embeddings, requests: int) -> LLMOptError:
    """The exception to raise for a result with errors.

    When all texts failed of one cause, that error; else a `PartialFailure` that carries the result. A text that was
    not sent because the circuit was open by then failed of what opened the circuit.

    Args:
        result: of the call.
        requests: HTTP requests that the call sent.
    """
    errors = list(result.errors.values())
    causes = {_identity(_cause(error)) for error in errors}
    first = next((each for each in errors if not isinstance(each, LocalRejection)), errors[0])
    if len(errors) == len(result) and len(causes) == 1:
        only = first.copy()
        if isinstance(only, CircuitOpen):
            # Of all batches: that of this text may have come when the circuit was open already.
            only.requests = requests
        return only
    succeeded = len(result) - len(errors)
    sent = "1 request was" if requests == 1 else f"{requests:,} requests were"
    rest = f" The other {succeeded} are in `result`." if succeeded else ""
    failure = PartialFailure(
        f"{len(errors)} of {len(result)} texts could not be embedded ({sent} sent); the first: "
        f"{first.message.rstrip('.')}.{rest}",
        result=result,
        failure=_cause(first),
        requests=requests,
        provider=first.provider,
        model=first.model,
        endpoint=first.endpoint,
        sent=first.sent,
    )
    failure.__cause__ = first.copy()
    return failure


def _cause(error: LLMOptError) -> LLMOptError:
    return error.failure or error if isinstance(error, CircuitOpen) else error


def _identity(cause: LLMOptError) -> tuple[type[LLMOptError], str]:
    # What does not fit is counted in the message, so that it differs with the size of a batch.
    return type(cause), cause.reason if isinstance(cause, InvalidResponse) else cause.message
