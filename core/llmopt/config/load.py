"""Reading the configuration: file < environment < argument."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llmopt.config.environment import CONFIG_PATH, Environment, environment_table
from llmopt.config.faults import got
from llmopt.config.overlay import overlay_config
from llmopt.config.structure import structure
from llmopt.config.tree import Config
from llmopt.errors import ConfigError

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
    path = _path(source) if source is not None else environ.get(CONFIG_PATH) or discover()
    if path is None:
        return Config()
    shown = path if path.isprintable() else ascii(path)
    return structure(_parsed(_read(path, shown), shown), shown)


def _path(source: object) -> str:
    found = os.fspath(source) if isinstance(source, os.PathLike) else source
    if not isinstance(found, str):
        raise ConfigError(f"config: expected a mapping, a path or a Config, got {got(source)}.")
    return found


def discover() -> str | None:
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
