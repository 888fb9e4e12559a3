"""Mistral's list: the same model stands there once for each alias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import evolve

from llmopt import CatalogPage, Model
from llmopt.values.catalog import ModelKind


def page_of(page: CatalogPage) -> CatalogPage:
    """Each model once, under the id that is its own name, with its other ids as aliases."""
    groups: dict[frozenset[str], list[Model]] = {}
    for model in page.models:
        groups.setdefault(_family(model), []).append(model)
    return evolve(page, models=tuple(_merged(group) for group in groups.values()))


def _family(model: Model) -> frozenset[str]:
    aliases = model.raw.get("aliases")
    named = {alias for alias in aliases if isinstance(alias, str)} if isinstance(aliases, list) else set()
    return frozenset({model.id, *named})


def _merged(cards: list[Model]) -> Model:
    # The card whose name is its id is the model itself, all others are aliases of it.
    own = next((card for card in cards if card.raw.get("name") == card.id), cards[0])
    raw = own.raw
    return evolve(
        own,
        kind=_kind(own.id, raw.get("capabilities")),
        context_length=_whole(raw.get("max_context_length")),
        aliases=tuple(sorted(_family(own) - {own.id})),
        deprecated=_text(raw.get("deprecation")),
    )


def _kind(model_id: str, capabilities: object) -> ModelKind:
    can = capabilities if isinstance(capabilities, Mapping) else {}
    if can.get("completion_chat"):
        return "chat"
    # There is no flag for embeddings.
    if "embed" in model_id:
        return "embedding"
    for flag, kind in _KINDS:
        if can.get(flag):
            return kind
    return "unknown"


_KINDS: tuple[tuple[str, ModelKind], ...] = (
    ("ocr", "ocr"),
    ("moderation", "moderation"),
    ("audio_transcription", "audio"),
    ("audio", "audio"),
    ("completion_fim", "completion"),
)


def _whole(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
