"""Laying one configuration over another, key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from attrs import evolve, fields

from llmopt.config.tree import Config, EndpointEntry, ProviderEntry, TimeoutsEntry

_T = TypeVar("_T", Config, ProviderEntry, TimeoutsEntry)


def overlay_config(lower: Config, higher: Config) -> Config:
    """Both as one: ``higher`` wins wherever it says something."""
    entries = {
        name: overlay_entry(lower.providers[name], entry) if name in lower.providers else entry
        for name, entry in higher.providers.items()
    }
    rest = _overlay(evolve(lower, providers={}), evolve(higher, providers={}))
    return evolve(rest, providers={**lower.providers, **entries})


def overlay_entry(lower: ProviderEntry, higher: ProviderEntry) -> ProviderEntry:
    """One entry over the entry of the same name in a lower layer.

    A key belongs to the place that it was given for: where the higher layer sends the entry
    elsewhere, the lower layer's key, headers and leave to go unencrypted stay behind.
    """
    if _moves(lower, higher):
        lower = evolve(lower, api_key=None, api_key_env=None, headers={}, allow_http=None)
    if higher.base_url is not None:
        # An endpoint's own address would win over the one that the higher layer asks for.
        lower = evolve(lower, endpoints=())
    return _overlay(_without_key_beside(lower, higher), higher)


def overlay_endpoint(entry: ProviderEntry, endpoint: EndpointEntry) -> ProviderEntry:
    """The entry as it is for one of its endpoints: no ``endpoints``, and all else in one table."""
    shared = {each.name for each in fields(EndpointEntry)} - {"weight"}
    higher = ProviderEntry(name=entry.name, **{name: getattr(endpoint, name) for name in shared})
    return _overlay(evolve(_without_key_beside(entry, higher), endpoints=()), higher)


def _moves(lower: ProviderEntry, higher: ProviderEntry) -> bool:
    if higher.plugin is not None and higher.plugin != lower.plugin_name:
        return True
    base = higher.base_url or lower.base_url
    return not _places(higher, base) <= _places(lower, lower.base_url)


def _places(entry: ProviderEntry, base: str | None) -> set[str | None]:
    return {endpoint.base_url or base for endpoint in entry.endpoints} or {base}


def _without_key_beside(lower: ProviderEntry, higher: ProviderEntry) -> ProviderEntry:
    if higher.api_key is None and higher.api_key_env is None:
        return lower
    return evolve(lower, api_key=None, api_key_env=None)


def _overlay(lower: _T, higher: _T) -> _T:
    names = [each.name for each in fields(type(lower))]
    values: dict[str, Any] = {name: _value(getattr(lower, name), getattr(higher, name)) for name in names}
    return evolve(lower, **values)


def _value(lower: object, higher: object) -> object:
    if isinstance(lower, TimeoutsEntry) and isinstance(higher, TimeoutsEntry):
        return _overlay(lower, higher)
    if isinstance(lower, Mapping) and isinstance(higher, Mapping):
        return {**lower, **{key: _value(lower.get(key), item) for key, item in higher.items()}}
    # None and () say nothing, so they override nothing.
    return lower if higher is None or higher == () else higher
