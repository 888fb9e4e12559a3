"""The layer between file and arguments: variables that begin with ``LLMOPT_``.

``LLMOPT_FLAGS__RETRY=false``, ``LLMOPT_CACHE_DIR=/tmp/c`` and
``LLMOPT_PROVIDERS__<NAME>__<KEY>[__<SUBKEY>]=value``; two underscores stand for the dot of a path. Of
an entry's name, - and _ are alike and case does not matter. An empty variable counts as not set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from llmopt.config.envtext import EnvText
from llmopt.config.faults import unknown_key
from llmopt.errors import ConfigError

PREFIX: Final = "LLMOPT_"
CONFIG_PATH: Final = "LLMOPT_CONFIG"
_PLAIN: Final = frozenset({"CACHE", "CACHE_DIR"})
_TABLES: Final = frozenset({"FLAGS", "PROVIDERS"})


class Environment(Mapping[str, str]):
    """Environment variables that do not show their values, as a traceback with local variables would."""

    __slots__ = ("_variables",)

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables: Final = variables

    def __getitem__(self, name: str) -> str:
        return self._variables[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._variables)

    def __len__(self) -> int:
        return len(self._variables)

    def __repr__(self) -> str:
        return f"Environment({len(self)} variables)"

    def text(self, names: Iterable[str]) -> EnvText | None:
        """The first of these variables that is set and not empty."""
        for name in names:
            if found := self.get(name):
                return EnvText(found, name)
        return None


def environment_table(environ: Environment, known: Iterable[str]) -> dict[str, Any]:
    """The table that the environment sets.

    Args:
        environ: all variables; those of other programs are passed over.
        known: names of the entries of the other layers.

    Raises:
        ConfigError: a variable names no key, or two of them name the same.
    """
    names = _by_variable(known)
    table: dict[str, Any] = {}
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and environ[variable] and variable != CONFIG_PATH:
            path = _path(variable, names)
            if path:
                _put(table, path, EnvText(environ[variable], variable))
    return table


def _by_variable(known: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(set(known)):
        found.setdefault(name.upper().replace("-", "_"), []).append(name)
    return found


def _path(variable: str, names: Mapping[str, list[str]]) -> list[str]:
    """The path of the key that a variable sets; empty for a variable that is not ours."""
    head, *rest = variable.removeprefix(PREFIX).upper().split("__", 1)
    if not rest:
        if head in _TABLES:
            raise ConfigError(f"{variable}: name the key as well, as in {variable}__{_example(head)}.")
        return [head.lower()] if head in _PLAIN else []
    if head not in _TABLES:
        raise ConfigError(f"{variable}: {unknown_key(head, (table.lower() for table in _TABLES))}")
    if head == "FLAGS":
        return ["flags", rest[0].lower()]
    return ["providers", *_entry_path(variable, rest[0], names)]


def _example(head: str) -> str:
    return "RETRY=false" if head == "FLAGS" else "<NAME>__<KEY>=value"


def _entry_path(variable: str, rest: str, names: Mapping[str, list[str]]) -> list[str]:
    # Normalised, for the comparison only: the length stays, so that positions do.
    plain = rest.replace("-", "_")
    # The longest first: the name of an entry may itself hold two underscores.
    match = max((name for name in names if plain.startswith(f"{name}__")), key=len, default=None)
    if match is None:
        entry, _, key = rest.lower().partition("__")
    elif len(names[match]) > 1:
        raise ConfigError(f"{variable}: this may mean {' or '.join(names[match])}; rename one of them.")
    else:
        entry, key = names[match][0], rest[len(match) + 2 :].lower()
    if not key or not entry:
        raise ConfigError(f"{variable}: name an entry and a key, as in {PREFIX}PROVIDERS__<NAME>__<KEY>.")
    path = key.split("__")
    if path[0] == "headers":
        path[1:] = [name.replace("_", "-") for name in path[1:]]
    return [entry, *path]


def _put(table: dict[str, Any], path: list[str], value: EnvText) -> None:
    *tables, last = path
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"{value.variable}: a variable for the whole of {name} is set as well; keep one."
            )
    if last in table:
        raise ConfigError(f"{value.variable}: another variable sets {'.'.join(path)} too; keep one.")
    table[last] = value
