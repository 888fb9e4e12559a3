"""Where the key of an endpoint comes from, attempt by attempt."""

from __future__ import annotations

import os
from typing import Final, Literal

from llmopt.config.load import Environment
from llmopt.config.schema import EnvText, ProviderEntry, TokenProvider, shown_variable
from llmopt.config.urls import BaseUrl, host_matches, is_loopback, parse_base_url
from llmopt.errors import AuthError, ConfigError
from llmopt.values.profile import Profile
from llmopt.values.secret import Secret

_PROCESS_KEY: Final = os.urandom(32)
"""Fingerprints mean nothing outside this process, so that none can be tried against a list of keys."""


class CredentialSource:
    """A key that is there, a function that gives one, none, or the reason why there is none.

    Args:
        owner: path of the entry or endpoint, for messages.
        origin: where the key comes from, in words.
        secret: the key.
        provider: a function, sync or async, that gives a key or token.
        problem: why there is no key although one is needed; raised when it is asked for.
    """

    __slots__ = ("_origin", "_owner", "_problem", "_provider", "_secret")

    def __init__(
        self,
        owner: str,
        origin: str = "none",
        *,
        secret: Secret | None = None,
        provider: TokenProvider | None = None,
        problem: str = "",
    ) -> None:
        self._owner: Final = owner
        self._origin: Final = origin
        self._secret: Final = secret
        self._provider: Final = provider
        self._problem: Final = problem

    @property
    def kind(self) -> Literal["key", "token"]:
        """Whether it is a fixed "key" or a "token" that a function gives."""
        return "key" if self._provider is None else "token"

    @property
    def is_static(self) -> bool:
        """Whether `static_secret` already says all, so that nothing need be awaited."""
        return self._provider is None

    @property
    def problem(self) -> str:
        """Why there is no key although one is needed; "" if all is well."""
        return self._problem

    def static_secret(self) -> Secret | None:
        """The key that is known without asking a function for it.

        Raises:
            ConfigError: a key is needed and there is none; the message says what to set.
        """
        if self._problem:
            raise ConfigError(self._problem)
        return self._secret

    async def get(self) -> Secret | None:
        """The key or token for one attempt; None where none is needed.

        Raises:
            ConfigError: there is none, or the function returned something that is none.
            AuthError: the function failed.
        """
        if self._provider is None:
            return self.static_secret()
        return self._secret_of(await _asked(self._provider))

    def describe(self) -> str:
        """Where the key comes from, for people."""
        return self._origin

    def fingerprint(self) -> str:
        """The same for the same key or function, different for others, and no help in finding the key."""
        import hmac

        if self._secret is not None:
            text = f"key {self._secret.reveal()}"
        else:
            text = "none" if self._provider is None else f"function {_identity(self._provider)}"
        return hmac.digest(_PROCESS_KEY, text.encode(), "sha256").hex()

    def __repr__(self) -> str:
        return f"CredentialSource({self._owner!r}, {self._origin!r})"

    def _secret_of(self, answer: _Answer) -> Secret:
        found, failure = answer.found, answer.failure
        # The text of the failure may hold a token, so only its kind is told, and it is not chained.
        del answer
        if failure:
            raise AuthError(f"the token provider of {self._owner} failed with {failure}.")
        if isinstance(found, Secret):
            return found
        if isinstance(found, str):
            found = _checked(found, self._owner)
            if isinstance(found, Secret):
                return found
            raise ConfigError(found)
        kind = type(found).__name__
        del found
        raise ConfigError(f"the token provider of {self._owner} returned {kind}; it must return text.")


class _Answer:
    """What a function gave, or the kind of its failure; shows neither."""

    __slots__ = ("failure", "found")

    def __init__(self, found: object = None, failure: str = "") -> None:
        self.found = found
        self.failure = failure


async def _asked(provider: TokenProvider) -> _Answer:
    import asyncio
    import inspect

    if _is_async(provider):
        answer = _call(provider)
    else:
        # It may block, on a network or a lock.
        answer = await asyncio.to_thread(_call, provider)
    if inspect.isawaitable(answer.found):
        try:
            answer.found = await answer.found
        except Exception as error:  # noqa: BLE001 - whatever a user's function raises, its text stays inside
            return _Answer(failure=type(error).__name__)
    return answer


def _call(provider: TokenProvider) -> _Answer:
    # Caught here and not by the caller: a StopIteration never comes back from a thread.
    try:
        return _Answer(provider())
    except Exception as error:  # noqa: BLE001 - as above
        return _Answer(failure=type(error).__name__)


def _is_async(provider: TokenProvider) -> bool:
    from inspect import iscoroutinefunction

    return iscoroutinefunction(provider) or iscoroutinefunction(type(provider).__call__)


def _checked(text: str, owner: str) -> Secret | str:
    try:
        return Secret(text, source=f"the token of {owner}")
    except ConfigError as error:
        return error.message


def _identity(provider: TokenProvider) -> str:
    # A bound method is a new object each time it is looked up; what it is bound to is not.
    bound = getattr(provider, "__self__", provider)
    return f"{id(bound)} {getattr(provider, '__qualname__', '')}"


# Which key goes where: a key from the environment never leaves for a place it was not made for.


def credential_for(
    entry: ProviderEntry,
    profile: Profile,
    base: BaseUrl | None,
    *,
    vouched: bool,
    path: str,
    environ: Environment,
) -> CredentialSource:
    """The key of one endpoint.

    A key that the configuration gives goes where that configuration points. A key that merely lies in
    the environment goes to the profile's own origin and hosts, or to a base URL that came from the
    environment too.

    Args:
        entry: the entry as it is for this endpoint.
        profile: what the plugin says of the provider.
        base: where requests go, None for an engine inside the process.
        vouched: whether the base URL came from the environment.
        path: of the entry or endpoint, for messages.
        environ: the environment variables.
    """
    if isinstance(entry.api_key, Secret):
        return CredentialSource(path, "configuration", secret=entry.api_key)
    if entry.api_key is not None:
        return CredentialSource(path, "token provider", provider=entry.api_key)
    if entry.api_key_env is not None:
        text = environ.text([entry.api_key_env])
        return _from_variable(path, text) if text else _unset(path, entry.api_key_env)
    text = environ.text(profile.key_env)
    if base is None or vouched or _is_own(base, profile):
        return _from_variable(path, text) if text else _none(path, profile, base)
    return _withheld(path, profile, text)


def _from_variable(path: str, text: EnvText) -> CredentialSource:
    origin = f"environment variable {text.variable}"
    try:
        return CredentialSource(path, origin, secret=Secret(text, source=origin))
    except ConfigError as error:
        return CredentialSource(path, origin, problem=f"{path}: {error.message}")


def _unset(path: str, variable: str) -> CredentialSource:
    shown = shown_variable(variable)
    problem = f"{path}: api_key_env names the environment variable {shown}, which is not set."
    return CredentialSource(path, problem=problem)


def _none(path: str, profile: Profile, base: BaseUrl | None) -> CredentialSource:
    if base is None or not profile.key_required:
        return CredentialSource(path)
    variables = " or ".join(profile.key_env)
    choice = f"set the environment variable {variables}, or api_key" if variables else "set api_key"
    return CredentialSource(path, problem=f"{path}: there is no key; {choice} or api_key_env in {path}.")


def _withheld(path: str, profile: Profile, text: EnvText | None) -> CredentialSource:
    origin = f"none ({text.variable} is not sent to this base URL)" if text else "none"
    if not profile.key_required:
        return CredentialSource(path, origin)
    problem = (
        f"{path}: set api_key or api_key_env in {path}, because a key from the environment goes only to "
        f"{_own_places(profile)}."
    )
    return CredentialSource(path, origin, problem=problem)


def _own_places(profile: Profile) -> str:
    places = [] if profile.base_url is None else [_own_url(profile.base_url).origin]
    places += [f"https://{host}" for host in profile.own_hosts]
    places += [f"the base URL in the environment variable {name}" for name in profile.base_url_env]
    return " or ".join(places) or "a base URL from the environment"


def _is_own(base: BaseUrl, profile: Profile) -> bool:
    if profile.base_url is not None and base.origin == _own_url(profile.base_url).origin:
        return True
    safe = base.encrypted or is_loopback(base.host)
    return safe and any(host_matches(base.host, host) for host in profile.own_hosts)


def _own_url(text: str) -> BaseUrl:
    return parse_base_url(text, path="the profile's base_url", entry="the entry", allow_http=True)
