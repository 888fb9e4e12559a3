"""URLs of requests: their origin (scheme, host and port), and the proxy to use.

No network access, and no host name is resolved. `proxy_for` reads HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY from
the environment, and REQUEST_METHOD, because HTTP_PROXY is not trusted in a CGI program. A `Targets` keeps the proxy of
each origin as long as its pool lives, without a lock, so later changes of the environment have no effect on that
origin; it also caches the last 1,024 URLs, whose queries may hold keys.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final
from urllib.parse import unquote

from attrs import field, frozen
from yarl import URL

from llmopt.config.urls import DEFAULT_PORTS, InvalidUrl, origin_of, parse_url
from llmopt.errors import ConfigError


def request_origin(url: str) -> str:
    """Return the origin of the URL of a request, see `llmopt.config.urls.origin_of`.

    Raises:
        ConfigError: the URL cannot be used; the message contains neither its path nor its user information.
    """
    try:
        return origin_of(url)
    except InvalidUrl as error:
        raise ConfigError(f"the URL of the request is not valid: {error}.") from None


@frozen(kw_only=True)
class Proxy:
    """A proxy for requests.

    Attributes:
        url: scheme, host and port only.
        authorization: value of the ``proxy-authorization`` header, None without credentials.
    """

    url: str
    authorization: str | None = field(default=None, repr=False)


def proxy_for(origin: str, environment: Mapping[str, str] = os.environ) -> Proxy | None:
    """Return the proxy for an origin from the environment, None for a direct connection.

    HTTP_PROXY and HTTPS_PROXY count for URLs of their scheme, ALL_PROXY where that is not set. Lower-case variables
    win, as in curl. NO_PROXY lists hosts (each includes its subdomains), host:port, addresses, networks such as
    10.0.0.0/8, or ``*``. Nothing else is read: no netrc, no settings of the system.

    Raises:
        ConfigError: the value of the variable cannot be used; the message never contains it.
    """
    url = parse_url(origin)
    variables = (f"{url.scheme.upper()}_PROXY", "ALL_PROXY")
    texts = ((each, _either_case(each, environment)) for each in variables)
    variable, text = next((pair for pair in texts if pair[1]), ("", None))
    no_proxy = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not text or any(_matches(url.host, url.port, each.strip().lower()) for each in no_proxy.split(",")):
        return None
    return _parse_proxy(text, variable)


def _either_case(variable: str, environment: Mapping[str, str]) -> str | None:
    if text := environment.get(variable.lower()):
        return text
    # In a CGI program HTTP_PROXY holds the client's "Proxy" header (CVE-2016-5388, "httpoxy").
    is_cgi = variable == "HTTP_PROXY" and "REQUEST_METHOD" in environment
    return None if is_cgi else environment.get(variable)


def _matches(host: str, port: int | None, entry: str) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        return _in_network(host, entry)
    name, colon, number = entry.rpartition(":")
    # The colons of a bare IPv6 address such as ``::1`` separate no port.
    if colon and number.isdecimal() and not name.endswith(":"):
        if port is None or int(number) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").removeprefix(".")
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _in_network(host: str, network: str) -> bool:
    try:
        # Not strict: people write 10.1.2.3/8 and mean the network.
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def _parse_proxy(text: str, variable: str) -> Proxy:
    try:
        # curl accepts a proxy without a scheme as http.
        url = parse_url(text if "://" in text else f"http://{text}")
    except InvalidUrl as error:
        raise ConfigError(f"{variable} cannot be used: {error}; write http://host:port.") from None
    if url.scheme not in DEFAULT_PORTS:
        raise ConfigError(
            f"{variable} names a {url.scheme} proxy; only http and https proxies are supported. "
            "Add the host to NO_PROXY to connect without it."
        )
    host = f"[{url.host}]" if ":" in url.host else url.host
    return Proxy(
        url=f"{url.scheme}://{host}:{url.port or DEFAULT_PORTS[url.scheme]}",
        authorization=None if url.userinfo is None else _basic(url.userinfo),
    )


def _basic(userinfo: str) -> str:
    user, _, password = userinfo.partition(":")
    # Special characters of a password stand percent-encoded in a URL; Basic (RFC 7617) encodes them as they
    # are.
    pair = f"{unquote(user)}:{unquote(password)}"
    return "Basic " + b64encode(pair.encode()).decode("ascii")


_MAX_TARGETS: Final = 1024


# Compared by identity: targets are keys of caches on the path of every request.
@frozen(kw_only=True, eq=False)
class Target:
    """Where a request goes: the URL as aiohttp needs it, the same as it is sent, its origin as text, and the proxy."""

    # Its query may hold a key.
    url: URL = field(repr=False)
    # With its escapes as they were written, where ``url`` has ":" for "%3A": a signature covers them.
    written: URL = field(repr=False)
    origin: str
    proxy: Proxy | None = None
    proxy_url: URL | None = None

    @property
    def tunnelled(self) -> bool:
        """Whether the proxy only forwards bytes (CONNECT), as for https."""
        return self.proxy is not None and self.url.scheme == "https"


class Targets:
    """A cache of targets; the proxy is determined once per origin.

    Attributes:
        get: returns the target of a URL; raises `ConfigError` for one that cannot be used.
    """

    def __init__(self) -> None:
        self._proxies: Final[dict[str, Proxy | None]] = {}
        # Bounded: a path or query may change with every call (Azure's deployments, a cursor).
        self.get: Final = lru_cache(_MAX_TARGETS)(self._make)

    def _make(self, url: str) -> Target:
        origin = request_origin(url)
        if origin not in self._proxies:
            self._proxies[origin] = proxy_for(origin)
        try:
            proxy = self._proxies[origin]
            proxy_url = None if proxy is None else URL(proxy.url)
            # Neither URL is given a name: a query may hold a key, and tracebacks can show local variables.
            return Target(
                url=URL(url),
                written=URL(url, encoded=True),
                origin=origin,
                proxy=proxy,
                proxy_url=proxy_url,
            )
        except ValueError:
            raise ConfigError(f"the URL of the request to {origin} cannot be used.") from None
