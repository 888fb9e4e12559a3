"""Load the configuration: ``llmopt.toml`` < environment variables < ``config`` argument.

Every ConfigError names the key by its path, or the variable. Values never appear in messages or tracebacks, because
any of them may be a key in the wrong place.

It reads at most one file, on the caller's thread: the one that the argument or the variable LLMOPT_CONFIG names, else
the one in the working directory or in the user's configuration folder. Environment variables are passed in; but to
find the folder, platformdirs reads the process's own (XDG_CONFIG_HOME, HOME), as does the expansion of ``~``. The
converter is made at first use, because importing cattrs is slow, and kept in a module-level cache, which all threads
share without a lock: two may make one each. No clock, and nothing here awaits.
"""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from attrs import evolve, fields

from llmopt.config.schema import (
    Config,
    EndpointEntry,
    EnvText,
    InvalidKey,
    ProviderEntry,
    SharedEntry,
    TimeoutsEntry,
    join_path,
    kind_name,
    unknown_key_message,
)
from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from cattrs import Converter

FILE_NAME: Final = "llmopt.toml"
PREFIX: Final = "LLMOPT_"
CONFIG_PATH: Final = "LLMOPT_CONFIG"
MAX_FILE_BYTES: Final = 4 * 1024 * 1024
_MAX_SHOWN_PROBLEMS: Final = 8
_TOP_LEVEL_KEYS: Final = frozenset({"CACHE", "CACHE_DIR"})
_TOP_LEVEL_TABLES: Final = frozenset({"FLAGS", "PROVIDERS", "SHARED"})


def load_config(
    source: Mapping[str, Any] | str | os.PathLike[str] | Config | None = None, *, environ: Mapping[str, str]
) -> Config:
    """Load the configuration of a client.

    The file is the one that ``source`` names, else the one that the variable ``LLMOPT_CONFIG`` names, else
    ``llmopt.toml`` in the current directory, else in the user's configuration folder. Variables override it, and a
    mapping overrides both.

    Args:
        source: a mapping, the path of a file, or None for the file found as above; a `Config` is returned unchanged.
        environ: the environment variables.

    Raises:
        ConfigError: a file cannot be read, a key is unknown or a value is wrong.
    """
    if isinstance(source, Config):
        return source
    environ = Environment(environ)
    # The argument first: a mistake in it is reported even if the file has one, too.
    argument = structure(source) if isinstance(source, Mapping) else Config()
    from_file = _from_file(None if isinstance(source, Mapping) else source, environ)
    # Names of entries may contain an underscore pair, so variables can be split only when the names are
    # known.
    names = {*from_file.providers, *argument.providers}
    from_environment = structure(environment_table(environ, names), "environment")
    return _overlay(_overlay(from_file, from_environment), argument)


def _from_file(source: object, environ: Environment) -> Config:
    path = _path(source) if source is not None else environ.get(CONFIG_PATH) or find_config_file()
    if path is None:
        return Config()
    shown = path if path.isprintable() else ascii(path)
    return structure(_parsed(_read(path, shown), shown), shown)


def _path(source: object) -> str:
    path = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(path, str):
        raise ConfigError(f"config: expected a mapping, a path or a Config, got {kind_name(source)}.")
    return path


def find_config_file() -> str | None:
    """The path of the file that is loaded when none is named; None if there is none."""
    # os.path.isfile returns False in a folder without read permission; Path.is_file raises.
    if os.path.isfile(FILE_NAME):  # noqa: PTH113
        return FILE_NAME
    from platformdirs import user_config_dir

    path = str(Path(user_config_dir("llmopt", appauthor=False)) / FILE_NAME)
    return path if os.path.isfile(path) else None  # noqa: PTH113


def _read(path: str, shown: str) -> bytes:
    try:
        with Path(path).expanduser().open("rb") as file:
            # A device or a pipe has no size to check before reading.
            content = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or "not a valid path"
        raise ConfigError(f"the configuration file {shown} cannot be read: {reason}.") from None
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"the configuration file {shown} is larger than {MAX_FILE_BYTES} bytes.")
    return content


def _parsed(content: bytes, shown: str) -> dict[str, Any]:
    result = _parse(content)
    # Tracebacks with local variables must not show the content.
    del content
    if isinstance(result, str):
        raise ConfigError(f"{shown}: {result}")
    return result


def _parse(content: bytes) -> dict[str, Any] | str:
    """The table in a file, or what is wrong with it. A message instead of an exception, whose traceback shows the content."""
    import tomllib

    try:
        # Editors on Windows write a byte order mark, which tomllib refuses.
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
        return "not valid TOML: a number or a date in it does not exist."


# Environment variables that start with LLMOPT_.
#
# LLMOPT_FLAGS__RETRY=false, LLMOPT_CACHE_DIR=/tmp/c, LLMOPT_PROVIDERS__<NAME>__<KEY>[__<SUBKEY>]=value: two underscores
# stand for the dot of a path. In the name of an entry - and _ are equal, and case does not matter. An empty variable
# counts as not set.


class Environment(ChainMap[str, str]):
    """Environment variables whose values no traceback shows, not even one with local variables. It keeps no copy."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(variables)  # type: ignore[arg-type] # nothing here writes

    def __repr__(self) -> str:
        return f"Environment({len(self)} variables)"

    def first(self, names: Iterable[str]) -> EnvText | None:
        """The value of the first of these variables that is set and not empty."""
        for name in names:
            if value := self.get(name):
                return EnvText(value, name)
        return None


def environment_table(environ: Environment, entries: Iterable[str]) -> dict[str, Any]:
    """The configuration table that the environment sets.

    Args:
        environ: all variables; those of other programs are ignored.
        entries: names of the entries in the other layers.

    Raises:
        ConfigError: a variable names no key, or two variables name the same one.
    """
    names = _by_variable_name(entries)
    table: dict[str, Any] = {}
    # Sorted, so that messages about two variables are the same each time.
    for variable in sorted(environ):
        if variable.startswith(PREFIX) and environ[variable] and variable != CONFIG_PATH:
            path = _key_path(variable, names)
            if path:
                _insert(table, path, EnvText(environ[variable], variable))
    return table


def _by_variable_name(entries: Iterable[str]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for name in sorted(set(entries)):
        names.setdefault(name.upper().replace("-", "_"), []).append(name)
    return names


def _key_path(variable: str, names: Mapping[str, list[str]]) -> list[str]:
    """The path of the key that a variable sets; empty for a variable of another program."""
    head, *rest = variable.removeprefix(PREFIX).upper().split("__", 1)
    if not rest:
        if head in _TOP_LEVEL_TABLES:
            raise ConfigError(f"{variable}: name the key as well, as in {variable}__{_example(head)}.")
        return [head.lower()] if head in _TOP_LEVEL_KEYS else []
    if head not in _TOP_LEVEL_TABLES:
        raise ConfigError(
            f"{variable}: {unknown_key_message(head, (table.lower() for table in _TOP_LEVEL_TABLES))}"
        )
    if head in ("FLAGS", "SHARED"):
        return [head.lower(), rest[0].lower()]
    return ["providers", *_entry_path(variable, rest[0], names)]


def _example(head: str) -> str:
    return {"FLAGS": "RETRY=false", "SHARED": "URL=value"}.get(head, "<NAME>__<KEY>=value")


def _entry_path(variable: str, rest: str, names: Mapping[str, list[str]]) -> list[str]:
    # For the comparison only; it keeps the length, so that the slice below is right.
    normalized = rest.replace("-", "_")
    # The longest match, because the name of an entry may contain two underscores itself.
    match = max((name for name in names if normalized.startswith(f"{name}__")), key=len, default=None)
    if match is None:
        entry, _, key = rest.lower().partition("__")
    elif len(names[match]) > 1:
        raise ConfigError(
            f"{variable}: this matches the entries {' and '.join(names[match])}; rename one of them."
        )
    else:
        entry, key = names[match][0], rest[len(match) + 2 :].lower()
    if not key or not entry:
        raise ConfigError(f"{variable}: name an entry and a key, as in {PREFIX}PROVIDERS__<NAME>__<KEY>.")
    path = key.split("__")
    if path[0] == "headers":
        # A shell cannot set a variable with a hyphen in its name, and header names have no underscores.
        path[1:] = [name.replace("_", "-") for name in path[1:]]
    return [entry, *path]


def _insert(table: dict[str, Any], path: list[str], value: EnvText) -> None:
    *tables, last = path
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"{value.variable}: another variable sets the whole of {name}; keep one of the two."
            )
    if last in table:
        raise ConfigError(
            f"{value.variable}: another variable sets {'.'.join(path)} too; keep one of the two."
        )
    table[last] = value


# Layers: put one configuration over another, key by key.

_T = TypeVar("_T", Config, ProviderEntry, TimeoutsEntry, SharedEntry)
_BOUND_TO_HOST: Final[Mapping[str, Any]] = dict.fromkeys(
    ("api_key", "api_key_env", "headers", "query", "ca_file", "client_cert", "client_key", "allow_http")
)
"""The keys of an entry that must not reach another host; None unsets each."""


def overlay_entry(lower: ProviderEntry, higher: ProviderEntry) -> ProviderEntry:
    """Merge an entry over the entry of the same name in a lower layer.

    A key belongs to the host that it was configured for. If the higher layer changes the plugin or the host, then
    everything that the lower layer says about keys and trust is dropped.
    """
    if _changes_destination(lower, higher):
        lower = evolve(lower, **_BOUND_TO_HOST)
    if higher.base_url is not None:
        # The base URL of an endpoint would win over the one that the higher layer sets.
        lower = evolve(lower, endpoints=())
    return _overlay(_without_replaced_key(lower, higher), higher)


def overlay_endpoint(entry: ProviderEntry, endpoint: EndpointEntry) -> ProviderEntry:
    """Merge an endpoint over its entry; the result has no ``endpoints``."""
    shared = {each.name for each in fields(EndpointEntry)} - {"weight"}
    higher = ProviderEntry(name=entry.name, **{name: getattr(endpoint, name) for name in shared})
    return _overlay(evolve(_without_replaced_key(entry, higher), endpoints=()), higher)


def _changes_destination(lower: ProviderEntry, higher: ProviderEntry) -> bool:
    if higher.plugin is not None and higher.plugin != lower.plugin_name:
        return True
    base_url = higher.base_url or lower.base_url
    # A subset, because an entry may drop some of its hosts and keep its key.
    return not _destinations(higher, base_url) <= _destinations(lower, lower.base_url)


def _destinations(entry: ProviderEntry, base_url: str | None) -> set[str | None]:
    return {endpoint.base_url or base_url for endpoint in entry.endpoints} or {base_url}


def _without_replaced_key(lower: ProviderEntry, higher: ProviderEntry) -> ProviderEntry:
    # An api_key must also replace a lower layer's api_key_env, and the other way round.
    if higher.api_key is not None or higher.api_key_env is not None:
        lower = evolve(lower, api_key=None, api_key_env=None)
    # Another certificate has another private key, in the same file if no other is named.
    return lower if higher.client_cert is None else evolve(lower, client_key=None)


def _overlay(lower: _T, higher: _T) -> _T:
    """Merge two tables of one class; a key that ``higher`` sets wins."""
    values: dict[str, Any] = {
        each.name: _overlay_value(getattr(lower, each.name), getattr(higher, each.name))
        for each in fields(type(lower))
    }
    return evolve(lower, **values)


def _overlay_value(lower: object, higher: Any) -> object:
    if isinstance(lower, ProviderEntry):
        return overlay_entry(lower, higher)
    if isinstance(lower, TimeoutsEntry | SharedEntry):
        return _overlay(lower, higher)
    if isinstance(lower, Mapping) and isinstance(higher, Mapping):
        return {**lower, **{key: _overlay_value(lower.get(key), item) for key, item in higher.items()}}
    # None and () are keys that are not set.
    return lower if higher is None or higher == () else higher


# From a plain table to a `Config`, by cattrs.

_TABLE_CLASSES: Final = (Config, ProviderEntry, EndpointEntry, TimeoutsEntry, SharedEntry)
_ENTRIES: Final[Any] = Mapping[str, ProviderEntry]
_ENDPOINTS: Final = tuple[EndpointEntry, ...]
_NOT_KEYS: Final = frozenset({"name", "options"})
_StructureHook = Callable[[Any, type], object]


def allowed_keys(kind: type) -> frozenset[str]:
    """The keys of a table of this class, without the plugin's own."""
    return frozenset(each.name for each in fields(kind)) - _NOT_KEYS


def structure(table: Mapping[str, Any], label: str = "") -> Config:
    """Check a table and convert it to a `Config`.

    Args:
        table: as a TOML file or the ``config`` argument of a client gives it.
        label: where the table came from, for messages.

    Raises:
        ConfigError: keys are unknown or values are wrong; the message has a line for each, with its path.
    """
    result = _structure(table)
    # Tracebacks with local variables must not show the table.
    del table
    if isinstance(result, Config):
        return result
    problems = [f"{label}: {problem}" for problem in result] if label else result
    if len(problems) > _MAX_SHOWN_PROBLEMS:
        problems[_MAX_SHOWN_PROBLEMS:] = [f"and {len(problems) - _MAX_SHOWN_PROBLEMS} more."]
    raise ConfigError("\n".join(problems))


def _structure(table: Mapping[str, Any]) -> Config | list[str]:
    """The configuration, or a message for each wrong key."""
    from cattrs import BaseValidationError

    try:
        return _converter().structure(table, Config)
    except (BaseValidationError, InvalidKey) as error:
        return list(_problems(error, ""))


def _problems(error: Exception, path: str) -> Iterator[str]:
    from cattrs import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError

    if isinstance(error, ClassValidationError):
        named, unnamed = error.group_exceptions()
        for inner, note in named:
            yield from _problems(inner, join_path(path, note.name))
        for inner in unnamed:
            yield from _problems(inner, path)
    elif isinstance(error, IterableValidationError):
        for inner, item in error.group_exceptions()[0]:
            yield from _problems(inner, join_path(path, item.index))
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield f"{join_path(path, key)}: {unknown_key_message(key, allowed_keys(error.cl))}"
    elif isinstance(error, InvalidKey):
        key = ".".join(part for part in (path, error.key) if part)
        yield f"{key or 'the configuration'}: {error.text}"
    else:
        # A mapping or key of an unusual class that raises when it is read.
        yield f"{path or 'the configuration'}: cannot be read ({type(error).__name__})."


@cache
def _converter() -> Converter:
    """The one converter, made at first use because cattrs is slow to import."""
    from cattrs import Converter
    from cattrs.cols import homogenous_tuple_structure_factory, mapping_structure_factory

    # Detailed, so that all mistakes are reported together.
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    structured = (*_TABLE_CLASSES, _ENTRIES, _ENDPOINTS)
    # All other values are checked by the fields of `llmopt.config.schema`.
    converter.register_structure_hook_func(lambda kind: kind not in structured, lambda value, _: value)
    converter.register_structure_hook_factory(lambda kind: kind in _TABLE_CLASSES, _table_hook)
    endpoints = homogenous_tuple_structure_factory(_ENDPOINTS, converter)
    converter.register_structure_hook_func(
        lambda kind: kind == _ENDPOINTS, _require((list, tuple), "a list", endpoints)
    )
    entries = mapping_structure_factory(_ENTRIES, converter, dict)
    converter.register_structure_hook_func(
        lambda kind: kind == _ENTRIES, _require(Mapping, "a table", entries)
    )
    return converter


def _table_hook(kind: type, converter: Converter) -> _StructureHook:
    from cattrs.gen import make_dict_structure_fn, override

    # The name comes from the key of the table, never from within it.
    if kind is ProviderEntry:
        inner: _StructureHook = make_dict_structure_fn(kind, converter, name=override(omit=True))
    else:
        inner = make_dict_structure_fn(kind, converter)
    if kind not in (ProviderEntry, EndpointEntry):
        return _require(Mapping, "a table", inner)
    keys = allowed_keys(kind)

    def split_options(table: Mapping[str, object], _: type) -> object:
        # Other keys may be the plugin's own. They are checked once its profile is known, see `llmopt.config.resolve`.
        core: dict[str, object] = {key: value for key, value in table.items() if key in keys}
        core["options"] = {key: value for key, value in table.items() if key not in keys}
        return inner(core, kind)

    return _require(Mapping, "a table", split_options)


def _require(kind: type | tuple[type, ...], words: str, inner: _StructureHook) -> _StructureHook:
    """Refuse values of another type before the hook of cattrs sees them; None counts as an empty table."""

    def hook(value: object, target: type) -> object:
        if value is None:
            value = {}
        elif not isinstance(value, kind):
            raise InvalidKey("", f"expected {words}, got {kind_name(value)}.")
        elif isinstance(value, Mapping):
            value = _with_text_keys(value)
        elif not value:
            raise InvalidKey("", "this list is empty; leave it out, or name at least one endpoint.")
        return inner(value, target)

    return hook


def _with_text_keys(table: Mapping[object, object]) -> dict[str, object]:
    result = {key: value for key, value in table.items() if isinstance(key, str)}
    if len(result) < len(table):
        raise InvalidKey("", "every key of a table must be text.")
    return result
