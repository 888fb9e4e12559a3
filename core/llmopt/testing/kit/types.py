"""Whether the fields of a value hold what their annotations say."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import attrs

_MODULE: Final = re.compile(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])")
"""What stands before the names of types."""


def type_faults(value: Any) -> list[str]:
    """For each field that holds something else than it may, a sentence; of nested values too."""
    kind = type(value)
    hints = _hints(kind)
    return [
        fault
        for each in attrs.fields(kind)
        for fault in _faults(f"{kind.__name__}.{each.name}", getattr(value, each.name), hints[each.name])
    ]


def _hints(kind: type) -> dict[str, Any]:
    if kind not in _known:
        # Its module's names alone: a field called `type` would stand for itself.
        _known[kind] = get_type_hints(kind, vars(sys.modules[kind.__module__]), {})
    return _known[kind]


_known: dict[type, dict[str, Any]] = {}


def _faults(name: str, found: Any, hint: Any) -> Iterator[str]:
    if isinstance(found, tuple) and get_origin(hint) is tuple:
        for index, inner in enumerate(found):
            yield from _faults(f"{name}[{index}]", inner, get_args(hint)[0])
    elif not _fits(found, hint):
        yield f"{name} is {_shown(found)}; expected {_words(hint)}."
    elif attrs.has(type(found)):
        yield from type_faults(found)


def _fits(value: Any, hint: Any) -> bool:
    origin = get_origin(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if origin is not None:
        shape: Callable[[Any, tuple[Any, ...]], bool] | None = _SHAPES.get(origin)
        return shape(value, get_args(hint)) if shape is not None else isinstance(value, origin)
    return _is(value, hint)


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    if kind is float:
        return isinstance(value, (int, float))
    return isinstance(value, kind)


def _literal(value: Any, choices: tuple[Any, ...]) -> bool:
    return value in choices


def _tuple(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, tuple) and all(_fits(each, inner[0]) for each in value)


def _mapping(value: Any, inner: tuple[Any, ...]) -> bool:
    return isinstance(value, Mapping) and all(
        _fits(key, inner[0]) and _fits(each, inner[1]) for key, each in value.items()
    )


_SHAPES: dict[Any, Callable[[Any, tuple[Any, ...]], bool]] = {
    Literal: _literal,
    tuple: _tuple,
    Mapping: _mapping,
    dict: _mapping,
}


def _words(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
    return _MODULE.sub("", text).replace("NoneType", "None")


def _shown(value: Any) -> str:
    return f"{str(value)[:40]!r} ({type(value).__name__})"
