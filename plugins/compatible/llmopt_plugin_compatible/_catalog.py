"""Lists of models: the common dialect, and the provider's own keys that a row names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import CatalogPage, Failure, HttpResponse, Model, Prices, Settings, compatible
from llmopt_plugin_compatible._table import Reading, Row

_MAX_NUMBER: Final = 1e12
_MAX_PLAUSIBLE_PRICE: Final = 100_000.0
"""The highest price of a million tokens that is taken; a higher number is in another unit."""


def page_of(response: HttpResponse, settings: Settings, row: Row) -> CatalogPage | Failure:
    """The models of a response.

    Raises:
        InvalidResponse: the response has no list.
    """
    page = compatible.parse_catalog(response, settings.provider)
    reading = row.reading
    if reading is None or isinstance(page, Failure):
        return page
    return compatible.map_models(page, lambda model: _read(model, reading))


def _read(model: Model, reading: Reading) -> Model:
    raw = model.raw
    return evolve(
        model,
        context_length=_whole(_at(raw, reading.context_length)) or model.context_length,
        max_output_tokens=_whole(_at(raw, reading.max_output_tokens)) or model.max_output_tokens,
        inputs=_words(_at(raw, reading.inputs)) or model.inputs,
        outputs=_words(_at(raw, reading.outputs)) or model.outputs,
        prices=_prices(raw, reading) or model.prices,
    )


def _prices(raw: Mapping[str, Any], reading: Reading) -> Prices | None:
    sent, given, cached = (
        _price(_at(raw, path), reading.scale)
        for path in (reading.input, reading.output, reading.cached_input)
    )
    if sent is None and given is None:
        return None
    return Prices(input=sent, output=given, cached_input=cached, currency=reading.currency)


def _price(value: object, scale: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= _MAX_NUMBER:
        return None
    found = value * scale
    # Ten digits are more than any price has, and none of them is binary dust.
    return float(f"{found:.10g}") if found <= _MAX_PLAUSIBLE_PRICE else None


def _at(raw: Mapping[str, Any], path: str) -> Any:
    """The value at a path of keys, or None."""
    found: Any = raw if path else None
    for key in path.split("."):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _whole(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _words(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
