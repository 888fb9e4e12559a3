"""One embedding call: what all its batches have in common, and how one batch is carried out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen

from llmopt.engine.engine import Engine
from llmopt.engine.request import Request
from llmopt.errors import ItemTooLong, LLMOptError
from llmopt.operations.check import in_input_order
from llmopt.operations.limits import merged, told_limits
from llmopt.operations.memory import ModelMemory
from llmopt.operations.plan import Batch, Cutter, surely_too_long
from llmopt.policies.deadline import Deadline
from llmopt.providers.provider import Provider
from llmopt.values.calls import EmbedCall
from llmopt.values.embeddings import EmbeddedRows, Usage
from llmopt.values.failure import Failure
from llmopt.values.http import HttpResponse
from llmopt.values.limits import BatchLimit
from llmopt.values.settings import Settings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ANSWER_BYTES_PER_NUMBER: Final = 24
_UNKNOWN_DIMENSIONS: Final = 4_096
_SLACK_BYTES: Final = 1 << 20
_MOST_BYTES: Final = 512 << 20


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


class EmbedJob:
    """One call of ``embed`` or ``embed_iter``: what its batches have in common.

    Args:
        engine: sends the requests.
        provider: whom to ask.
        call: the call's options, without texts.
        memory: what earlier calls learned of the model.
        deadline: of the whole call.
        wait_when_open: whether to wait while the provider is given a rest.
    """

    def __init__(
        self,
        engine: Engine,
        provider: Provider,
        call: EmbedCall,
        *,
        memory: ModelMemory,
        deadline: Deadline,
        wait_when_open: bool = False,
    ) -> None:
        self._engine: Final = engine
        self._provider: Final = provider
        self._call: Final = call
        self._memory: Final = memory
        self._estimator: Final = memory.estimator
        self._deadline: Final = deadline
        self._wait_when_open: Final = wait_when_open
        self._endpoint: Final = engine.endpoints(provider)[0]
        self._told = BatchLimit()
        self._fatal: LLMOptError | None = None
        self.model: Final = call.model

    @property
    def dimensions(self) -> int | None:
        """Length of a vector, as asked for or as first seen; None before either."""
        return self._call.dimensions or self._memory.length

    @property
    def width(self) -> int:
        """Requests under way at once."""
        return sum(endpoint.config.max_concurrency for endpoint in self._engine.endpoints(self._provider))

    async def ask_limits(self) -> None:
        """Ask the server for its limits, where it can be asked and was not yet. Before the first batch."""
        endpoints = self._engine.endpoints(self._provider)
        self._told = await told_limits(endpoints, self._provider.hooks, self._call, self._deadline)

    def limit(self) -> BatchLimit:
        """What fits into one request now."""
        limit = merged(self._provider.hooks.batch_limit(self._call, self._endpoint.bare), self._told)
        configured = self._endpoint.config.max_batch_size
        if configured is None:
            return limit
        return evolve(limit, max_items=min(configured, limit.max_items or configured))

    def cutter(self) -> Cutter:
        """Cuts texts into batches by the limit of the moment."""
        return Cutter(self.limit, self._estimator.estimate)

    async def run(self, batch: Batch) -> Outcome:
        """Embed one batch. Errors of the provider are in the outcome, never raised."""
        limit = self.limit()
        errors: dict[int, LLMOptError] = {}
        slots: dict[str, list[int]] = {}
        for row, text in enumerate(batch.texts):
            if surely_too_long(text, limit):
                errors[row] = self._too_long(text, limit)
            else:
                slots.setdefault(text, []).append(row)
        if not slots:
            return Outcome(batch=batch, errors=errors)
        try:
            rows = await self._request(tuple(slots))
        except LLMOptError as error:
            return Outcome(batch=batch, errors={**errors, **self._all_failed(slots, error)})
        vectors = rows.vectors
        if len(slots) < len(batch.texts):
            vectors = _spread(vectors, list(slots.values()), len(batch.texts))
        usage = evolve(rows.usage or Usage(), requests=1)
        return Outcome(batch=batch, vectors=vectors, errors=errors, usage=usage, model=rows.model)

    def _all_failed(self, slots: Mapping[str, list[int]], error: LLMOptError) -> dict[int, LLMOptError]:
        if self._fatal is None and not _passes(error):
            self._fatal = error
        return {row: error.copy() for rows in slots.values() for row in rows}

    def _too_long(self, text: str, limit: BatchLimit) -> ItemTooLong:
        most = f"{limit.max_item_tokens} tokens" if limit.max_item_tokens else f"{limit.max_bytes} bytes"
        return ItemTooLong(
            f"the text has {len(text)} characters, far more than the {most} that {self._call.model!r} takes; "
            "shorten it, or cut it into several texts.",
            provider=self._provider.name,
            model=self._call.model,
        )

    async def _request(self, texts: tuple[str, ...]) -> EmbeddedRows:
        if self._fatal is not None:
            raise self._fatal.copy()
        call = evolve(self._call, texts=texts)

        def parse(response: HttpResponse, settings: Settings) -> EmbeddedRows | Failure:
            found = self._provider.hooks.parse_embeddings(call, response, settings)
            if isinstance(found, Failure):
                return found
            ordered = in_input_order(found, len(texts), self.dimensions)
            return evolve(found, vectors=ordered, indices=None)

        rows = await self._engine.run(
            self._provider,
            Request(
                call=call,
                parse=parse,
                deadline=self._deadline,
                max_body=self._max_body(len(texts)),
                items=len(texts),
                tokens=sum(map(self._estimator.estimate, texts)),
                fill=self._fill(len(texts)),
                wait_when_open=self._wait_when_open,
                usage_of=_usage_of,
            ),
        )
        if self._call.dimensions is None:
            self._memory.length = int(rows.vectors.shape[1])
        if rows.usage is not None:
            self._estimator.learn(sum(map(self._estimator.estimate, texts)), rows.usage.prompt_tokens)
        return rows

    def _fill(self, items: int) -> float:
        """How much of a full batch so many texts are."""
        full = max(1, (self.limit().max_items or items) - 1)
        return min(1.0, (items - 1) / full)

    def _max_body(self, items: int) -> int:
        dimensions = self.dimensions or _UNKNOWN_DIMENSIONS
        size = _ANSWER_BYTES_PER_NUMBER * items * dimensions + _SLACK_BYTES
        return min(size, _MOST_BYTES)


def _usage_of(rows: EmbeddedRows) -> Usage | None:
    return rows.usage


def _passes(error: LLMOptError) -> bool:
    """Whether the next batch may fare better: true for what passes, and for what is one text's fault."""
    return error.retryable or type(error).__name__ in _ITEM_FAULTS


_ITEM_FAULTS: Final = frozenset(
    {"ItemTooLong", "ItemRejected", "ContentFiltered", "RequestTooLarge", "BadRequest", "DeadlineExceeded"}
)


def _spread(vectors: NDArray[np.float32], slots: list[list[int]], count: int) -> NDArray[np.float32]:
    """The rows of distinct texts, put wherever each text stood; NaN where none was sent."""
    import numpy as np

    spread = np.full((count, vectors.shape[1]), np.nan, dtype=np.float32)
    for row, places in zip(vectors, slots, strict=True):
        spread[places] = row
    return spread
