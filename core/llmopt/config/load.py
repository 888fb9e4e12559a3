"""Reading the configuration: file < environment < argument."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve, fields

from llmopt.config.schema import (
    Config,
    EndpointEntry,
    EnvText,
    KeyFault,
    ProviderEntry,
    TimeoutsEntry,
    child,
    got,
    unknown_key,
)
from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from cattrs import Converter


# The layer between file and arguments: variables that begin with ``LLMOPT_``.
#
# ``LLMOPT_FLAGS__RETRY=false``, ``LLMOPT_CACHE_DIR=/tmp/c`` and
# ``LLMOPT_PROVIDERS__<NAME>__<KEY>[__<SUBKEY>]=value``; two underscores stand for the dot of a path. Of
# an entry's name, - and _ are alike and case does not matter. An empty variable counts as not set.

PREFIX: Final = "LLMOPT_"
CONFIG_PATH: Final = "LLMOPT_CONFIG"
_PLAIN: Final = frozenset({"CACHE", "CACHE_DIR"})
_NESTED: Final = frozenset({"FLAGS", "PROVIDERS"})


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
            path = _variable_path(variable, names)
            if path:
                _put(table, path, EnvText(environ[variable], variable))
    return table


def _by_variable(known: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in sorted(set(known)):
        found.setdefault(name.upper().replace("-", "_"), []).append(name)
    return found


def _variable_path(variable: str, names: Mapping[str, list[str]]) -> list[str]:
    """The path of the key that a variable sets; empty for a variable that is not ours."""
    head, *rest = variable.removeprefix(PREFIX).upper().split("__", 1)
    if not rest:
        if head in _NESTED:
            raise ConfigError(f"{variable}: name the key as well, as in {variable}__{_example(head)}.")
        return [head.lower()] if head in _PLAIN else []
    if head not in _NESTED:
        raise ConfigError(f"{variable}: {unknown_key(head, (table.lower() for table in _NESTED))}")
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


# Laying one configuration over another, key by key.

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


# From a plain table to a `Config`, with the path of every key that is wrong.

_ENTRIES: Final = Mapping[str, ProviderEntry]
_ENDPOINTS: Final = tuple[EndpointEntry, ...]
_TABLES: Final = (Config, ProviderEntry, EndpointEntry, TimeoutsEntry)
_NOT_KEYS: Final = frozenset({"name", "options"})
_MOST_SHOWN: Final = 8


def allowed_keys(kind: type) -> frozenset[str]:
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
            yield f"{child(path, key)}: {unknown_key(key, allowed_keys(error.cl))}"
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
    # Values that are no tables of the tree check themselves, see `llmopt.config.schema`.
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
    known = allowed_keys(kind)

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


FILE_NAME: Final = "llmopt.toml"
_LARGEST: Final = 4 * 1024 * 1024


def load_config(
    source: Mapping[str, Any] | str | os.PathLike[str] | Config | None = None, *, environ: Mapping[str, str]
) -> Config:
    """The configuration of a client.

    The file is the one that ``source`` names, else the one that the variable ``LLMOPT_CONFIG`` names,
    else ``llmopt.toml`` in the current directory, else in the user's configuration folder. Variables
    go over it, and a mapping over both.

    Args:
        source: a mapping, the path of a file, None for what is found; a `Config` is taken as it is.
        environ: the environment variables.

    Raises:
        ConfigError: a file cannot be read, a key is unknown or a value is wrong.
    """
    if isinstance(source, Config):
        return source
    environ = Environment(environ)
    given = structure(source) if isinstance(source, Mapping) else Config()
    filed = _from_file(None if isinstance(source, Mapping) else source, environ)
    known = {*filed.providers, *given.providers}
    found = structure(environment_table(environ, known), "environment")
    return overlay_config(overlay_config(filed, found), given)


def _from_file(source: object, environ: Environment) -> Config:
    path = _path(source) if source is not None else environ.get(CONFIG_PATH) or find_config_file()
    if path is None:
        return Config()
    shown = path if path.isprintable() else ascii(path)
    return structure(_parsed(_read(path, shown), shown), shown)


def _path(source: object) -> str:
    found = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(found, str):
        raise ConfigError(f"config: expected a mapping, a path or a Config, got {got(source)}.")
    return found


def find_config_file() -> str | None:
    """The path of the configuration file that is used when none is named."""
    # os.path.isfile takes a folder that may not be read for one without the file; Path.is_file raises.
    if os.path.isfile(FILE_NAME):  # noqa: PTH113
        return FILE_NAME
    from platformdirs import user_config_dir

    path = str(Path(user_config_dir("llmopt", appauthor=False)) / FILE_NAME)
    return path if os.path.isfile(path) else None  # noqa: PTH113


def _read(path: str, shown: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_LARGEST + 1)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "this is no path"
        raise ConfigError(f"the configuration file {shown} cannot be read: {reason}.") from None
    if len(content) > _LARGEST:
        raise ConfigError(f"the configuration file {shown} is larger than {_LARGEST} bytes.")
    return content


def _parsed(content: bytes, shown: str) -> dict[str, Any]:
    found = _parse(content)
    # So that a traceback that shows local variables shows no key.
    del content
    if isinstance(found, str):
        raise ConfigError(f"{shown}: {found}")
    return found


def _parse(content: bytes) -> dict[str, Any] | str:
    """The table in a file, or what is wrong with the file."""
    import tomllib

    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"not UTF-8 (at line {line})."
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = text.rstrip().count("\n") + 1
        place = f"line {last}, the end of the document"
        return f"not valid TOML: {str(error)[:200].replace('end of document', place)}."
    except RecursionError:
        return "not valid TOML: nested too deeply."
    except ValueError:
        return "not valid TOML: it holds a number or a date that there is not."
