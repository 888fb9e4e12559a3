"""What one batch of texts came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from llmopt.errors import LLMOptError
from llmopt.operations.plan import Batch
from llmopt.operations.recover import Recovered
from llmopt.values.embeddings import NO_USAGE, Usage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
