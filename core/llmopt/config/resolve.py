"""From a configured entry to its endpoints: profile < entry < endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from attrs import asdict, evolve

from llmopt.config.baseurl import BaseUrl, parse_base_url
from llmopt.config.endpoint import Endpoint
from llmopt.config.environment import Environment
from llmopt.config.envtext import EnvText
from llmopt.config.faults import child
from llmopt.config.keyrule import credential_for
from llmopt.config.options import Table, checked_options
from llmopt.config.overlay import overlay_endpoint
from llmopt.config.rates import rates
from llmopt.config.tables import to_headers
from llmopt.config.template import filled
from llmopt.config.tree import EndpointEntry, Flags, ProviderEntry, TimeoutsEntry
from llmopt.errors import ConfigError
from llmopt.values.profile import Profile, Timeouts

_ALONE: Final = EndpointEntry()
_T = TypeVar("_T")


def resolve_endpoints(
    entry: ProviderEntry,
    profile: Profile | Callable[[ProviderEntry], Profile],
    *,
    client_flags: Flags,
    environ: Mapping[str, str],
) -> tuple[Endpoint, ...]:
    """The endpoints of an entry, at least one.

    A missing key is no error here: the endpoint's credential raises when it is asked for the key.

    Args:
        entry: what is configured.
        profile: the provider's built-in defaults; or a function that gives them for an entry as it
            is for one endpoint.
        client_flags: what the client switches off; flags of the entry win.
        environ: the environment variables.

    Raises:
        ConfigError: a base URL is missing or refused, or a key is none of the plugin's.
    """
    environ = Environment(environ)
    return tuple(
        _Resolution(entry, profile, index, environ).endpoint(client_flags)
        for index in range(max(1, len(entry.endpoints)))
    )


class _Resolution:
    """The making of one endpoint."""

    def __init__(
        self,
        entry: ProviderEntry,
        profile: Profile | Callable[[ProviderEntry], Profile],
        index: int,
        environ: Environment,
    ) -> None:
        self.own = entry.endpoints[index] if entry.endpoints else _ALONE
        self.entry = overlay_endpoint(entry, self.own)
        self.profile = profile if isinstance(profile, Profile) else profile(self.entry)
        self.index = index
        self.environ = environ
        self.entry_path = child("providers", entry.name)
        self.path = child(child(self.entry_path, "endpoints"), index) if entry.endpoints else self.entry_path
        self.options: Mapping[str, object] = {}

    def endpoint(self, client_flags: Flags) -> Endpoint:
        self._fill()
        entry, profile = self.entry, self.profile
        base, vouched = self._base()
        concurrency, pool = _sizes(entry, profile)
        return Endpoint(
            provider=entry.name,
            plugin=str(entry.plugin_name),
            index=self.index,
            path=self.path,
            base_url=base.url if base else "",
            origin=base.origin if base else "",
            weight=_or(self.own.weight, 1.0),
            credential=credential_for(
                entry, profile, base, vouched=vouched, path=self.path, environ=self.environ
            ),
            auth=profile.auth,
            headers={**to_headers(profile.headers), **entry.headers},
            timeouts=_timeouts(entry.timeouts, profile.timeouts),
            max_retries=_or(entry.max_retries, profile.max_retries),
            retry_delay=_or(entry.retry_delay, profile.retry_delay),
            rpm=rates(entry.rpm, profile.rpm),
            tpm=rates(entry.tpm, profile.tpm),
            max_batch_size=entry.max_batch_size,
            max_concurrency=concurrency,
            pool_size=pool,
            keepalive=_or(entry.keepalive, profile.keepalive),
            compress_requests=_or(entry.compress_requests, profile.compress_requests),
            stream_usage=profile.stream_usage,
            stream_end=profile.stream_end,
            cache_ttl=entry.cache_ttl,
            cache_dir=_folder(entry.cache_dir),
            flags=client_flags.overridden(entry.flags),
            options=self.options,
            discovered=profile.discovered,
            in_process=profile.in_process,
        )

    def _fill(self) -> None:
        """Check the plugin's own keys, and put those into the profile's base URL that it asks for."""
        entry, profile = self.entry, self.profile
        self.options = checked_options(entry.options, profile, table=self._table(), environ=self.environ)
        elsewhere = bool(entry.base_url or self.environ.text(profile.base_url_env))
        self.profile = filled(profile, self.options, path=self.path, needed=not elsewhere)

    def _base(self) -> tuple[BaseUrl | None, bool]:
        """Where requests go, and whether it was the environment that said so."""
        text, path = self._base_text()
        if self.profile.in_process:
            if self.entry.base_url is None:
                return None, False
            raise ConfigError(f"{path}: this provider works inside the process; leave base_url out.")
        if text is None:
            raise ConfigError(f"{self.path}: there is no base URL; {self._base_choices()}.")
        if isinstance(text, EnvText):
            path = f"{path} (environment variable {text.variable})"
        allowed = bool(self.entry.allow_http)
        url = parse_base_url(text, path=path, entry=self.entry_path, allow_http=allowed)
        return url, isinstance(text, EnvText)

    def _base_text(self) -> tuple[str | None, str]:
        entry, profile = self.entry, self.profile
        path = child(self.entry_path if self.own.base_url is None else self.path, "base_url")
        return entry.base_url or self.environ.text(profile.base_url_env) or profile.base_url, path

    def _base_choices(self) -> str:
        variables = " or ".join(self.profile.base_url_env)
        return "set base_url" + (f", or the environment variable {variables}" if variables else "")

    def _table(self) -> Table:
        own = frozenset(self.own.options)
        return Table(path=self.path, entry_path=self.entry_path, own=own)


def _folder(path: str | None) -> str | None:
    # Not Path.expanduser, which raises for a user that there is not.
    return None if path is None else os.path.expanduser(str(path))  # noqa: PTH111


def _or(value: _T | None, default: _T) -> _T:
    return default if value is None else value


def _sizes(entry: ProviderEntry, profile: Profile) -> tuple[int, int]:
    """Requests in flight and connections: never more of the first than of the second."""
    concurrency = _or(entry.max_concurrency, profile.max_concurrency)
    if entry.pool_size is not None:
        return min(concurrency, entry.pool_size), entry.pool_size
    # Who asks for more requests in flight than usual gets the connections they need.
    pool = max(profile.pool_size, entry.max_concurrency or 1)
    return min(concurrency, pool), pool


def _timeouts(configured: TimeoutsEntry, usual: Timeouts) -> Timeouts:
    """``read`` alone bounds every attempt, unless a more special time-out is configured as well."""
    given = {key: value for key, value in asdict(configured).items() if value is not None}
    read = configured.read
    if read is not None:
        implied = {"read_large": read, "catalog": min(read, usual.catalog)}
        if usual.first is not None:
            implied["first"] = max(read, usual.first)
        given = {**implied, **given}
    return evolve(usual, **given)
