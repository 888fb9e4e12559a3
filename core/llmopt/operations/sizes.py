"""What was learned of how much fits into one request to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from attrs import evolve, frozen

from llmopt.policies.batch_size import BatchSize
from llmopt.values.limits import BatchLimit

_MOST_ITEMS: Final = 4_096
_MOST_TOKENS: Final = 10_000_000
_SAFE_SHARE: Final = 0.95
"""Of a limit in tokens that the server states: its count and our estimate differ a little."""


@frozen(kw_only=True)
class LearnedSize:
    """What one refusal taught: the name of the limit, what it is taken for now, and who says so."""

    limit: Literal["max_items", "max_tokens"]
    value: int
    source: Literal["stated", "observed"]


class LearnedSizes:
    """Sizes in items and in tokens for one model, and how to keep them for the next process.

    Args:
        limit: the declared limit.
        wall: the calendar's clock.
        state: what `state` once returned, None for nothing.
        keep: called with the new state whenever something worth keeping was learned.
    """

    def __init__(
        self,
        limit: BatchLimit,
        *,
        wall: Callable[[], float],
        state: Mapping[str, Any] | None,
        keep: Callable[[Mapping[str, Any]], None],
    ) -> None:
        saved = state if isinstance(state, Mapping) else {}
        self._items: Final = BatchSize(
            limit.max_items or _MOST_ITEMS, wall=wall, state=_table(saved.get("items"))
        )
        self._tokens: Final = BatchSize(
            limit.max_tokens or _MOST_TOKENS, wall=wall, state=_table(saved.get("tokens"))
        )
        self._keep: Final = keep
        self._kept = self._changes
        self._applied: tuple[BatchLimit, int, BatchLimit] | None = None

    @property
    def _changes(self) -> int:
        return self._items.changes + self._tokens.changes

    def apply(self, limit: BatchLimit) -> BatchLimit:
        """A declared limit, lowered to what was learned."""
        # Asked several times for each batch, and next to always the same.
        applied, changes = self._applied, self._items.changes + self._tokens.changes
        if applied is None or applied[0] is not limit or applied[1] != changes:
            lowered = evolve(
                limit,
                max_items=min(limit.max_items or _MOST_ITEMS, self._items.size),
                max_tokens=min(limit.max_tokens or _MOST_TOKENS, self._tokens.size),
            )
            self._applied = applied = (limit, changes, lowered)
        return applied[2]

    def clean(self, items: int, tokens: int) -> None:
        """A batch came through."""
        self._items.clean(items)
        self._tokens.clean(tokens)
        self._save()

    def refused(self, items: int, tokens: int, stated: BatchLimit | None) -> LearnedSize | None:
        """A batch was too large; what that taught. A limit that the server states is taken at once."""
        if stated is not None and stated.max_tokens is not None:
            news = self._tokens.refused(tokens, stated=max(1, int(stated.max_tokens * _SAFE_SHARE)))
            found = LearnedSize(limit="max_tokens", value=self._tokens.size, source="stated")
        else:
            most = None if stated is None else stated.max_items
            news = self._items.refused(items, stated=most)
            source: Literal["stated", "observed"] = "stated" if self._items.size == most else "observed"
            found = LearnedSize(limit="max_items", value=self._items.size, source=source)
        self._save()
        return found if news else None

    def timed_out(self, items: int) -> LearnedSize | None:
        """A batch got no answer in time; the size of the next ones if they will be smaller for it."""
        smaller = self._items.timed_out(items)
        self._save()
        if not smaller:
            return None
        return LearnedSize(limit="max_items", value=self._items.size, source="observed")

    def state(self) -> dict[str, Any]:
        """What was learned, as plain values."""
        return {"items": self._items.state(), "tokens": self._tokens.state()}

    def _save(self) -> None:
        if self._changes != self._kept:
            self._kept = self._changes
            self._keep(self.state())


def _table(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None
