"""Checks of what the application passes to a client and its methods, and what ``cache`` and ``shared`` mean.

No I/O, no clock, no state, but that `load_wrappers` reads the metadata of packages and imports wrappers. A ``token_counter`` is called once. No method of a store or plugin that is passed in is called, but their attributes are read,
which runs a property's code: of a plugin all that ``dir`` lists. A path's ``__fspath__`` is called.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from attrs import evolve, field, frozen

from llmopt.config.schema import Config, shown_variable, to_headers
from llmopt.errors import ConfigError, InvalidInput, PluginConflict, PluginContractError, PluginLoadError
from llmopt.values.secret import HiddenBytes

if TYPE_CHECKING:
    from llmopt.cache.store import CacheStore
    from llmopt.operations.token_estimate import TokenCounter
    from llmopt.providers.discovery import InstalledPlugin
    from llmopt.shared.state import SharedOptions, SharedState

CacheChoice: TypeAlias = "bool | str | os.PathLike[str] | CacheStore | None"
"""The values of the client's ``cache`` option."""
TokenCounters: TypeAlias = "TokenCounter | Mapping[str, TokenCounter]"
"""The values of the client's ``token_counter`` option."""
SharedChoice: TypeAlias = "str | SharedState | Literal[False] | None"
"""The values of the client's ``shared`` option."""
CACHE_WORDS: Final = frozenset({"off", "memory", "disk"})
"""Values of ``cache`` that are not the path of a directory; for a directory of that name write "./memory"."""
WRAPPER_GROUP: Final = "llmopt.wrappers"
"""Entry-point group of wrapper plugins, which a configuration opts into by name."""
SECRET_VARIABLE: Final = "LLMOPT_SHARED_SECRET"  # noqa: S105 - a name, not a secret
_STORE_METHODS: Final = ("get", "put", "remove", "clear", "size", "aclose")


@frozen(kw_only=True)
class CacheOptions:
    """What a client caches, and where.

    Attributes:
        model_lists: whether lists of models are cached.
        vectors: whether vectors are cached.
        disk: whether the cache is on disk, shared with other processes.
        folder: the directory; None for the provider's ``cache_dir``, else the user's cache directory.
        store: a store given by the user, which is used instead of all others.
    """

    model_lists: bool = True
    vectors: bool = False
    disk: bool = True
    folder: str | os.PathLike[str] | None = None
    store: CacheStore | None = field(default=None, repr=False)


def cache_options(choice: CacheChoice, config: Config, *, custom_transport: bool) -> CacheOptions:
    """The meaning of a client's ``cache`` option or, if it is None, of the configuration's ``cache`` key.

    Args:
        choice: the client's option.
        config: the client's configuration.
        custom_transport: whether the client has a transport given by the user. A custom transport has no stable
            identity (two may answer for the same URL), so nothing is shared on disk unless asked.

    Raises:
        ConfigError: the value has no meaning.
    """
    if choice is None:
        choice = config.cache
    if choice is None:
        return CacheOptions(disk=not custom_transport, folder=config.cache_dir)
    if isinstance(choice, bool):
        return CacheOptions(model_lists=choice, vectors=choice, disk=choice, folder=config.cache_dir)
    if isinstance(choice, (str, os.PathLike)):
        return _from_word_or_path(choice, config)
    if all(callable(getattr(choice, name, None)) for name in _STORE_METHODS):
        return CacheOptions(vectors=True, disk=False, folder=config.cache_dir, store=choice)
    raise ConfigError(
        f"cache must be True, False, 'memory', the path of a directory or an object with the methods of "
        f"llmopt.CacheStore, not {type(choice).__name__}."
    )


def _from_word_or_path(choice: str | os.PathLike[str], config: Config) -> CacheOptions:
    path = os.fspath(choice)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ConfigError(
            "cache is not the path of a directory: it must be a non-empty str without null characters."
        )
    if path == "off":
        return CacheOptions(model_lists=False, disk=False)
    if path == "memory":
        return CacheOptions(vectors=True, disk=False)
    return CacheOptions(vectors=True, folder=config.cache_dir if path == "disk" else path)


def shared_options(choice: SharedChoice, config: Config, environ: Mapping[str, str]) -> SharedOptions | None:
    """The meaning of a client's ``shared`` option or, if it is None, of the configuration's ``[shared]`` table.

    Args:
        choice: the client's option; False for a client that shares nothing.
        config: the client's configuration.
        environ: the environment variables, one of which holds the secret.

    Raises:
        ConfigError: the value has no meaning, no package serves the URL, or the secret is missing.
    """
    table = config.shared
    chosen = table.url if choice is None else choice
    if chosen is None or chosen is False:
        if table.required and chosen is None:
            raise ConfigError("shared.required: no store is configured; set shared.url as well.")
        return None
    # Imported here: few clients share anything.
    from llmopt.shared.state import SharedOptions, SharedState, open_store

    if not isinstance(chosen, (str, SharedState)):
        raise _wrong_type("shared", "a URL or an object with the methods of llmopt.SharedState", chosen)
    variable = table.secret_env or SECRET_VARIABLE
    secret = HiddenBytes(environ.get(variable, "").encode())
    if not secret:
        raise ConfigError(
            f"shared: the environment variable {shown_variable(variable)} is not set. Set it to one random text in all "
            "processes that share limits: with it they name their quotas, so that nobody can read keys from the names."
        )
    owned = isinstance(chosen, str)
    store = open_store(chosen) if isinstance(chosen, str) else chosen
    return SharedOptions(store=store, secret=secret, required=bool(table.required), owned=owned)


def check_client_arguments(
    *, transport: object, plugins: object, on_event: object, flags: object, token_counter: object
) -> None:
    """Refuse arguments that would fail later, with a less clear error.

    Raises:
        ConfigError: an argument has the wrong type; the message says which type is right.
    """
    if transport is not None and not callable(getattr(transport, "handle_async_request", None)):
        raise _wrong_type("transport", "an httpx.AsyncBaseTransport", transport)
    if isinstance(plugins, (str, bytes)) or not isinstance(plugins, Sequence):
        raise _wrong_type("plugins", "a list of plugins", plugins)
    for plugin in plugins:
        if not _has_hooks(plugin):
            raise ConfigError(
                f"plugins contains {type(plugin).__name__}, which has no function marked with @llmopt.hookimpl."
            )
    if on_event is not None and (not callable(on_event) or inspect.iscoroutinefunction(on_event)):
        raise _wrong_type("on_event", "a function that takes one event", on_event)
    if flags is not None and not isinstance(flags, Mapping):
        raise _wrong_type("flags", "a mapping from flags to True or False", flags)
    by_model = token_counter if isinstance(token_counter, Mapping) else {"any/model": token_counter}
    for model, counter in by_model.items():
        if not isinstance(model, str) or "/" not in model:
            raise ConfigError(f"token_counter names {model!r:.80}; it must name models as 'provider/model'.")
        if counter is not None:
            _try_counter(counter)


def _try_counter(counter: object) -> None:
    if not callable(counter):
        raise _wrong_type("token_counter", "a function that takes a text and returns its tokens", counter)
    from llmopt.operations.token_estimate import TokenEstimator

    # Once, so that a mistake is reported where the client is made.
    TokenEstimator(counter).estimate("llmopt")


def _has_hooks(plugin: object) -> bool:
    # pluggy's marker sets this attribute. Looking for it here does not import pluggy.
    return any(hasattr(getattr(plugin, name, None), "llmopt_impl") for name in dir(plugin))


def _wrong_type(name: str, expected: str, value: object) -> ConfigError:
    given = "an async function" if inspect.iscoroutinefunction(value) else type(value).__name__
    return ConfigError(f"{name} must be {expected}, not {given}.")


def call_headers(headers: Any, reserved: Iterable[str]) -> Mapping[str, str]:
    """The ``headers`` option of a call, checked.

    Args:
        headers: as given.
        reserved: the authentication schemes of the provider's endpoints; the one that names a header reserves it.

    Raises:
        InvalidInput: a header cannot be sent, or llmopt sets it itself.
    """
    try:
        checked = to_headers({} if headers is None else headers)
    except ConfigError as error:
        raise InvalidInput(error.message) from None
    for name in ("authorization", "proxy-authorization", "content-type", *reserved):
        # Limits and refusals are remembered for the configured key, so that a call cannot have another one.
        if name in checked:
            raise InvalidInput(
                f"headers.{name}: llmopt sets this header itself; for another key configure another provider entry."
            )
    return checked


def load_wrappers(names: Sequence[str]) -> list[object]:
    """The wrapper plugins that the configuration's ``wrappers`` names, by the entry-point group ``llmopt.wrappers``.

    Raises:
        ConfigError, PluginError: one is not installed, or cannot be used.
    """
    from llmopt.providers.discovery import group_by_name, installed_entry_points

    installed = group_by_name(installed_entry_points(WRAPPER_GROUP))
    return [_load_wrapper(name, installed) for name in names]


def _load_wrapper(name: str, installed: Mapping[str, InstalledPlugin]) -> object:
    if name not in installed:
        from difflib import get_close_matches

        near = get_close_matches(str(name), installed, n=1)
        advice = f"did you mean {near[0]!r}?" if near else "llmopt plugins lists what is installed."
        raise ConfigError(f"wrappers: no wrapper {name!r:.80} is installed; {advice}")
    point, *others = installed[name].entry_points
    if others:
        claims = " and ".join(sorted(installed[name].distributions))
        raise PluginConflict(f"wrapper {name!r} is claimed by {claims}; uninstall all but one of them.")
    try:
        plugin = point.load()
    except (Exception, SystemExit) as error:
        told = f"{type(error).__name__}: {error}"
        raise PluginLoadError(f"wrapper {name!r} ({point.value}) cannot be imported: {told}") from error
    if isinstance(plugin, type) or not _has_hooks(plugin):
        raise PluginContractError(
            f"wrapper {name!r} ({point.value}): its entry point must name a module or an object with functions that are "
            "marked with @llmopt.hookimpl."
        )
    return plugin


def with_flags(config: Config, flags: Mapping[str, bool]) -> Config:
    """A configuration with some flags overridden.

    Raises:
        ConfigError: there is no such flag.
    """
    try:
        return evolve(config, flags={**config.flags, **flags})
    except ConfigError as error:
        raise ConfigError(error.message) from None
