"""From a plain table to a `Config`, with the path of every key that is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from attrs import fields

from llmopt.config.faults import KeyFault, child, got, unknown_key
from llmopt.config.tree import Config, EndpointEntry, ProviderEntry, TimeoutsEntry
from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from cattrs import Converter

_ENTRIES: Final = Mapping[str, ProviderEntry]
_ENDPOINTS: Final = tuple[EndpointEntry, ...]
_TABLES: Final = (Config, ProviderEntry, EndpointEntry, TimeoutsEntry)
_NOT_KEYS: Final = frozenset({"name", "options"})
_MOST_SHOWN: Final = 8


def known_keys(kind: type) -> frozenset[str]:
    """The keys that a table of this kind may hold, besides a plugin's own."""
    return frozenset(each.name for each in fields(kind)) - _NOT_KEYS


def structure(table: Mapping[str, Any], label: str = "") -> Config:
    """The configuration that a table holds.

    Args:
        table: as a TOML file gives it, or the ``config`` argument of a client.
        label: where it came from, for messages.

    Raises:
        ConfigError: keys are unknown or values are wrong; the message names each by its path.
    """
    found = _attempt(table)
    # So that a traceback that shows local variables shows no key.
    del table
    if isinstance(found, Config):
        return found
    if label:
        found = [f"{label}: {fault}" for fault in found]
    if len(found) > _MOST_SHOWN:
        found[_MOST_SHOWN:] = [f"and {len(found) - _MOST_SHOWN} more."]
    raise ConfigError("\n".join(found))


def _attempt(table: Mapping[str, Any]) -> Config | list[str]:
    from cattrs import BaseValidationError

    try:
        return _converter().structure(table, Config)
    except (BaseValidationError, KeyFault) as error:
        return list(_faults(error, ""))


def _faults(error: Exception, path: str) -> Iterator[str]:
    from cattrs import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ClassValidationError):
        named, bare = error.group_exceptions()
        for fault, note in named:
            yield from _faults(fault, child(path, note.name))
        for fault in bare:
            yield from _faults(fault, path)
    elif isinstance(error, IterableValidationError):
        for fault, place in error.group_exceptions()[0]:
            yield from _faults(fault, child(path, place.index))
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield f"{child(path, key)}: {unknown_key(key, known_keys(error.cl))}"
    elif isinstance(error, KeyFault):
        yield _sentence(path, error)
    else:
        # A mapping or a key that is no ordinary one and fails when it is read.
        yield f"{path or 'the configuration'}: cannot be read ({type(error).__name__})."


def _sentence(path: str, fault: KeyFault) -> str:
    key = ".".join(part for part in (path, fault.key) if part)
    return f"{key or 'the configuration'}: {fault.text}"


@cache
def _converter() -> Converter:
    """The one converter; made when first used, because importing cattrs takes time."""
    from cattrs import Converter
    from cattrs.cols import homogenous_tuple_structure_factory, mapping_structure_factory

    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    shapes = (*_TABLES, _ENTRIES, _ENDPOINTS)
    # Values that are no tables of the tree check themselves, see `llmopt.config.fields`.
    converter.register_structure_hook_func(lambda kind: kind not in shapes, lambda value, _: value)
    converter.register_structure_hook_factory(lambda kind: kind in _TABLES, _table_hook)
    converter.register_structure_hook_factory(
        lambda kind: kind == _ENTRIES,
        lambda kind, made: _only(Mapping, "a table", mapping_structure_factory(kind, made, dict)),
    )
    converter.register_structure_hook_factory(
        lambda kind: kind == _ENDPOINTS,
        lambda kind, made: _only((list, tuple), "a list", homogenous_tuple_structure_factory(kind, made)),
    )
    return converter


_Hook = Callable[[Any, type], object]


def _table_hook(kind: type, converter: Converter) -> _Hook:
    from cattrs.gen import make_dict_structure_fn, override

    if kind is ProviderEntry:
        inner: _Hook = make_dict_structure_fn(kind, converter, name=override(omit=True))
    else:
        inner = make_dict_structure_fn(kind, converter)
    if kind not in (ProviderEntry, EndpointEntry):
        return _only(Mapping, "a table", inner)
    known = known_keys(kind)

    def split(table: Mapping[str, object], _: type) -> object:
        # What is no key of the core's may be one of the plugin's, which is not known here.
        ours: dict[str, object] = {key: value for key, value in table.items() if key in known}
        ours["options"] = {key: value for key, value in table.items() if key not in known}
        return inner(ours, kind)

    return _only(Mapping, "a table", split)


def _text_keys(table: Mapping[object, object]) -> dict[str, object]:
    found = {key: value for key, value in table.items() if isinstance(key, str)}
    if len(found) < len(table):
        raise KeyFault("", "every key of a table must be text.")
    return found


def _only(kind: type | tuple[type, ...], words: str, inner: _Hook) -> _Hook:
    def hook(value: object, target: type) -> object:
        if value is None:
            value = {}
        elif not isinstance(value, kind):
            raise KeyFault("", f"expected {words}, got {got(value)}.")
        elif isinstance(value, Mapping):
            value = _text_keys(value)
        elif not value:
            raise KeyFault("", "this list is empty; leave it out, or name at least one endpoint.")
        return inner(value, target)

    return hook
