"""What a client is given besides its configuration, checked before anything begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import evolve

from llmopt.config.tree import Config
from llmopt.errors import ConfigError

WhenOpen = Literal["fail", "wait"]
"""What a call does while its provider is given a rest: fail at once, or wait for its return."""


def check_arguments(*, transport: object, plugins: object, on_event: object, flags: object) -> None:
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
