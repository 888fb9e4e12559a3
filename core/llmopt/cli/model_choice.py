"""Which models of a list are shown, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal, get_args

from attrs import frozen

from llmopt.values.catalog import Model, ModelKind

SortKey = Literal["id", "kind", "context", "dimensions", "price", "created", "shutdown"]
SORTS: Final = get_args(SortKey)


@frozen(kw_only=True)
class Choice:
    """What to show.

    Attributes:
        text: only models with this in their id, name or aliases, whatever the case.
        kind: only models of this kind.
        min_context: only models that are known to take so many tokens.
        sort: what to order them by, None for the order they come in.
        reverse: the other way round.
    """

    text: str | None = None
    kind: ModelKind | None = None
    min_context: int | None = None
    sort: SortKey | None = None
    reverse: bool = False

    def of(self, models: Iterable[Model]) -> list[Model]:
        """The models to show, in order."""
        chosen = [model for model in models if self._fits(model)]
        if self.sort is None:
            return chosen[::-1] if self.reverse else chosen
        key = _KEYS[self.sort]
        known = [model for model in chosen if key(model) is not None]
        unknown = [model for model in chosen if key(model) is None]
        # What is not known is neither the least nor the most.
        return [*sorted(known, key=key, reverse=self.reverse), *unknown]

    def _fits(self, model: Model) -> bool:
        if self.kind is not None and model.kind != self.kind:
            return False
        if self.min_context is not None and (model.context_length or 0) < self.min_context:
            return False
        return self.text is None or _mentions(model, self.text.casefold())


def _mentions(model: Model, text: str) -> bool:
    return any(text in each.casefold() for each in (model.id, model.name, *model.aliases))


def _price(model: Model) -> float | None:
    return (
        None if model.prices is None or model.prices.input is None else model.prices.input / model.prices.per
    )


_KEYS: Final[Mapping[str, Callable[[Model], Any]]] = {
    "id": lambda model: model.id.casefold(),
    "kind": lambda model: model.kind,
    "context": lambda model: model.context_length,
    "dimensions": lambda model: model.dimensions,
    "price": _price,
    "created": lambda model: model.created,
    "shutdown": lambda model: model.shutdown,
}
