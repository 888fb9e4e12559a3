"""Mistral's list, which has a model once for each of its aliases."""

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
"""Capabilities that show the kind of a model that is not for chat; the first one counts."""
_INPUTS: Final = (("vision", "image"), ("audio", "audio"))
"""Capabilities of a chat model, and the inputs that it accepts besides text."""


def page_of(page: CatalogPage) -> CatalogPage:
    """Each model once, under the id that is its own name, with its other ids as aliases."""
    return evolve(page, models=tuple(_merged(cards) for cards in _families(page.models)))


def _families(models: Iterable[Model]) -> list[list[Model]]:
    """Group the cards of each model, in the order of the first card.

    Cards belong together when they share a name or one names the other as its alias; a list in which
    only one of the two says so is put right too.
    """
    families: list[list[Model]] = []
    family_of: dict[str, int] = {}
    for model in models:
        names = {model.id, *_listed(model), _text(model.raw.get("name")) or model.id}
        found = sorted({family_of[name] for name in names if name in family_of})
        own = found[0] if found else len(families)
        if not found:
            families.append([])
        for other in found[1:]:
            families[own] += families[other]
            families[other] = []
            family_of = {name: own if place == other else place for name, place in family_of.items()}
        families[own].append(model)
        family_of.update(dict.fromkeys(names, own))
    return [cards for cards in families if cards]


def _listed(model: Model) -> set[str]:
    aliases = model.raw.get("aliases")
    return {alias for alias in aliases if _text(alias)} if isinstance(aliases, list) else set()


def _merged(cards: list[Model]) -> Model:
    # The card whose name is its id is the model itself, all others are aliases of it.
    own = next((card for card in cards if card.raw.get("name") == card.id), cards[0])
    ids = {card.id for card in cards}.union(*map(_listed, cards))
    flags = own.raw.get("capabilities")
    can = flags if isinstance(flags, Mapping) else {}
    kind = _kind(can)
    return evolve(
        own,
        # There is no flag for embeddings; only the id shows them.
        kind=kind or own.kind,
        known=() if kind else own.known,
        inputs=("text", *(found for flag, found in _INPUTS if can.get(flag))) if kind == "chat" else (),
        outputs=("text",) if kind == "chat" else (),
        aliases=tuple(sorted(ids - {own.id})),
    )


def _kind(can: Mapping[str, Any]) -> ModelKind | None:
    if can.get("completion_chat"):
        return "chat"
    return next((kind for flag, kind in _KINDS if can.get(flag)), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
