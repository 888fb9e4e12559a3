"""Anthropic's list of models: pages by ``after_id``, capabilities, and dates as text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote

from attrs import evolve

from llmopt import CatalogCall, CatalogPage, Failure, HttpResponse, Model, ModelTable, Settings, compatible

KNOWN: Final = ModelTable("llmopt_plugin_anthropic", "known.json")
_PAGE: Final = 1000
"""Models in a page, the most that Anthropic allows: usually the whole list."""
_INPUTS: Final = (("image_input", "image"), ("pdf_input", "pdf"))
"""Capabilities that are inputs besides text."""


def path_of(call: CatalogCall) -> str:
    """The path of a page."""
    after = "" if call.cursor is None else f"&after_id={quote(call.cursor, safe='')}"
    return f"/models?limit={_PAGE}{after}"


def page_of(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """A page of models, with the prices that the plugin knows."""
    page = compatible.parse_catalog(response, settings.provider)
    if not isinstance(page, CatalogPage):
        return page
    return KNOWN.described_page(evolve(page, models=tuple(map(_described, page.models))))


def _described(model: Model) -> Model:
    """The model with what only Anthropic's keys say; every one is for chats, which the list does not say."""
    raw = model.raw
    can = raw.get("capabilities")
    most = raw.get("max_tokens")
    return evolve(
        model,
        kind="chat",
        known=("kind",),
        max_output_tokens=most if type(most) is int and most > 0 else None,
        inputs=_inputs(can) if isinstance(can, Mapping) else (),
        created=_moment(raw.get("created_at")),
        deprecated=_date(raw.get("deprecated_at")),
        shutdown=_date(raw.get("retires_at")),
    )


def _inputs(can: Mapping[str, Any]) -> tuple[str, ...]:
    return ("text", *(word for name, word in _INPUTS if _supported(can.get(name))))


def _supported(leaf: object) -> bool:
    # A capability that is not named is unknown, and no input.
    return isinstance(leaf, Mapping) and leaf.get("supported") is True


def _date(value: object) -> str | None:
    """The day of a moment in RFC 3339."""
    moment = _read(value)
    return None if moment is None else moment.date().isoformat()


def _moment(value: object) -> int | None:
    """Seconds since 1970."""
    moment = _read(value)
    return None if moment is None or moment.tzinfo is None else max(0, int(moment.timestamp()))


def _read(value: object) -> datetime | None:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
