"""What a client is given besides its configuration, checked before anything begins."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from attrs import evolve, field, frozen

from llmopt.config.schema import Config
from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from llmopt.cache.store import CacheStore
WhenOpen = Literal["fail", "wait"]
"""What a call does while its provider is given a rest: fail at once, or wait for its return."""


def check_client_arguments(*, transport: object, plugins: object, on_event: object, flags: object) -> None:
    """Refuse what would fail later and less clearly.

    Raises:
        ConfigError: an argument is of the wrong kind; the message says which kind is right.
    """
    if transport is not None and not callable(getattr(transport, "handle_async_request", None)):
        raise _wrong("transport", "an httpx.AsyncBaseTransport", transport)
    if isinstance(plugins, (str, bytes)) or not isinstance(plugins, Sequence):
        raise _wrong("plugins", "a list of plugins", plugins)
    for plugin in plugins:
        if not _has_hooks(plugin):
            raise ConfigError(
                f"plugins holds {type(plugin).__name__}, which has no function marked with @llmopt.hookimpl."
            )
    if on_event is not None and not callable(on_event):
        raise _wrong("on_event", "a function of one event", on_event)
    if flags is not None and not isinstance(flags, Mapping):
        raise _wrong("flags", "a mapping from flags to True or False", flags)


def waits_when_open(when_open: object) -> bool:
    """Whether a call waits while its provider is given a rest.

    Raises:
        ConfigError: it says neither yes nor no.
    """
    if when_open not in ("fail", "wait"):
        raise ConfigError("when_open must be 'fail' or 'wait'.")
    return when_open == "wait"


def _has_hooks(plugin: object) -> bool:
    # Marked by pluggy with an attribute; looked for without importing pluggy.
    return any(hasattr(getattr(plugin, name, None), "llmopt_impl") for name in dir(plugin))


def _wrong(name: str, expected: str, got: object) -> ConfigError:
    return ConfigError(f"{name} must be {expected}, not {type(got).__name__}.")


def with_flags(config: Config, flags: Mapping[str, bool]) -> Config:
    """A configuration with some switches set anew.

    Raises:
        ConfigError: there is no such switch.
    """
    message = ""
    try:
        return evolve(config, flags={**config.flags, **flags})
    except ConfigError as error:
        message = error.message
    raise ConfigError(message)


# What ``cache=`` means.

CacheChoice: TypeAlias = "bool | str | os.PathLike[str] | CacheStore | None"
"""What a client takes as ``cache=``."""
WORDS: Final = frozenset({"off", "memory", "disk"})
"""What is no path of a folder; write ./memory for a folder of that name."""
_METHODS: Final = ("get", "put", "remove", "clear", "size", "aclose")


@frozen(kw_only=True)
class CacheOptions:
    """What is kept, and where.

    Attributes:
        catalogs: whether lists of models are kept.
        vectors: whether the vectors of texts are.
        disk: whether on disk, so that other processes have it too.
        folder: where on disk; None for where each provider says, or the user's cache folder.
        store: the user's own store, instead of all others.
    """

    catalogs: bool = True
    vectors: bool = False
    disk: bool = True
    folder: str | os.PathLike[str] | None = None
    store: CacheStore | None = field(default=None, repr=False)


def cache_options(choice: CacheChoice, config: Config, *, own_transport: bool) -> CacheOptions:
    """What a client's ``cache=`` means, or where it is None, the configuration's ``cache``.

    Args:
        choice: what the client was given.
        config: its configuration.
        own_transport: whether the user's own transport answers. Who that is no address tells, so that
            without a word from the user nothing of it is given to other processes.

    Raises:
        ConfigError: it is none of what can be meant.
    """
    if choice is None:
        choice = config.cache
    if choice is None:
        return CacheOptions(disk=not own_transport, folder=config.cache_dir)
    if isinstance(choice, bool):
        return CacheOptions(catalogs=choice, vectors=choice, disk=choice, folder=config.cache_dir)
    if isinstance(choice, (str, os.PathLike)):
        return _named(choice, config)
    if all(callable(getattr(choice, name, None)) for name in _METHODS):
        return CacheOptions(vectors=True, disk=False, folder=config.cache_dir, store=choice)
    raise ConfigError(
        f"cache must be True, False, 'memory', the path of a folder or an object with the methods of "
        f"llmopt.CacheStore, not {type(choice).__name__}."
    )


def _named(choice: str | os.PathLike[str], config: Config) -> CacheOptions:
    word = os.fspath(choice)
    if not isinstance(word, str) or not word or "\0" in word:
        raise ConfigError("cache: this is no path of a folder.")
    if word == "off":
        return CacheOptions(catalogs=False, disk=False)
    if word == "memory":
        return CacheOptions(vectors=True, disk=False)
    return CacheOptions(vectors=True, folder=config.cache_dir if word == "disk" else word)
