"""The proxy for an origin, from the environment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

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


def proxy_for(origin: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """The proxy that the environment names for an origin, None where requests go straight.

    Lower-case variables win, as everywhere. NO_PROXY lists hosts, each with all below it, host:port,
    addresses, networks such as 10.0.0.0/8, or ``*``. Nothing else is looked at: no netrc, no ALL_PROXY,
    no settings of the system.

    Raises:
        ConfigError: the variable's value cannot be used; the message never holds it.
    """
    parts = urlsplit(origin)
    variable = f"{parts.scheme.upper()}_PROXY"
    text = environment.get(variable.lower()) or _upper(variable, environment)
    excepted = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not text or _bypasses(parts.hostname or "", parts.port, excepted):
        return None
    return _parse(text, variable)


def _upper(variable: str, environment: Mapping[str, str]) -> str | None:
    # In a CGI program HTTP_PROXY is the header "Proxy" of whoever asks.
    forged = variable == "HTTP_PROXY" and "REQUEST_METHOD" in environment
    return None if forged else environment.get(variable)


def _bypasses(host: str, port: int | None, excepted: str) -> bool:
    return any(_matches(host, port, entry.strip().lower()) for entry in excepted.split(","))


def _matches(host: str, port: int | None, entry: str) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        return _within(host, entry)
    name, colon, number = entry.rpartition(":")
    if colon and number.isdecimal() and not name.endswith(":"):
        if port is None or int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").removeprefix(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _within(host: str, network: str) -> bool:
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


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
