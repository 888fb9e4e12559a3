"""Resolve a configured provider entry into its endpoints: plugin profile < entry < endpoint.

It reads no configuration or certificate and opens no connections. Environment variables are passed in, except that a
``~`` in ``cache_dir``, ``ca_file``, ``client_cert`` and ``client_key`` is expanded to the home folder of the user, by
HOME or the system's list of users. It calls the plugin's hook `provider_profile`, once for each endpoint, where that is
given in place of a profile. Token providers are kept, not called. No clock, no state.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from attrs import asdict, evolve, field, fields, frozen

from llmopt.config.credentials import CredentialSource, credential_for, is_own_host
from llmopt.config.load import Environment, allowed_keys, overlay_endpoint
from llmopt.config.schema import (
    KIND_NAMES,
    EndpointEntry,
    EnvText,
    Flags,
    ProviderEntry,
    TimeoutsEntry,
    join_path,
    kind_name,
    parse_bool,
    parse_number,
    to_headers,
    unknown_key_message,
)
from llmopt.config.urls import Url, parse_base_url
from llmopt.errors import ConfigError
from llmopt.values.calls import Settings
from llmopt.values.profile import MAX_EVENT_BYTES, Option, Profile, StreamEnd, Timeouts
from llmopt.values.secret import Secret, repr_names

if TYPE_CHECKING:
    from llmopt.values.catalog import Model

ProfileSource = Profile | Callable[[ProviderEntry], Profile]
"""A profile, or a function that returns the profile for an entry."""


@frozen(kw_only=True)
class Rates:
    """Allowances per minute: one for every model, or one for each.

    Attributes:
        default: for names that are not listed; None for no limit.
        by_name: for single models or deployments.
        usual: whether the default is that of the provider's profile, which is a guess about the account.
    """

    default: float | None = None
    by_name: Mapping[str, float] = field(factory=dict)
    usual: bool = False

    def get(self, *names: str) -> float | None:
        """The allowance of the first of these names that is listed, else the default."""
        for name in names:
            if name in self.by_name:
                return self.by_name[name]
        return self.default

    def is_configured(self, *names: str) -> bool:
        """Whether the user gave the allowance that `get` returns."""
        return not self.usual or any(name in self.by_name for name in names)


@frozen(kw_only=True)
class Endpoint:
    """One endpoint of a provider entry, with every value that the configuration or the profile gives for it.

    Attributes:
        provider: name of the entry.
        plugin: name of the plugin that serves it.
        index: position among the endpoints of the entry.
        path: of the entry or endpoint in the configuration, for messages.
        base_url: without a trailing slash; "" for an engine inside the process.
        origin: scheme, host in punycode, and port unless it is the scheme's default; "" inside the process.
        weight: share of the load, relative to the other endpoints.
        credential: gives the key of each attempt.
        auth: "bearer", "none", or the name of the header that carries the key.
        headers: sent with every request; names in lower case.
        query: parameters added to the URL of every request.
        ca_file: path of the certificate authorities, None for the system's.
        client_cert: path of the client's certificate.
        client_key: path of its private key, None if ``client_cert`` contains it.
        timeouts: in seconds.
        max_retries: retries after the first attempt.
        retry_delay: first backoff in seconds.
        rpm: requests per minute.
        tpm: tokens per minute.
        max_batch_size: maximum items in one request; None for no configured limit.
        max_concurrency: maximum requests in flight, at most ``pool_size``.
        pool_size: maximum connections.
        keepalive: seconds that an idle connection is kept.
        transport: "pool" for llmopt's own connections, "httpx" for those of httpx.
        compress_requests: whether request bodies are compressed with gzip.
        stream_usage: whether streams are asked for their usage, see `llmopt.values.profile.Profile`.
        max_event_bytes: maximum size of one event of a stream.
        stream_end: what makes a stream complete, see `llmopt.values.profile.Profile`.
        cache_ttl: seconds that a cached response is fresh; None for the default of the cache.
        cache_dir: folder of the cache; None for the default.
        flags: the features that are on.
        options: the plugin's own keys, checked.
        discovered: whether ``batch_list_models()`` includes it as soon as its key is in the environment.
        in_process: whether the plugin answers without a network.
        operations: what it can be asked for, None if that is not known.
        models: the models that the plugin knows, where it has no list of models.
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
    query: Mapping[str, str] = field(factory=dict, repr=repr_names)
    ca_file: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    timeouts: Timeouts = field(factory=Timeouts)
    max_retries: int = 2
    retry_delay: float = 1.0
    rpm: Rates = field(factory=Rates)
    tpm: Rates = field(factory=Rates)
    max_batch_size: int | None = None
    max_concurrency: int = 16
    pool_size: int = 64
    keepalive: float = 60.0
    transport: str = "pool"
    compress_requests: bool = False
    stream_usage: bool = True
    max_event_bytes: int = MAX_EVENT_BYTES
    stream_end: StreamEnd = "finish"
    cache_ttl: float | None = None
    cache_dir: str | None = None
    flags: Flags = field(factory=Flags)
    options: Mapping[str, Any] = field(factory=dict, repr=repr_names)
    discovered: bool = True
    in_process: bool = False
    operations: frozenset[str] | None = None
    models: tuple[Model, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """Its origin, or ``in-process:`` and the provider's name for an engine inside this process."""
        return self.origin or f"in-process:{self.provider}"

    def settings(self, credential: Secret | None) -> Settings:
        """The part that hooks may see, with the key of one attempt."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in _SETTINGS_FIELDS}
        return Settings(**shared, credential=credential, credential_kind=self.credential.kind)


def _shared_fields(kind: type) -> frozenset[str]:
    return frozenset(each.name for each in fields(kind)) & frozenset(each.name for each in fields(Endpoint))


_SETTINGS_FIELDS: Final = _shared_fields(Settings) - {"credential"}
_PROFILE_FIELDS: Final = _shared_fields(Profile)
_ENTRY_FIELDS: Final = _shared_fields(ProviderEntry)
_NO_OVERRIDES: Final = EndpointEntry()


def resolve_endpoints(
    entry: ProviderEntry,
    profile: ProfileSource,
    *,
    client_flags: Flags,
    environ: Mapping[str, str],
) -> tuple[Endpoint, ...]:
    """Resolve the endpoints of an entry; there is at least one.

    A missing key is not an error here: `CredentialSource` raises when a request needs it.

    Args:
        entry: the configured entry.
        profile: the provider's profile, or a function that returns it for the entry as it is for one endpoint.
        client_flags: the client's flags; those of the entry override them.
        environ: the environment variables.

    Raises:
        ConfigError: a base URL is missing or refused, or the plugin has no such key.
    """
    environ = Environment(environ)
    return tuple(
        _Resolver(entry, profile, index, environ).endpoint(client_flags)
        for index in range(max(1, len(entry.endpoints)))
    )


class _Resolver:
    """Resolves one endpoint of an entry."""

    def __init__(
        self, entry: ProviderEntry, profile: ProfileSource, index: int, environ: Environment
    ) -> None:
        self.overrides = entry.endpoints[index] if entry.endpoints else _NO_OVERRIDES
        self.entry = overlay_endpoint(entry, self.overrides)
        self.profile = profile if isinstance(profile, Profile) else profile(self.entry)
        self.index = index
        self.environ = environ
        self.entry_path = join_path("providers", entry.name)
        has_endpoints = bool(entry.endpoints)
        self.path = (
            join_path(join_path(self.entry_path, "endpoints"), index) if has_endpoints else self.entry_path
        )

    def endpoint(self, client_flags: Flags) -> Endpoint:
        options = self._options()
        entry = self.entry
        # With a base URL of the user's own, the options that fill the profile's are not needed.
        elsewhere = bool(entry.base_url or self.environ.first(self.profile.base_url_env))
        profile = self.profile = fill_placeholders(
            self.profile, options, path=self.path, needed=not elsewhere
        )
        base, from_environment = self._base_url()
        credential = credential_for(
            entry, profile, base, base_from_environment=from_environment, path=self.path, environ=self.environ
        )
        # By field name: the profile's value, then the entry's where it has one; below what is more than that.
        values: dict[str, Any] = {name: getattr(profile, name) for name in _PROFILE_FIELDS}
        values |= {name: value for name in _ENTRY_FIELDS if (value := getattr(entry, name)) is not None}
        values |= {
            "provider": entry.name,
            "plugin": str(entry.plugin_name),
            "index": self.index,
            "path": self.path,
            "base_url": base.url if base else "",
            "origin": base.origin if base else "",
            "weight": 1.0 if self.overrides.weight is None else self.overrides.weight,
            "credential": credential,
            "headers": {**to_headers(profile.headers), **entry.headers},
            "timeouts": _merge_timeouts(entry.timeouts, profile.timeouts),
            "rpm": _merge_rates(entry.rpm, profile.rpm),
            "tpm": _merge_rates(entry.tpm, profile.tpm),
            "cache_dir": _expand_user(entry.cache_dir),
            "ca_file": _expand_user(entry.ca_file or self._shared_ca_file(base)),
            "client_cert": _expand_user(entry.client_cert),
            "client_key": self._client_key(),
            "flags": client_flags.overridden(entry.flags),
            "options": options,
            # What ends a stream is the habit of the server at an address, and not of the plugin.
            "stream_end": profile.stream_end if base is None or is_own_host(base, profile) else "any",
            **_sizes(entry, profile),
        }
        return Endpoint(**values)

    def _options(self) -> dict[str, Any]:
        """The values of the plugin's own keys, from the configuration or else from the environment."""
        configured, declared = self.entry.options, {option.name: option for option in self.profile.options}
        for key in configured:
            # A misspelled key that is ignored would be noticed much later, if ever.
            if key not in declared:
                known = allowed_keys(EndpointEntry if key in self.overrides.options else ProviderEntry)
                raise ConfigError(
                    f"{self._option_path(key)}: {unknown_key_message(key, known | declared.keys())}"
                )
        values: dict[str, Any] = {}
        for name, option in declared.items():
            value = configured.get(name)
            if value is None:
                value = self.environ.first(option.env)
            if value is not None:
                values[name] = _checked_option(value, option, self._option_path(name))
        return values

    def _option_path(self, key: str) -> str:
        return join_path(self.path if key in self.overrides.options else self.entry_path, key)

    def _shared_ca_file(self, base: Url | None) -> str | None:
        """The certificate authorities that another program's variable names, where none are configured.

        Companies set REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE for all programs of a machine. OpenSSL reads SSL_CERT_FILE
        and SSL_CERT_DIR itself; these win.
        """
        if base is None or not base.encrypted or self.environ.first(("SSL_CERT_FILE", "SSL_CERT_DIR")):
            return None
        return self.environ.first(("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))

    def _client_key(self) -> str | None:
        if self.entry.client_key is not None and self.entry.client_cert is None:
            raise ConfigError(f"{self.path}.client_key: it needs client_cert, the certificate of this key.")
        return _expand_user(self.entry.client_key)

    def _base_url(self) -> tuple[Url | None, bool]:
        """The base URL, and whether an environment variable gave it."""
        entry, profile = self.entry, self.profile
        path = join_path(self.entry_path if self.overrides.base_url is None else self.path, "base_url")
        if profile.in_process:
            if entry.base_url is None:
                return None, False
            raise ConfigError(f"{path}: this provider works inside the process; leave base_url out.")
        text = entry.base_url or self.environ.first(profile.base_url_env) or profile.base_url
        if text is None:
            raise ConfigError(
                f"{self.path}: there is no base URL; set base_url{_or_variable(profile.base_url_env)}."
            )
        if isinstance(text, EnvText):
            path = f"{path} (environment variable {text.variable})"
        url = parse_base_url(
            text,
            path=path,
            entry=self.entry_path,
            allow_http=bool(entry.allow_http),
            operations=profile.reads_base_url,
        )
        return url, isinstance(text, EnvText)


def _or_variable(variables: tuple[str, ...]) -> str:
    return f", or the environment variable {' or '.join(variables)}" if variables else ""


def _expand_user(path: str | None) -> str | None:
    if path is None:
        return None
    # Not Path.expanduser, which raises for an unknown user.
    expanded = os.path.expanduser(str(path))  # noqa: PTH111
    # Messages about the file name the variable.
    return EnvText(expanded, path.variable) if isinstance(path, EnvText) else expanded


def _sizes(entry: ProviderEntry, profile: Profile) -> dict[str, int]:
    """Requests in flight and connections. Without a connection for each, requests would wait in the pool."""
    concurrency = profile.max_concurrency if entry.max_concurrency is None else entry.max_concurrency
    # max_concurrency above the profile's pool size grows the pool, unless pool_size is configured too.
    pool = entry.pool_size or max(profile.pool_size, entry.max_concurrency or 1)
    return {"max_concurrency": min(concurrency, pool), "pool_size": pool}


def _merge_rates(configured: float | Mapping[str, float] | None, usual: float | None) -> Rates:
    if configured is None:
        return Rates(default=usual, usual=True)
    if not isinstance(configured, Mapping):
        return Rates(default=configured)
    by_name = {name: rate for name, rate in configured.items() if name != "default"}
    default = configured.get("default", usual)
    return Rates(default=default, by_name=by_name, usual="default" not in configured)


def _merge_timeouts(configured: TimeoutsEntry, usual: Timeouts) -> Timeouts:
    """``read`` alone bounds every attempt, unless a more specific timeout is configured too."""
    values = {key: value for key, value in asdict(configured).items() if value is not None}
    read = configured.read
    if read is not None:
        values = {"read_large": read, "catalog": min(read, usual.catalog), **values}
    return evolve(usual, **values, configured=frozenset(values))


# The plugin's own keys: each value must have the type that its `Option` declares.


def _checked_option(value: object, option: Option, path: str) -> object:
    converted = _convert(value, option.type)
    problem = _problem(converted, option)
    if not problem:
        return converted
    if isinstance(value, EnvText):
        path = f"{path} (environment variable {value.variable})"
    help_text = f" {option.help}" if option.help else ""
    raise ConfigError(f"{path}: {problem}, got {kind_name(converted)}.{help_text}")


def _convert(value: object, kind: type) -> object:
    if kind is bool:
        return parse_bool(value)
    if kind in (int, float):
        value = parse_number(value)
        # Integers above 2^53 cannot be floats without a loss.
        return float(value) if kind is float and type(value) is int and abs(value) < 2**53 else value
    if isinstance(value, Mapping):
        return {key: _convert(item, str) for key, item in value.items()}
    # Plugins get plain text.
    return str(value) if isinstance(value, EnvText) else value


def _problem(value: object, option: Option) -> str:
    if not _has_type(value, option.type):
        return f"expected {KIND_NAMES.get(option.type, option.type.__name__)}"
    if option.choices and value not in option.choices:
        return f"expected one of {', '.join(map(str, option.choices))}"
    return ""


def _has_type(value: object, kind: type) -> bool:
    # Before the general check, because bool is a subclass of int.
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, float) and not math.isfinite(value):
        return False
    accepted: dict[type, tuple[type, ...]] = {dict: (Mapping,), list: (list, tuple), tuple: (list, tuple)}
    return isinstance(value, accepted.get(kind, (kind,)))


# Placeholders in a profile's base URL, such as {account}, that the user's options fill.

_PLACEHOLDER: Final = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_PLACEHOLDER_VALUE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
"""No slash, @ or colon: no value can move the request to a host outside the provider's domain."""


def url_placeholders(url: str | None) -> tuple[str, ...]:
    """Names of the options that a base URL needs."""
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(url or "")))


def fill_placeholders(
    profile: Profile, options: Mapping[str, Any], *, path: str, needed: bool = True
) -> Profile:
    """Put option values into the base URL of a profile.

    Args:
        profile: the plugin's profile.
        options: the checked values of its options.
        path: path of the entry, for messages.
        needed: whether a missing value is an error; if not, the returned profile has no base URL.

    Raises:
        ConfigError: a value is missing, or cannot stand in a URL.
    """
    url = profile.base_url
    for name in url_placeholders(url):
        if name not in options:
            if needed:
                raise ConfigError(f"{path}: there is no base URL; {_how_to_set(profile, name)}.")
            return evolve(profile, base_url=None)
        value = str(options[name])
        if not _PLACEHOLDER_VALUE.fullmatch(value):
            raise ConfigError(
                f"{path}: {name} becomes a part of the base URL and may contain letters, digits, '.', '_' "
                "and '-' only."
            )
        url = str(url).replace(f"{{{name}}}", value)
    return profile if url == profile.base_url else evolve(profile, base_url=url)


def _how_to_set(profile: Profile, name: str) -> str:
    option = next((each for each in profile.options if each.name == name), Option(name=name))
    return f"set {name}" + (f" ({option.help})" if option.help else "") + _or_variable(option.env)
