"""The base URL of an endpoint, taken apart strictly."""

from __future__ import annotations

import re
from typing import Final

from attrs import frozen

from llmopt.config.hosts import BadHost, canonical_host, is_loopback
from llmopt.errors import ConfigError

_LONGEST: Final = 2048
_URL: Final = re.compile(r"(?i:(https?))://([^/]*)((?:/[^/]+)*)/?")
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:\[\]]*)(?::([0-9]{0,9}))?")
_PORTS: Final = {"http": 80, "https": 443}
_LAST_PORT: Final = 65535


@frozen(kw_only=True)
class BaseUrl:
    """A checked base URL.

    Attributes:
        url: in its one spelling, without a slash at the end.
        origin: scheme, host and port, without the port that the scheme has anyway.
        host: in punycode; an IPv6 address without brackets.
        encrypted: whether it is https.
    """

    url: str
    origin: str
    host: str
    encrypted: bool


def parse_base_url(text: str, *, path: str, entry: str, allow_http: bool = False) -> BaseUrl:
    """Take a base URL apart.

    Args:
        text: the URL.
        path: where it was configured, for messages.
        entry: path of the entry, for messages.
        allow_http: whether a host other than this machine may be asked without encryption.

    Raises:
        ConfigError: requests cannot or must not go there; the message shows the host at most.
    """
    scheme, authority, rest = _parts(text, path)
    host, port = _host_and_port(authority, path)
    if scheme == "http" and not allow_http and not is_loopback(host):
        raise ConfigError(
            f"{path}: plain http to {host} is refused, because the key and the texts could be read on "
            f"the way; use https, or set allow_http = true in {entry}."
        )
    origin = f"{scheme}://{f'[{host}]' if ':' in host else host}"
    if port is not None and port != _PORTS[scheme]:
        origin = f"{origin}:{port}"
    return BaseUrl(url=origin + rest, origin=origin, host=host, encrypted=scheme == "https")


def _parts(text: str, path: str) -> tuple[str, str, str]:
    fault = _forbidden(text)
    match = None if fault else _URL.fullmatch(text)
    if fault or match is None:
        fault = fault or "expected https://<host>, with a port and a path where needed, and no // in the path"
        raise ConfigError(f"{path}: {fault}.")
    scheme, authority, rest = match.groups()
    if not rest.isascii() or any(part in {".", ".."} for part in rest.split("/")):
        raise ConfigError(f"{path}: the path holds a . or .. step or a character outside ASCII.")
    return scheme.lower(), authority, rest


def _forbidden(text: str) -> str:
    """What makes a URL unfit before it is even taken apart. The text is never shown: it may hold a key."""
    if len(text) > _LONGEST:
        return f"longer than {_LONGEST} characters"
    if not text.isprintable() or " " in text:
        return "it holds a space, a line break or a control character"
    if "\\" in text:
        return "it holds a backslash"
    if "@" in text:
        return "it holds an @; a user name or password does not belong here, give the key as api_key"
    if "?" in text or "#" in text:
        return "it holds a query (?) or a fragment (#), which a base URL must not"
    return ""


def _host_and_port(authority: str, path: str) -> tuple[str, int | None]:
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise ConfigError(f"{path}: expected a host, or a host and a port, after the scheme.")
    name, port = match.groups()
    if port is not None and not 1 <= int(port or 0) <= _LAST_PORT:
        raise ConfigError(f"{path}: a port is a number from 1 to {_LAST_PORT}.")
    try:
        return canonical_host(name), None if port is None else int(port)
    except BadHost as error:
        fault = str(error)
    raise ConfigError(f"{path}: {fault}.")
