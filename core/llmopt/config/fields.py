"""The kinds of keys there are: each converts what it takes and refuses the rest.

Each function makes an attrs field. A check belongs to the class, not to the way a value came:
a table from a file and a call of the constructor pass the same one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, Final, TypeGuard

from attrs import Attribute, field

from llmopt.config.envtext import as_bool, as_number
from llmopt.config.faults import KeyFault, got

LONGEST_S: Final = 1e9
"""No time is longer than thirty years; clocks overflow somewhere beyond."""
MOST: Final = 10**9
FASTEST: Final = 1e12

_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_USUAL: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")


def _key(expected: str, fits: Callable[[Any], bool], convert: Callable[[object], object], **more: Any) -> Any:
    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        if value is not None and not fits(value):
            raise KeyFault(attribute.name, f"expected {expected}, got {measured(value)}.")

    return field(default=None, converter=convert, validator=check, **more)


def measured(value: object) -> str:
    """A number as it stands, of anything else the kind only."""
    if isinstance(value, float) or (type(value) is int and abs(value) <= MOST):
        return str(value)
    return got(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is an int or a float; true and false are no numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def to_float(value: object) -> object:
    """A number as a float, where it is one; anything else as it is."""
    value = as_number(value)
    # A whole number too long for a float stays as it is, and is out of any range.
    return float(value) if is_number(value) and abs(value) < FASTEST * 10 else value


def seconds(*, zero: bool = False) -> Any:
    """A time in seconds; with ``zero``, none at all is allowed too."""
    if zero:
        return _key("seconds, 0 or more", lambda v: is_number(v) and 0 <= v <= LONGEST_S, to_float)
    return _key("seconds above 0", lambda v: is_number(v) and 0 < v <= LONGEST_S, to_float)


def share() -> Any:
    """A share of the load, in relation to the shares of the others."""
    return _key("a number above 0", lambda v: is_number(v) and 0 < v <= MOST, to_float)


def count(*, least: int = 1) -> Any:
    """A whole number, ``least`` or more."""
    expected = f"a whole number, {least} or more"
    return _key(
        expected, lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= MOST, as_number
    )


def boolean() -> Any:
    """True or false."""
    return _key("true or false", lambda v: isinstance(v, bool), as_bool)


def text(**more: Any) -> Any:
    """Text with something in it."""
    return _key("text", lambda v: isinstance(v, str) and bool(v) and "\0" not in v, lambda v: v, **more)


def variable() -> Any:
    """The name of an environment variable."""
    return _key(
        "the name of an environment variable",
        lambda v: isinstance(v, str) and bool(_VARIABLE.fullmatch(v)),
        lambda v: v,
        repr=lambda v: repr(v) if v is None else shown_variable(v),
    )


def shown_variable(name: str) -> str:
    """The name of a variable for a message; hidden if it looks like a key that was put there by mistake."""
    return str(name) if _USUAL.fullmatch(name) else "'***'"


def folder() -> Any:
    """The path of a folder."""
    return _key("a path", lambda v: isinstance(v, str) and bool(v) and "\0" not in v, _path)


def _path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def table_of(kind: type, *, plural: bool = False) -> Callable[[object, Attribute[Any], Any], None]:
    """A validator for a value, or a tuple of values, of one of the tree's own classes."""

    def check(_: object, attribute: Attribute[Any], value: Any) -> None:
        for each in value if plural else (value,):
            if not isinstance(each, kind):
                raise KeyFault(attribute.name, f"expected {kind.__name__}, got {got(each)}.")

    return check
