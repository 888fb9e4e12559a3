"""What a configuration holds. Every key may be left out; the provider's profile then decides."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeAlias

from attrs import evolve, field, fields, frozen

from llmopt.config.envtext import as_bool
from llmopt.config.faults import KeyFault, child, got
from llmopt.config.fields import boolean, count, folder, seconds, share, table_of, text, variable
from llmopt.config.tables import rate, to_headers, to_switches
from llmopt.errors import ConfigError
from llmopt.values.secret import Secret
from llmopt.values.shown import names

TokenProvider: TypeAlias = Callable[[], str | Awaitable[str]]
"""Called for every attempt; gives a key or token that is valid now."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,127}")


@frozen(kw_only=True)
class Flags:
    """What llmopt does for a request; each can be switched off."""

    cache: bool = True
    pooling: bool = True
    compression: bool = True
    retry: bool = True
    batching: bool = True
    breaker: bool = True
    limiter: bool = True
    concurrency: bool = True
    balance: bool = True
    coalesce: bool = True
    adaptive_timeouts: bool = True
    adaptive_batches: bool = True

    def overridden(self, *overrides: Mapping[str, bool] | None) -> Flags:
        """These flags with some of them set anew; later tables win.

        Raises:
            ConfigError: a flag is unknown or not a bool.
        """
        found = self
        for table in overrides:
            found = evolve(found, **_overrides(table))
        return found


_FLAGS: Final = frozenset(flag.name for flag in fields(Flags))


def _overrides(value: Mapping[str, bool] | None) -> dict[str, bool]:
    return to_switches(value, _FLAGS)


def _key(value: str | Secret | TokenProvider | None) -> Secret | TokenProvider | None:
    if not isinstance(value, str):
        if value is None or isinstance(value, Secret) or callable(value):
            return value
        raise KeyFault("api_key", f"expected text or a function that returns it, got {got(value)}.")
    fault = ""
    try:
        return Secret(value)
    except ConfigError as error:
        fault = error.message
    raise KeyFault("api_key", fault)


def _shown_url(value: object) -> str:
    # A URL is checked when endpoints are resolved; until then it may hold a password or a key.
    return "'***'" if isinstance(value, str) and ("@" in value or "?" in value) else repr(value)


def _options(value: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(value or {})


@frozen(kw_only=True)
class TimeoutsEntry:
    """Configured time-outs in seconds; see `llmopt.values.profile.Timeouts`."""

    connect: float | None = seconds()
    read: float | None = seconds()
    read_large: float | None = seconds()
    catalog: float | None = seconds()
    chat: float | None = seconds()
    first_event: float | None = seconds()
    idle: float | None = seconds()
    idle_content: float | None = seconds()
    first: float | None = seconds()
    pool: float | None = seconds()
    total: float | None = seconds()


@frozen(kw_only=True)
class _Entry:
    """The keys that an entry and each of its endpoints have in common.

    Attributes:
        base_url: where the server is.
        api_key: the key itself, or a function (sync or async) that gives one for every attempt.
        api_key_env: name of the environment variable that holds the key.
        headers: sent with every request; names in lower case.
        max_retries: retries after a first attempt, so 3 means at most 4 requests.
        retry_delay: first back-off in seconds.
        rpm, tpm: requests and tokens a minute, one number or a table by model or deployment
            with "default" for all others.
        max_batch_size: most items in one request.
        max_concurrency: most requests in flight.
        pool_size: most connections.
        keepalive: seconds an idle connection is kept.
        compress_requests: whether request bodies go out with gzip.
        cache_ttl: seconds a cached answer is good for, 0 for no caching.
        cache_dir: folder of the cache.
        allow_http: whether a host other than this machine may be asked without encryption.
        flags: the switches set here, see `Flags`.
        options: the plugin's own keys, not checked yet.
    """

    base_url: str | None = text(repr=_shown_url)
    api_key: Secret | TokenProvider | None = field(default=None, converter=_key, repr=False)
    api_key_env: str | None = variable()
    headers: Mapping[str, str] = field(default=None, converter=to_headers, repr=names)
    timeouts: TimeoutsEntry = field(factory=TimeoutsEntry, validator=table_of(TimeoutsEntry))
    max_retries: int | None = count(least=0)
    retry_delay: float | None = seconds(zero=True)
    rpm: float | Mapping[str, float] | None = rate()
    tpm: float | Mapping[str, float] | None = rate()
    max_batch_size: int | None = count()
    max_concurrency: int | None = count()
    pool_size: int | None = count()
    keepalive: float | None = seconds(zero=True)
    compress_requests: bool | None = boolean()
    cache_ttl: float | None = seconds(zero=True)
    cache_dir: str | None = folder()
    allow_http: bool | None = boolean()
    flags: Mapping[str, bool] = field(default=None, converter=_overrides)
    options: Mapping[str, Any] = field(default=None, converter=_options, repr=names)

    def __attrs_post_init__(self) -> None:
        if self.api_key is not None and self.api_key_env is not None:
            raise KeyFault("api_key_env", "api_key is set as well; give one of the two.")


@frozen(kw_only=True)
class EndpointEntry(_Entry):
    """One of several endpoints of an entry: whatever it sets overrides the entry's.

    Attributes:
        weight: its share of the load.
    """

    weight: float | None = share()


@frozen(kw_only=True)
class ProviderEntry(_Entry):
    """One provider as configured.

    Attributes:
        name: the first part of a model reference, ``<name>/<model>``.
        plugin: the plugin that serves it, None for the one called like the entry.
        endpoints: what the load is spread over; none for the entry's own keys alone.
    """

    name: str = ""
    plugin: str | None = text()
    endpoints: tuple[EndpointEntry, ...] = field(default=(), validator=table_of(EndpointEntry, plural=True))

    @property
    def plugin_name(self) -> str:
        """Name of the plugin that serves this entry."""
        return self.plugin or self.name


def _named(value: Mapping[Any, ProviderEntry]) -> dict[str, ProviderEntry]:
    for name, entry in value.items():
        table_of(ProviderEntry)(None, fields(Config).providers, entry)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise KeyFault(
                child("providers", name),
                "the name of an entry has small letters, digits, - and _ only, and begins with none of those two.",
            )
    return {name: evolve(entry, name=name) for name, entry in value.items()}


def _cache(value: object) -> bool | str | None:
    chosen = as_bool(value)
    if chosen is None or isinstance(chosen, bool) or (isinstance(chosen, str) and chosen):
        return chosen
    raise KeyFault("cache", f"expected true, false or text, got {got(chosen)}.")


@frozen(kw_only=True)
class Config:
    """A whole configuration.

    Attributes:
        providers: the entries by name.
        flags: the switches set for all of them; an entry's own win.
        cache: whether embeddings are cached, or where; None for the client's default.
        cache_dir: folder of all caches.
    """

    providers: Mapping[str, ProviderEntry] = field(factory=dict, converter=_named)
    flags: Mapping[str, bool] = field(default=None, converter=_overrides)
    cache: bool | str | None = field(default=None, converter=_cache, repr=_shown_url)
    cache_dir: str | None = folder()

    def entry(self, name: str) -> ProviderEntry:
        """The entry of that name; one without any key where nothing is configured."""
        return self.providers.get(name) or ProviderEntry(name=name)
