"""From a configured entry to its endpoints: profile < entry < endpoint."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeVar

from attrs import asdict, evolve, field, frozen

from llmopt.config.credentials import CredentialSource, credential_for
from llmopt.config.load import Environment, allowed_keys, overlay_endpoint
from llmopt.config.schema import (
    EndpointEntry,
    EnvText,
    Flags,
    ProviderEntry,
    TimeoutsEntry,
    as_bool,
    as_number,
    child,
    got,
    to_headers,
    unknown_key,
)
from llmopt.config.urls import BaseUrl, parse_base_url
from llmopt.errors import ConfigError
from llmopt.values.calls import Settings
from llmopt.values.profile import Option, Profile, Timeouts
from llmopt.values.secret import Secret, repr_names

# How many a minute: for all models, or for each.

_DEFAULT = "default"


@frozen(kw_only=True)
class Rates:
    """Configured allowances a minute.

    Attributes:
        default: for every name that is not listed, None for no limit.
        by_name: for single models or deployments.
    """

    default: float | None = None
    by_name: Mapping[str, float] = field(factory=dict)

    def of(self, *names: str) -> float | None:
        """The allowance of the first of these names that is listed, else the default."""
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        return self.default


def rates(configured: float | Mapping[str, float] | None, usual: float | None) -> Rates:
    """Configured rates over the usual one of a profile."""
    if configured is None:
        return Rates(default=usual)
    if not isinstance(configured, Mapping):
        return Rates(default=configured)
    named = {name: rate for name, rate in configured.items() if name != _DEFAULT}
    return Rates(default=configured.get(_DEFAULT, usual), by_name=named)


# Where requests go, with everything that configuration and profile say about it.


@frozen(kw_only=True)
class Endpoint:
    """One endpoint of a provider entry, resolved.

    Attributes:
        provider: name of the entry.
        plugin: name of the plugin that serves it.
        index: position among the endpoints of the entry.
        path: of the entry or endpoint in the configuration, for messages.
        base_url: without a slash at the end; "" for an engine inside the process.
        origin: scheme, host in punycode, and port unless it is the scheme's own; "" inside the process.
        weight: its share of the load.
        credential: gives the key of each attempt.
        auth: the profile's scheme: "bearer", "none" or a header's name.
        headers: sent with every request, names in lower case.
        timeouts: in seconds.
        max_retries: retries after a first attempt.
        retry_delay: first back-off in seconds.
        rpm, tpm: requests and tokens a minute, see `rpm_for` and `tpm_for`.
        max_batch_size: most items in one request, None for no limit of the user's.
        max_concurrency: most requests in flight, never more than ``pool_size``.
        pool_size: most connections.
        keepalive: seconds an idle connection is kept.
        compress_requests: whether request bodies go out with gzip.
        stream_usage: whether streams are asked for their usage, see `llmopt.values.profile.Profile`.
        stream_end: what makes a stream complete, likewise.
        cache_ttl: seconds a cached answer is good for, None for the cache's own default.
        cache_dir: folder of the cache, None for the default.
        flags: what llmopt does for its requests.
        options: the plugin's own keys, checked.
        discovered: whether it is asked, unnamed, once a key of the environment is there.
        in_process: whether the plugin answers without a network.
    """

    provider: str
    plugin: str
    index: int = 0
    path: str = ""
    base_url: str = ""
    origin: str = ""
    weight: float = 1.0
    credential: CredentialSource
    auth: str = "bearer"
    headers: Mapping[str, str] = field(factory=dict, repr=repr_names)
    timeouts: Timeouts = field(factory=Timeouts)
    max_retries: int = 2
    retry_delay: float = 1.0
    rpm: Rates = field(factory=Rates)
    tpm: Rates = field(factory=Rates)
    max_batch_size: int | None = None
    max_concurrency: int = 16
    pool_size: int = 64
    keepalive: float = 60.0
    compress_requests: bool = False
    stream_usage: bool = True
    stream_end: Literal["done", "finish"] = "finish"
    cache_ttl: float | None = None
    cache_dir: str | None = None
    flags: Flags = field(factory=Flags)
    options: Mapping[str, Any] = field(factory=dict, repr=repr_names)
    discovered: bool = True
    in_process: bool = False

    def rpm_for(self, *names: str) -> float | None:
        """Requests a minute for the first of these models or deployments that is listed."""
        return self.rpm.of(*names)

    def tpm_for(self, *names: str) -> float | None:
        """Tokens a minute, likewise."""
        return self.tpm.of(*names)

    def settings(self, credential: Secret | None) -> Settings:
        """What a hook may know, with the key of one attempt."""
        return Settings(
            provider=self.provider,
            plugin=self.plugin,
            base_url=self.base_url,
            credential=credential,
            credential_kind=self.credential.kind,
            auth=self.auth,
            headers=self.headers,
            options=self.options,
        )


# A plugin's own configuration keys, checked against what its profile declares.

_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    tuple: "a list",
    dict: "a table",
}


@frozen(kw_only=True)
class Table:
    """Where options stand, for messages.

    Attributes:
        path: of the endpoint, or of the entry if it has but one.
        entry_path: of the entry.
        own: the options that the endpoint itself sets.
    """

    path: str
    entry_path: str
    own: frozenset[str]

    def place(self, key: str) -> str:
        """The path of one option."""
        return child(self.path if key in self.own else self.entry_path, key)

    def keys(self, key: str) -> frozenset[str]:
        """The core's own keys where this option stands."""
        return allowed_keys(EndpointEntry if key in self.own else ProviderEntry)


def checked_options(
    options: Mapping[str, Any], profile: Profile, *, table: Table, environ: Environment
) -> dict[str, Any]:
    """The values of a profile's options, from the configuration or else from the environment.

    Args:
        options: what an entry holds besides the core's own keys.
        profile: declares the options.
        table: where they stand.
        environ: the environment variables.

    Raises:
        ConfigError: a key is unknown, or a value is of a wrong type or none of those allowed.
    """
    declared = {option.name: option for option in profile.options}
    for key in options:
        if key not in declared:
            raise ConfigError(f"{table.place(key)}: {unknown_key(key, table.keys(key) | declared.keys())}")
    found: dict[str, Any] = {}
    for name, option in declared.items():
        value = options.get(name)
        if value is None:
            value = environ.text(option.env)
        if value is not None:
            found[name] = _checked(value, option, table.place(name))
    return found


def _checked(value: object, option: Option, path: str) -> object:
    plain = _typed(value, option.type)
    fault = _fault(plain, option)
    if not fault:
        return plain
    if isinstance(value, EnvText):
        path = f"{path} (environment variable {value.variable})"
    help_line = f" {option.help}" if option.help else ""
    raise ConfigError(f"{path}: {fault}, got {got(plain)}.{help_line}")


def _typed(value: object, kind: type) -> object:
    if kind is bool:
        return as_bool(value)
    if kind in (int, float):
        value = as_number(value)
        return float(value) if kind is float and type(value) is int and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {key: _typed(item, str) for key, item in value.items()}
    # Plugins get plain text.
    return str(value) if isinstance(value, EnvText) else value


def _fault(value: object, option: Option) -> str:
    if not _fits(value, option.type):
        return f"expected {_WORDS.get(option.type, option.type.__name__)}"
    if option.choices and value not in option.choices:
        return f"expected one of {', '.join(map(str, option.choices))}"
    return ""


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    shapes: dict[type, tuple[type, ...]] = {dict: (Mapping,), list: (list, tuple), tuple: (list, tuple)}
    return isinstance(value, shapes.get(kind, (kind,)))


# Base URLs with a gap for something of the user's: an account, a region.

_GAP: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_FILLING: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""No slash, no @ and no colon: whatever is put in, the host stays below the provider's own domain."""


def url_placeholders(url: str | None) -> tuple[str, ...]:
    """Names of the options that a base URL asks for."""
    return tuple(dict.fromkeys(_GAP.findall(url or "")))


def fill_placeholders(
    profile: Profile, options: Mapping[str, Any], *, path: str, needed: bool = True
) -> Profile:
    """A profile whose base URL has no placeholders left.

    Args:
        profile: the plugin's.
        options: the checked values of its options.
        path: of the entry, for messages.
        needed: whether it is an error if a value is missing; if not, there is no base URL then.

    Raises:
        ConfigError: a value is missing, or cannot stand in a URL.
    """
    url = profile.base_url
    for name in url_placeholders(url):
        if name not in options:
            if needed:
                raise ConfigError(f"{path}: there is no base URL; {_choice(profile, name)}.")
            return evolve(profile, base_url=None)
        value = str(options[name])
        if not _FILLING.fullmatch(value):
            raise ConfigError(
                f"{path}: {name} becomes a part of the base URL and may hold letters, digits, '.', '_' "
                "and '-' only."
            )
        url = str(url).replace(f"{{{name}}}", value)
    return profile if url == profile.base_url else evolve(profile, base_url=url)


def _choice(profile: Profile, name: str) -> str:
    option = next((each for each in profile.options if each.name == name), None)
    variables = " or ".join(option.env) if option is not None else ""
    shown = f"set {name}" + (f" ({option.help})" if option is not None and option.help else "")
    return shown + (f", or the environment variable {variables}" if variables else "")


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
        self.profile = fill_placeholders(profile, self.options, path=self.path, needed=not elsewhere)

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
