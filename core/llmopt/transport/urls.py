"""The origin of a URL: scheme, host and port, and nothing that could be secret."""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections.abc import Mapping
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Final
from urllib.parse import unquote, urlsplit

from attrs import field, frozen
from yarl import URL

from llmopt.errors import ConfigError

_DEFAULT_PORT: Final = {"http": 80, "https": 443}
_NUMBER: Final = re.compile(r"\d+|0x[0-9a-f]*")


def origin_of(url: str) -> str:
    """The origin as text, such as ``http://127.0.0.1:8000``; host names in their ASCII form.

    Raises:
        ConfigError: no request can go to this URL; the message holds neither path nor user information.
    """
    if any(character <= " " or character == "\\" for character in url):
        raise ConfigError("the URL of the request holds a space, a control character or a backslash.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"the URL of the request is not one: {_reason(error)}.") from None
    scheme = parts.scheme
    if scheme not in _DEFAULT_PORT:
        raise ConfigError(f"the URL of the request starts with {scheme[:20]!r}; write http:// or https://.")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the URL of the request holds a user name or password; keys belong into api_key or headers."
        )
    host = _ascii(parts.hostname)
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORT[scheme]) else f"{scheme}://{host}:{port}"


def _ascii(host: str | None) -> str:
    if not host:
        raise ConfigError("the URL of the request names no host.")
    if ":" in host:
        return f"[{host}]"
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return _address(host)
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigError("the host name in the URL of the request is not a valid one.") from None


def _address(host: str) -> str:
    # 127.1, 2130706433 and 0x7f000001 are all 127.0.0.1 to the system, and mere names to whoever checks.
    try:
        return str(IPv4Address(host))
    except ValueError:
        raise ConfigError(
            "the host in the URL of the request is an address in an odd form; write four numbers."
        ) from None


def _reason(error: ValueError) -> str:
    # Python quotes the port, and for other mistakes nothing of the URL or its whole authority.
    text = str(error)
    return "its port must be a number from 0 to 65535" if "ort" in text else "check its host and its brackets"


# The proxy for an origin, from the environment: HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

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


# Where a request goes: URL, origin and proxy, worked out once.

_MOST_KEPT: Final = 1024


@frozen(kw_only=True, eq=False)
class Target:
    """A URL in the form aiohttp wants, its origin as text, and the proxy to go through."""

    url: URL
    origin: str
    proxy: Proxy | None = None
    proxy_url: URL | None = None

    @property
    def tunnelled(self) -> bool:
        """Whether a proxy only passes bytes on, as it does for https."""
        return self.proxy is not None and self.url.scheme == "https"


class Targets:
    """The targets seen so far; proxies are asked for once per origin."""

    def __init__(self) -> None:
        self._targets: Final[dict[str, Target]] = {}
        self._proxies: Final[dict[str, Proxy | None]] = {}

    def of(self, url: str) -> Target:
        """The target of a URL.

        Raises:
            ConfigError: no request can go there.
        """
        target = self._targets.get(url)
        if target is None:
            target = self._make(url)
            # A path per call (Azure's deployments, a cursor in a query) must not grow it for ever.
            if len(self._targets) >= _MOST_KEPT:
                self._targets.clear()
            self._targets[url] = target
        return target

    def _make(self, url: str) -> Target:
        origin = origin_of(url)
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin)
        try:
            proxy = self._proxies[origin]
            through = None if proxy is None else URL(proxy.url)
            return Target(url=URL(url), origin=origin, proxy=proxy, proxy_url=through)
        except ValueError:
            raise ConfigError(f"the URL of the request to {origin} cannot be used.") from None
