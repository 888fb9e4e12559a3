"""A plugin's own configuration keys, checked against what its profile declares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from llmopt.config.environment import Environment
from llmopt.config.envtext import EnvText, as_bool, as_number
from llmopt.config.faults import child, got, unknown_key
from llmopt.config.structure import known_keys
from llmopt.config.tree import EndpointEntry, ProviderEntry
from llmopt.errors import ConfigError
from llmopt.values.profile import Option, Profile

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a table",
}


@frozen(kw_only=True)
class Table:
    """Where options stand, for messages.

    Attributes:
        path: of the endpoint, or of the entry if it has but one.
        entry_path: of the entry.
        own: the options that the endpoint itself sets.
    """

    path: str
    entry_path: str
    own: frozenset[str]

    def place(self, key: str) -> str:
        """The path of one option."""
        return child(self.path if key in self.own else self.entry_path, key)

    def keys(self, key: str) -> frozenset[str]:
        """The core's own keys where this option stands."""
        return known_keys(EndpointEntry if key in self.own else ProviderEntry)


def checked_options(
    options: Mapping[str, Any], profile: Profile, *, table: Table, environ: Environment
) -> dict[str, Any]:
    """The values of a profile's options, from the configuration or else from the environment.

    Args:
        options: what an entry holds besides the core's own keys.
        profile: declares the options.
        table: where they stand.
        environ: the environment variables.

    Raises:
        ConfigError: a key is unknown, or a value is of a wrong type or none of those allowed.
    """
    declared = {option.name: option for option in profile.options}
    for key in options:
        if key not in declared:
            raise ConfigError(f"{table.place(key)}: {unknown_key(key, table.keys(key) | declared.keys())}")
    found: dict[str, Any] = {}
    for name, option in declared.items():
        value = options.get(name)
        if value is None:
            value = environ.text(option.env)
        if value is not None:
            found[name] = _checked(value, option, table.place(name))
    return found


def _checked(value: object, option: Option, path: str) -> object:
    plain = _typed(value, option.type)
    fault = _fault(plain, option)
    if not fault:
        return plain
    if isinstance(value, EnvText):
        path = f"{path} (environment variable {value.variable})"
    help_line = f" {option.help}" if option.help else ""
    raise ConfigError(f"{path}: {fault}, got {got(plain)}.{help_line}")


def _typed(value: object, kind: type) -> object:
    if kind is bool:
        return as_bool(value)
    if kind in (int, float):
        value = as_number(value)
        return float(value) if kind is float and type(value) is int and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {key: _typed(item, str) for key, item in value.items()}
    # Plugins get plain text.
    return str(value) if isinstance(value, EnvText) else value


def _fault(value: object, option: Option) -> str:
    if not _fits(value, option.type):
        return f"expected {_WORDS.get(option.type, option.type.__name__)}"
    if option.choices and value not in option.choices:
        return f"expected one of {', '.join(map(str, option.choices))}"
    return ""


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    shapes: dict[type, tuple[type, ...]] = {dict: (Mapping,), list: (list, tuple), tuple: (list, tuple)}
    return isinstance(value, shapes.get(kind, (kind,)))
