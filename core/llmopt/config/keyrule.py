"""Which key goes where: a key from the environment never leaves for a place it was not made for."""

from __future__ import annotations

from llmopt.config.baseurl import BaseUrl, parse_base_url
from llmopt.config.credential import CredentialSource
from llmopt.config.environment import Environment
from llmopt.config.envtext import EnvText
from llmopt.config.fields import shown_variable
from llmopt.config.hosts import is_loopback, matches
from llmopt.config.tree import ProviderEntry
from llmopt.errors import ConfigError
from llmopt.values.profile import Profile
from llmopt.values.secret import Secret


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
    return safe and any(matches(base.host, host) for host in profile.own_hosts)


def _own_url(text: str) -> BaseUrl:
    return parse_base_url(text, path="the profile's base_url", entry="the entry", allow_http=True)
