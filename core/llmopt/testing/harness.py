"""A test harness for provider plugins: the engine's own steps around a plugin, as functions to call from checks.

It is the facade for conformance kits, which are distributions of their own. A kit imports the public names of
`llmopt`, `llmopt.errors`, `llmopt.values`, `llmopt.compatible` and `llmopt.testing`; whatever else of the core it
needs is here, so that the core can change behind this module.

No clock and no state, and nothing here awaits. The only I/O: the functions about installed plugins read the metadata
of distributions, `InstalledPlugin.load` imports a plugin, and a hook may read a table of its package at first use.
`PluginUnderTest` calls the plugin's hooks, on the caller's thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from llmopt import hookspecs
from llmopt.config.load import allowed_keys
from llmopt.config.resolve import fill_placeholders, resolve_endpoints, url_placeholders
from llmopt.config.schema import Flags, ProviderEntry
from llmopt.config.urls import InvalidUrl, is_loopback, origin_of
from llmopt.decoding.accumulator import ReplyAccumulator
from llmopt.decoding.ndjson import declared_format, decoder_of
from llmopt.engine.request import RequestEncoder, json_encoder
from llmopt.engine.responses import error_from_verdict
from llmopt.errors import LLMOptError
from llmopt.hookspecs import PROJECT
from llmopt.operations.embed_results import in_input_order
from llmopt.providers.discovery import (
    FALLBACK_GROUP,
    PROVIDER_NAME,
    InstalledPlugin,
    discover_plugins,
    installed_entry_points,
)
from llmopt.providers.hooks import HOOK_NAMES, ProviderHooks
from llmopt.transport.request import TransportRequest as EncodedRequest
from llmopt.values.calls import Call, Settings
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.http import Failure, HttpRequest
from llmopt.values.secret import Secret

if TYPE_CHECKING:
    import numpy as np
    from importlib_metadata import EntryPoint
    from numpy.typing import NDArray

__all__ = [
    "ENTRY_POINT_GROUP",
    "FALLBACK_GROUP",
    "HOOK_PARAMETERS",
    "RESERVED_OPTIONS",
    "EncodedRequest",
    "InstalledPlugin",
    "PluginUnderTest",
    "ProviderHooks",
    "accumulate",
    "decode_stream",
    "discover_plugins",
    "encode_json",
    "encode_request",
    "entry_point_of",
    "is_hook_implementation",
    "is_loopback",
    "is_provider_name",
    "origin",
    "url_placeholders",
    "vectors_in_order",
]
ENTRY_POINT_GROUP: Final = PROJECT
"""Entry-point group of plugins; the key is the provider's name."""
HOOK_PARAMETERS: Final[Mapping[str, tuple[str, ...]]] = {
    name: tuple(inspect.signature(getattr(hookspecs, name)).parameters) for name in sorted(HOOK_NAMES)
}
"""The names of all hooks, each with the names of its parameters."""
RESERVED_OPTIONS: Final = allowed_keys(ProviderEntry)
"""Keys of a provider entry that belong to llmopt, so that no option of a plugin can have their names."""


class PluginUnderTest:
    """A plugin as the engine uses it.

    Args:
        provider: name of the provider.
        plugin: the plugin's module, or any object with its hooks.

    Attributes:
        hooks: the hooks by name. Each call checks the type of the result, as in the engine, and falls back
            on the common dialect where the plugin has no implementation.

    Raises:
        PluginError: the core would refuse the plugin.
    """

    def __init__(self, provider: str, plugin: object) -> None:
        self.hooks: Final = ProviderHooks(provider, plugin)

    def base_url(self, entry: ProviderEntry, options: Mapping[str, Any]) -> str | None:
        """The base URL of the profile for an entry, its placeholders filled from options; None if it has none.

        Raises:
            ConfigError: an option for a placeholder is missing or cannot be part of a host.
        """
        profile = self.hooks.provider_profile(entry)
        return fill_placeholders(profile, options, path="the profile").base_url

    def settings(self, entry: ProviderEntry, credential: Secret | None = None) -> Settings:
        """What hooks are told of the first endpoint of an entry. No environment variable is read.

        Raises:
            ConfigError: the entry cannot be used.
        """
        endpoints = resolve_endpoints(entry, self.hooks.provider_profile, client_flags=Flags(), environ={})
        return endpoints[0].settings(credential)

    def error(self, failure: Failure, call: Call, settings: Settings) -> LLMOptError:
        """The exception that a caller would get for a failure, after ``classify_error``."""
        return error_from_verdict(self.hooks.classify_error(failure, settings), failure, call, settings)


def encode_request(request: HttpRequest, settings: Settings) -> EncodedRequest:
    """What the engine sends for a request of a plugin.

    Raises:
        PluginContractError: it cannot be sent.
    """
    return RequestEncoder()(request, settings)


def encode_json(value: object) -> bytes:
    """The bytes of a JSON request body, as the engine writes it.

    Raises:
        TypeError, ValueError, RecursionError: the value cannot be written as JSON.
    """
    return json_encoder.encode(value)


def decode_stream(content_type: str, chunks: Iterable[bytes]) -> list[ServerEvent] | None:
    """The events of a whole stream; None for a content type that the engine does not decode."""
    decoder = decoder_of(declared_format(content_type))
    if decoder is None:
        return None
    return [event for chunk in chunks for event in decoder.feed(chunk)] + decoder.end()


def accumulate(events: Iterable[ChatEvent]) -> ChatReply:
    """The reply that the events of a stream add up to."""
    accumulator = ReplyAccumulator()
    for event in events:
        accumulator.add(event)
    return accumulator.reply()


def vectors_in_order(rows: EmbeddedRows, count: int) -> NDArray[np.float32]:
    """The vectors of an answer in the order of the request's texts, after the engine's checks.

    Args:
        rows: what ``parse_embeddings`` returned.
        count: number of texts in the request.

    Returns:
        float32, shape (count, dimensions).

    Raises:
        InvalidResponse: a vector is missing, there are too many, or a number is not finite.
    """
    return in_input_order(rows, count, None)


def origin(url: str) -> str:
    """The origin of a URL, such as ``https://api.acme.test``; for a URL that cannot be sent to, the reason."""
    try:
        return origin_of(url)
    except InvalidUrl as error:
        return f"an invalid URL ({error})"


def is_hook_implementation(function: object) -> bool:
    """Whether a function is marked with ``@llmopt.hookimpl``."""
    return hasattr(function, f"{PROJECT}_impl")


def is_provider_name(name: str) -> bool:
    """Whether a provider can have this name."""
    return PROVIDER_NAME.match(name) is not None


def entry_point_of(module: str) -> EntryPoint | None:
    """The entry point that names a module, None if it is not installed as a plugin."""
    points = (*installed_entry_points(PROJECT), *installed_entry_points(FALLBACK_GROUP))
    return next((point for point in points if point.module == module), None)
