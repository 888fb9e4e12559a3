"""Mistral's list: the same model stands there once for each alias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import CatalogPage, Model
from llmopt.values.catalog import ModelKind

_KINDS: Final[tuple[tuple[str, ModelKind], ...]] = (
    ("ocr", "ocr"),
    ("moderation", "moderation"),
    ("audio_transcription", "audio"),
    ("audio", "audio"),
    ("completion_fim", "completion"),
)
"""Capabilities that tell what a model is for, when it is no chat model; the first one counts."""


def page_of(page: CatalogPage) -> CatalogPage:
    """Each model once, under the id that is its own name, with its other ids as aliases."""
    return evolve(page, models=tuple(_merged(cards) for cards in _families(page.models)))


def _families(models: Iterable[Model]) -> list[list[Model]]:
    """Cards of one model together, in the order of the first of each.

    Cards belong together when one names the id of another as its name or alias; a list in which only
    one of two cards names the other is put right too.
    """
    families: list[tuple[set[str], list[Model]]] = []
    for model in models:
        names = _names(model)
        same = [family for family in families if family[0] & names]
        cards = [card for family in same for card in family[1]] + [model]
        joined = (names.union(*(family[0] for family in same)), cards)
        place = families.index(same[0]) if same else len(families)
        families[place : place + bool(same)] = [joined]
        families = [family for family in families if family is joined or family not in same]
    return [cards for _, cards in families]


def _names(model: Model) -> set[str]:
    aliases = model.raw.get("aliases")
    listed = aliases if isinstance(aliases, list) else []
    return {name for name in (model.id, model.raw.get("name"), *listed) if isinstance(name, str) and name}


def _merged(cards: list[Model]) -> Model:
    # The card whose name is its id is the model itself, all others are aliases of it.
    own = next((card for card in cards if card.raw.get("name") == card.id), cards[0])
    names = set().union(*map(_names, cards))
    return evolve(
        own,
        name=_text(own.raw.get("description")) or "",
        kind=_kind(own.id, own.raw.get("capabilities")),
        context_length=_whole(own.raw.get("max_context_length")),
        aliases=tuple(sorted(names - {own.id})),
        deprecated=_text(own.raw.get("deprecation")),
    )


def _kind(model_id: str, capabilities: object) -> ModelKind:
    can = capabilities if isinstance(capabilities, Mapping) else {}
    if can.get("completion_chat"):
        return "chat"
    # There is no flag for embeddings.
    if "embed" in model_id:
        return "embedding"
    return next((kind for flag, kind in _KINDS if can.get(flag)), "unknown")


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
