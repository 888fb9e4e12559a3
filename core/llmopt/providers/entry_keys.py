"""The keys of an entry of a list of models that are looked at, read in one go or, if need be, one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar, get_args, get_origin

import msgspec


class ArchitectureKeys(msgspec.Struct, gc=False):
    """The key of that name."""

    modality: str | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None


class PricingKeys(msgspec.Struct, gc=False):
    """The key of that name. What one token costs is text, if it is said so that it can be told what it is for."""

    prompt: Any = None
    input: Any = None
    completion: Any = None
    output: Any = None
    input_cache_read: Any = None
    input_cache_write: Any = None


class TopProviderKeys(msgspec.Struct, gc=False):
    """The key of that name."""

    max_completion_tokens: Any = None


class EntryKeys(msgspec.Struct, gc=False):
    """The keys that are looked at, as most lists write them; numbers and dates may be anything.

    What is of these types is read in one go, without a table for each brace. An entry that has something
    else in one of them is gone through key by key.
    """

    id: str | None = None
    model_id: str | None = None
    name: str | None = None
    key: str | None = None
    display_name: str | None = None
    type: Any = None
    architecture: ArchitectureKeys | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None
    context_length: Any = None
    max_model_len: Any = None
    max_context_length: Any = None
    context_window: Any = None
    context_size: Any = None
    max_input_tokens: Any = None
    max_output_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_length: Any = None
    top_provider: TopProviderKeys | None = None
    pricing: PricingKeys | None = None
    aliases: tuple[str, ...] | None = None
    created: Any = None
    created_at: Any = None
    deprecation_date: Any = None
    deprecation: Any = None
    deprecated: Any = None
    shutdown_date: Any = None
    eol_date: Any = None
    expiration_date: Any = None
    replacement_model: str | None = None
    deprecation_replacement_model: str | None = None
    replaced_by: str | None = None


_Loose: Final = msgspec.defstruct(
    "_Loose", [(key.name, Any, None) for key in msgspec.structs.fields(EntryKeys)]
)
"""The same keys, with anything in them."""
_decoder: Final = msgspec.json.Decoder(EntryKeys)
_loose_decoder: Final = msgspec.json.Decoder(_Loose)


def keys_of(raw: msgspec.Raw) -> EntryKeys | None:
    """The keys of a JSON object, None where it is none or one of them cannot be read."""
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError:
        return _keys_of_other_types(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _keys_of_other_types(raw: msgspec.Raw) -> EntryKeys | None:
    try:
        return keys_in(msgspec.structs.asdict(_loose_decoder.decode(raw)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def keys_in(table: Mapping[str, Any]) -> EntryKeys:
    """The keys of a table."""
    return _loosely(table, EntryKeys)


_Keys = TypeVar("_Keys", bound=msgspec.Struct)


def _loosely(table: Mapping[str, Any], kind: type[_Keys]) -> _Keys:
    """The keys of a kind, without what is of another type; of a list what is text."""
    found = kind()
    for name, fit in _fits(kind):
        value = table.get(name)
        if value is not None:
            setattr(found, name, fit(value))
    return found


@cache
def _fits(kind: type[msgspec.Struct]) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    return [(key.name, _fit(key.type)) for key in msgspec.structs.fields(kind)]


def _fit(wanted: Any) -> Callable[[Any], Any]:
    if wanted is Any:
        return lambda value: value
    first = get_args(wanted)[0]
    if first is str:
        return lambda value: value if isinstance(value, str) else None
    if get_origin(first) is tuple:
        return _texts
    return lambda value: _loosely(value, first) if isinstance(value, Mapping) else None


def _texts(value: object) -> tuple[str, ...] | None:
    return (
        tuple([each for each in value if isinstance(each, str)]) if isinstance(value, list | tuple) else None
    )
