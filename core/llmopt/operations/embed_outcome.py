"""What one batch of texts came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from attrs import field, frozen

from llmopt.errors import LLMOptError
from llmopt.operations.plan import Batch
from llmopt.operations.recover import Recovered
from llmopt.values.embeddings import Usage

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
    usage: Usage = field(factory=Usage)
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
    usage = Usage()
    for _, rows in recovered.rows:
        usage += rows.usage or Usage()
    return Outcome(
        batch=batch,
        vectors=_vectors(batch, slots, recovered),
        errors=errors,
        usage=Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            requests=recovered.requests,
        ),
        model=recovered.rows[0][1].model if recovered.rows else None,
    )


def _vectors(
    batch: Batch, slots: Sequence[Sequence[int]], recovered: Recovered
) -> NDArray[np.float32] | None:
    import numpy as np

    if not recovered.rows:
        return None
    first = recovered.rows[0][1].vectors
    if len(recovered.rows) == 1 and first.shape[0] == len(batch.texts) == len(slots):
        # The usual case: one answer for all, each text once, nothing to move.
        return first
    vectors = np.full((len(batch.texts), first.shape[1]), np.nan, dtype=np.float32)
    for part, rows in recovered.rows:
        for position, row in zip(part, rows.vectors, strict=True):
            vectors[slots[position]] = row
    return vectors
