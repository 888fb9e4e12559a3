"""The key of an endpoint: find it, decide whether it may be sent there, and get it for each attempt.

A key from the environment is sent only to the provider's own hosts, so that a changed ``base_url`` cannot leak it. No
key appears in messages, tracebacks or representations.

The only I/O is the token provider of the user or plugin, which `CredentialSource.get` calls each time: an asynchronous
one on the event loop of the attempt, a synchronous one in a thread of that loop's default executor. All calls share a
`CredentialSource`, which never changes, and no lock keeps their calls of the token provider apart. No token is cached
here. Environment variables are passed in; a random number, drawn once per process, keeps fingerprints secret.
"""

from __future__ import annotations

import os
from typing import Final, Literal

from attrs import field, frozen

from llmopt.config.load import Environment
from llmopt.config.schema import EnvText, ProviderEntry, TokenProvider, shown_variable
from llmopt.config.urls import Url, host_matches, is_loopback, parse_base_url
from llmopt.errors import AuthError, ConfigError
from llmopt.values.profile import Profile
from llmopt.values.redaction import place_of
from llmopt.values.secret import HiddenStr, Secret

_PROCESS_KEY: Final = os.urandom(32)
"""Random per process, so that nobody can test a fingerprint against a list of leaked keys."""


@frozen(eq=False)
class CredentialSource:
    """A fixed key, a function that returns a key, no key at all, or the reason why a needed key is missing.

    Attributes:
        owner: path of the entry or endpoint, for messages.
        origin: where the key comes from, in words.
        secret: the key.
        provider: a function, sync or async, that returns a key or token.
        problem: why a needed key is missing, raised when a request asks for it; "" if none is missing.
    """

    owner: str
    origin: str = "none"
    secret: Secret | None = field(default=None, kw_only=True, repr=False)
    provider: TokenProvider | None = field(default=None, kw_only=True, repr=False)
    problem: str = field(default="", kw_only=True, repr=False)

    @property
    def kind(self) -> Literal["key", "token"]:
        """Either "key" for a fixed key, "token" for one that a function returns."""
        return "key" if self.is_static else "token"

    @property
    def is_static(self) -> bool:
        """Whether `static_secret` returns the key, so that nothing need be awaited."""
        return self.provider is None

    def static_secret(self) -> Secret | None:
        """The fixed key; None if there is none or a function returns it.

        Raises:
            ConfigError: a key is needed and missing; the message says what to set.
        """
        if self.problem:
            raise ConfigError(self.problem)
        return self.secret

    async def get(self) -> Secret | None:
        """The key for one attempt.

        Raises:
            ConfigError: a key is needed and missing, or the function returned something else than text.
            AuthError: the function failed.
        """
        if self.provider is None:
            return self.static_secret()
        result = await _secret_of(self.provider, self.owner)
        if isinstance(result, Secret):
            return result
        raise result

    def fingerprint(self, key: bytes | None = None) -> str:
        """A text that is equal for equal keys or functions of this process, and does not reveal the key.

        Args:
            key: a secret that other processes have too; the text is then equal there, and all functions are equal.
        """
        import hmac

        if self.secret is not None:
            text: str = HiddenStr(f"key {self.secret.reveal()}")
        else:
            text = "none" if self.provider is None else f"function {'' if key else _identity(self.provider)}"
        return hmac.digest(key or _PROCESS_KEY, text.encode(), "sha256").hex()


async def _secret_of(provider: TokenProvider, owner: str) -> Secret | AuthError | ConfigError:
    """What a token provider gives, or the error: it is raised elsewhere, so that no traceback shows the token."""
    import asyncio
    import inspect

    # A sync provider may block on a network or a lock.
    value, failure = _call(provider) if _is_async(provider) else await asyncio.to_thread(_call, provider)
    try:
        if inspect.isawaitable(value):
            value = await value
    except Exception as error:  # noqa: BLE001 - a user's function may raise anything; its text must not escape
        failure = _described(error)
    if failure:
        return AuthError(f"the token provider of {owner} failed with {failure}.")
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        kind = type(value).__name__
        return ConfigError(f"the token provider of {owner} returned {kind}; it must return text.")
    try:
        return Secret(value, source=f"the token of {owner}")
    except ConfigError as error:
        return ConfigError(error.message)


def _call(provider: TokenProvider) -> tuple[object, str]:
    """What the function returns, and class and place of its exception."""
    # Caught here and not by the caller, because a StopIteration cannot be raised into a future.
    try:
        return provider(), ""
    except Exception as error:  # noqa: BLE001 - as above
        return None, _described(error)


def _described(error: Exception) -> str:
    # Without its text, which may contain a token.
    return type(error).__name__ + place_of(error, (__file__,))


def _is_async(provider: TokenProvider) -> bool:
    from inspect import iscoroutinefunction

    return iscoroutinefunction(provider) or iscoroutinefunction(type(provider).__call__)


def _identity(provider: TokenProvider) -> str:
    # Each look-up of a bound method makes a new object; the object that it is bound to stays.
    bound = getattr(provider, "__self__", provider)
    return f"{id(bound)} {getattr(provider, '__qualname__', '')}"


# Which key an endpoint gets.


def credential_for(
    entry: ProviderEntry,
    profile: Profile,
    base: Url | None,
    *,
    base_from_environment: bool,
    path: str,
    environ: Environment,
) -> CredentialSource:
    """Choose the key of one endpoint.

    A configured key is sent to whatever base URL is configured. A key from the environment is sent only to the
    profile's own origin and hosts, or to a base URL that came from the environment too.

    Args:
        entry: the entry as it is for this endpoint.
        profile: the provider's profile.
        base: where requests go; None for an engine inside the process.
        base_from_environment: whether an environment variable gave the base URL.
        path: of the entry or endpoint, for messages.
        environ: the environment variables.
    """
    # What the configuration says goes before the environment, which every program of the user shares.
    if isinstance(entry.api_key, Secret):
        return CredentialSource(path, "configuration", secret=entry.api_key)
    if entry.api_key is not None:
        return CredentialSource(path, "token provider", provider=entry.api_key)
    if entry.api_key_env is not None:
        text = environ.first([entry.api_key_env])
        return _from_variable(path, text) if text else _variable_not_set(path, entry.api_key_env)
    text = environ.first(profile.key_env)
    # A process that can set the URL in the environment can read the key there anyway.
    if base is None or base_from_environment or is_own_host(base, profile):
        return _from_variable(path, text) if text else _no_key(path, profile, base)
    return _not_sent(path, profile, text)


def _from_variable(path: str, text: EnvText) -> CredentialSource:
    origin = f"environment variable {text.variable}"
    try:
        return CredentialSource(path, origin, secret=Secret(text, source=origin))
    except ConfigError as error:
        return CredentialSource(path, origin, problem=f"{path}: {error.message}")


def _variable_not_set(path: str, variable: str) -> CredentialSource:
    shown = shown_variable(variable)
    problem = f"{path}: api_key_env names the environment variable {shown}, which is not set."
    return CredentialSource(path, problem=problem)


def _no_key(path: str, profile: Profile, base: Url | None) -> CredentialSource:
    if base is None or not profile.key_required:
        return CredentialSource(path)
    variables = " or ".join(profile.key_env)
    choice = f"set the environment variable {variables}, or api_key" if variables else "set api_key"
    return CredentialSource(path, problem=f"{path}: there is no key; {choice} or api_key_env in {path}.")


def _not_sent(path: str, profile: Profile, text: EnvText | None) -> CredentialSource:
    origin = f"none ({text.variable} is not sent to this base URL)" if text else "none"
    if not profile.key_required:
        return CredentialSource(path, origin)
    problem = (
        f"{path}: set api_key or api_key_env in {path}, because a key from the environment goes only to "
        f"{_own_origins(profile)}."
    )
    return CredentialSource(path, origin, problem=problem)


def _own_origins(profile: Profile) -> str:
    origins = [] if profile.base_url is None else [_profile_url(profile.base_url).origin]
    origins += [f"https://{host}" for host in profile.own_hosts]
    origins += [f"the base URL in the environment variable {name}" for name in profile.base_url_env]
    return " or ".join(origins) or "a base URL from the environment"


def is_own_host(base: Url, profile: Profile) -> bool:
    """Whether a base URL is the provider's own: that of its profile, or one of its hosts over an encrypted connection."""
    if profile.base_url is not None and base.origin == _profile_url(profile.base_url).origin:
        return True
    # A key over plain http is readable by everybody on the way.
    safe = base.encrypted or is_loopback(base.host)
    return safe and any(host_matches(base.host, host) for host in profile.own_hosts)


def _profile_url(text: str) -> Url:
    return parse_base_url(text, path="the profile's base_url", entry="the entry", allow_http=True)
