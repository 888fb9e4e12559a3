"""A batch of texts, some of which were embedded before: those are not sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmopt.operations.embed_cache import Recalled, TextCache
from llmopt.operations.recover import Recovered
from llmopt.operations.shared import Work
from llmopt.values.embeddings import EmbeddedRows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def belong_together(recalled: Recalled, vectors: NDArray[np.float32], model: str | None, asked: str) -> bool:
    """Whether vectors that were kept and vectors that just came are of one model.

    Args:
        recalled: what was kept.
        vectors: what came, shape (n, dimensions).
        model: that answered, None where it does not say.
        asked: the model that was asked for.
    """
    assert recalled.vectors is not None  # noqa: S101 - whoever calls has looked
    return recalled.model == (model or asked) and recalled.vectors.shape[1] == vectors.shape[1]


async def with_recall(cache: TextCache, texts: Sequence[str], work: Work, asked: str) -> Recovered:
    """What can be had of distinct texts, from the cache where it can.

    Args:
        cache: of these texts.
        texts: the texts.
        work: embeds texts.
        asked: the model that is asked for.
    """
    recalled = await cache.recall(texts)
    if not recalled:
        return await work(tuple(texts))
    known = set(recalled.at)
    missed = [at for at in range(len(texts)) if at not in known]
    found = await _of(missed, texts, work) if missed else Recovered()
    strange = [
        rows for _, rows in found.rows if not belong_together(recalled, rows.vectors, rows.model, asked)
    ]
    if strange:
        # Another model answers to the name by now.
        found.add(await _of(recalled.at, texts, work))
    elif recalled.vectors is not None:
        rows = EmbeddedRows(vectors=recalled.vectors, model=recalled.model)
        found.add(Recovered(rows=[(recalled.at, rows)]))
    return found


async def _of(places: Sequence[int], texts: Sequence[str], work: Work) -> Recovered:
    recovered = await work(tuple(texts[at] for at in places))
    return recovered.moved(dict(enumerate(places)))
