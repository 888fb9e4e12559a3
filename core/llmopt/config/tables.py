"""The keys that hold a table: rates by model, switches by name, headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import Attribute, field

from llmopt.config.envtext import as_bool
from llmopt.config.faults import KeyFault, child, got, unknown_key
from llmopt.config.fields import FASTEST, is_number, measured, to_float

_HEADER: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}")
_OURS: Final = frozenset(
    {"connection", "content-encoding", "content-length", "host", "te", "transfer-encoding", "upgrade"}
)
"""Headers that the wire sets; another value would break the framing of requests."""


def rate() -> Any:
    """A number for each minute, or a table of such numbers by model or deployment."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        numbers = value if isinstance(value, Mapping) else {} if value is None else {None: value}
        for name, number in numbers.items():
            if not (is_number(number) and 0 < number <= FASTEST):
                key = attribute.name if name is None else child(attribute.name, name)
                raise KeyFault(key, f"expected a number above 0, got {measured(number)}.")

    def convert(value: object) -> object:
        if not isinstance(value, Mapping):
            return to_float(value)
        return {name: to_float(number) for name, number in _items("a rate", value)}

    return field(default=None, converter=convert, validator=check)


def to_switches(value: Mapping[str, bool] | None, known: frozenset[str]) -> dict[str, bool]:
    """A table of true and false under ``known`` names."""
    found: dict[str, bool] = {}
    for name, item in _items("flags", value):
        flag = as_bool(item)
        if name not in known:
            raise KeyFault(child("flags", name), unknown_key(name, known))
        if not isinstance(flag, bool):
            raise KeyFault(child("flags", name), f"expected true or false, got {got(flag)}.")
        found[name] = flag
    return found


def to_headers(value: Mapping[str, str] | None) -> dict[str, str]:
    """Header names in lower case, each with a value that can be sent."""
    found: dict[str, str] = {}
    for name, text in _items("headers", value):
        # A name that is none may hold a whole header line, key and all: it is not shown.
        if not _HEADER.fullmatch(name):
            raise KeyFault("headers", "one of the names is not a header's name.")
        fault = _header_fault(name.lower(), text, found)
        if fault:
            raise KeyFault(child("headers", name), fault)
        found[name.lower()] = str(text)
    return found


def _header_fault(name: str, text: object, found: Mapping[str, str]) -> str:
    if name in _OURS:
        return "llmopt sets this header itself."
    if name in found:
        return "this header is given twice."
    if not isinstance(text, str):
        return f"expected text, got {got(text)}."
    if not (text.isascii() and text.isprintable()):
        return "its value holds a line break or a character outside printable ASCII."
    return ""


def _items(table: str, value: Mapping[str, Any] | None) -> list[tuple[str, Any]]:
    """The keys that have a value; None says the same as leaving the key out."""
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise KeyFault(table, f"expected a table, got {got(value)}.")
    if not all(isinstance(name, str) for name in value):
        raise KeyFault(table, "every key of this table must be text.")
    return [(name, item) for name, item in value.items() if item is not None]
