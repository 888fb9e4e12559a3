"""What ``cache=`` means."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeAlias

from attrs import field, frozen

from llmopt.config.tree import Config
from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from llmopt.cache.store import CacheStore

CacheChoice: TypeAlias = "bool | str | os.PathLike[str] | CacheStore | None"
"""What a client takes as ``cache=``."""

WORDS: Final = frozenset({"off", "memory", "disk"})
"""What is no path of a folder; write ./memory for a folder of that name."""

_METHODS: Final = ("get", "put", "remove", "clear", "size", "aclose")


@frozen(kw_only=True)
class CachePlan:
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


def plan_of(choice: CacheChoice, config: Config, *, own_transport: bool) -> CachePlan:
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
        return CachePlan(disk=not own_transport, folder=config.cache_dir)
    if isinstance(choice, bool):
        return CachePlan(catalogs=choice, vectors=choice, disk=choice, folder=config.cache_dir)
    if isinstance(choice, (str, os.PathLike)):
        return _named(choice, config)
    if all(callable(getattr(choice, name, None)) for name in _METHODS):
        return CachePlan(vectors=True, disk=False, folder=config.cache_dir, store=choice)
    raise ConfigError(
        f"cache must be True, False, 'memory', the path of a folder or an object with the methods of "
        f"llmopt.CacheStore, not {type(choice).__name__}."
    )


def _named(choice: str | os.PathLike[str], config: Config) -> CachePlan:
    word = os.fspath(choice)
    if not isinstance(word, str) or not word or "\0" in word:
        raise ConfigError("cache: this is no path of a folder.")
    if word == "off":
        return CachePlan(catalogs=False, disk=False)
    if word == "memory":
        return CachePlan(vectors=True, disk=False)
    return CachePlan(vectors=True, folder=config.cache_dir if word == "disk" else word)
