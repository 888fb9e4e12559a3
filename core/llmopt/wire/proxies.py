"""The proxy for an origin, from the environment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

from __future__ import annotations

from base64 import b64encode
from typing import Final
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment

from attrs import field, frozen

from llmopt.errors import ConfigError

_SCHEMES: Final = ("http", "https")


@frozen(kw_only=True)
class Proxy:
    """Where requests go through.

    Attributes:
        url: scheme, host and port only.
        authorization: value of the ``proxy-authorization`` header, None without credentials.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)


def proxy_for(origin: str) -> Proxy | None:
    """The proxy that the environment names for an origin, None where requests go straight.

    Nothing else of the environment is looked at: no netrc, no ALL_PROXY, no settings of the system.

    Raises:
        ConfigError: the variable's value cannot be used; the message never holds it.
    """
    scheme, _, authority = origin.partition("://")
    proxies = getproxies_environment()
    text = proxies.get(scheme)
    if not text or proxy_bypass_environment(authority, proxies):
        return None
    return _parse(text, f"{scheme.upper()}_PROXY")


def _parse(text: str, variable: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{variable} is not a URL; write http://host:port.") from None
    if parts.scheme not in _SCHEMES:
        raise ConfigError(
            f"{variable} names a {parts.scheme} proxy, and llmopt speaks to http and https proxies only; "
            "put the host into NO_PROXY to go without."
        )
    if not host:
        raise ConfigError(f"{variable} names no host; write http://host:port.")
    bracketed = f"[{host}]" if ":" in host else host
    default = 443 if parts.scheme == "https" else 80
    return Proxy(
        url=f"{parts.scheme}://{bracketed}:{port or default}",
        authorization=_basic(parts.username, parts.password),
    )


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    pair = f"{unquote(user)}:{unquote(password or '')}"
    return "Basic " + b64encode(pair.encode()).decode("ascii")
