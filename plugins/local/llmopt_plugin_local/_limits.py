"""Limits of one request: the known limits of each server, and the ones that it states itself.

| server | states |
|---|---|
| TEI | ``/info``: items and permits for a request, tokens for a text |
| vLLM | ``/v1/models``: ``max_model_len`` of each model |
| llama.cpp | ``/props``: the context; the physical batch, which is the limit of a text, is not stated |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import BatchLimit, EmbedCall, HttpRequest, HttpResponse, InvalidResponse, ModelTable, Settings
from llmopt_plugin_local._flavours import (
    INFINITY,
    LLAMACPP,
    OLLAMA,
    TEI,
    VLLM,
    common,
    flavour_of,
    native,
)
from llmopt_plugin_local._requests import get

MODELS: Final = ModelTable("llmopt_plugin_local")

_GUESSES: Final = ("max_items",)
"""Sizes that suit a server of that kind; how many texts this one takes is its operator's choice."""
_USUAL: Final = BatchLimit(max_items=32, guesses=_GUESSES)
"""A size that every server seen takes."""
_BY_FLAVOUR: Final[Mapping[str, BatchLimit]] = {
    # TEI's own default; with 16 requests in flight it uses up the 512 permits that a router has.
    TEI: BatchLimit(max_items=32, max_bytes=2_000_000, guesses=_GUESSES),
    # Infinity takes 2,048; vLLM has no limit. Both batch the texts of several requests themselves.
    INFINITY: BatchLimit(max_items=256, guesses=_GUESSES),
    VLLM: BatchLimit(max_items=256, guesses=_GUESSES),
}
_CUTTING: Final = (TEI, OLLAMA, VLLM)
"""Flavours whose requests say whether a text that is too long is cut."""


def limit_of(call: EmbedCall, settings: Settings) -> BatchLimit:
    """The limits of one request that are known without asking the server."""
    if not settings.base_url:
        return MODELS.limit(call.model)
    limit = _BY_FLAVOUR.get(flavour_of(settings), _USUAL)
    return evolve(limit, truncates=flavour_of(settings) in _CUTTING and _cuts(call, settings))


def _cuts(call: EmbedCall, settings: Settings) -> bool:
    # Whether texts are cut may differ by call, so it is not taken from the server's limits, which hold for all calls.
    return bool(call.extra.get("truncate", settings.options.get("truncate")))


def question_of(settings: Settings) -> HttpRequest | None:
    """The request that asks a server for its limits."""
    if not settings.base_url:
        return None
    flavour = flavour_of(settings)
    if flavour == TEI:
        return get(native(settings, "/info"), settings)
    if flavour == VLLM:
        return get(common(settings, "/models"), settings)
    return get(native(settings, "/props"), settings) if flavour == LLAMACPP else None


def told_by(call: EmbedCall, response: HttpResponse) -> BatchLimit:
    """Read the limits from a response; none if it has another shape."""
    try:
        value = response.json
    except InvalidResponse:
        return BatchLimit()
    if not isinstance(value, dict):
        return BatchLimit()
    if "max_client_batch_size" in value or "max_input_length" in value:
        return _of_info(value)
    if isinstance(value.get("data"), list):
        return BatchLimit(max_item_tokens=_length_of(value["data"], call.model))
    generation = value.get("default_generation_settings")
    return BatchLimit(max_item_tokens=_whole(generation, "n_ctx"))


def _of_info(info: Mapping[str, Any]) -> BatchLimit:
    # Each text of a batch takes a permit, without waiting: one with more texts than permits never passes.
    items = [_whole(info, "max_client_batch_size"), _whole(info, "max_concurrent_requests")]
    return BatchLimit(
        max_items=min((number for number in items if number), default=None),
        max_item_tokens=_whole(info, "max_input_length"),
    )


def _length_of(entries: list[Any], model: str) -> int | None:
    """The length of one model; of the only one there is, whatever it is called."""
    tables = [entry for entry in entries if isinstance(entry, Mapping)]
    named = [entry for entry in tables if entry.get("id") == model]
    chosen = named or (tables if len(tables) == 1 else [])
    return _whole(chosen[0], "max_model_len") if chosen else None


def _whole(table: object, key: str) -> int | None:
    value = table.get(key) if isinstance(table, Mapping) else None
    return value if type(value) is int and value > 0 else None
