"""The outcomes of batches, put together into one result in input order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from llmopt.errors import LLMOptError, PartialFailure
from llmopt.operations.embed_cache import Recalled
from llmopt.operations.embed_outcome import Outcome
from llmopt.operations.embed_recall import belong_together
from llmopt.values.embeddings import NO_USAGE, Embeddings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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

    def recall(self, recalled: Recalled) -> bool:
        """Put vectors that were kept where they belong; False, if they do not belong to those that came."""
        if recalled.vectors is None:
            return True
        came = self._vectors
        if came is not None and not belong_together(recalled, came, self._model, self._requested):
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
