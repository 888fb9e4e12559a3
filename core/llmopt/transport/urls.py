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

from llmopt.config.urls import DEFAULT_PORTS, InvalidUrl, origin_of, parse_url
from llmopt.errors import ConfigError
from llmopt.values.secret import HiddenStr


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


# Compared by identity: routes and targets are keys of caches on the path of every request.
@frozen(kw_only=True, eq=False)
class Route:
    """Where connections go: all requests to one origin share them.

    Attributes:
        origin: as text.
        authority: host and port as the ``host`` header names them.
        host: name or address, without brackets.
        port: of the host.
        encrypted: whether the scheme is https.
        proxy: the proxy in between, None for a direct connection.
    """

    origin: str
    authority: str
    host: str
    port: int
    encrypted: bool
    proxy: Proxy | None = None

    @property
    def tunnelled(self) -> bool:
        """Whether the proxy only forwards bytes (CONNECT), as for https."""
        return self.proxy is not None and self.encrypted


@frozen(kw_only=True, eq=False)
class Target:
    """Where a request goes: its route, and the URL as the first line of the request has it.

    That is the path with the query, or for a proxy that forwards requests the whole URL (RFC 9112, 3.2), with its escapes
    as they were written: a signature covers them.
    """

    route: Route
    # Its query may hold a key.
    written: str = field(repr=False)


class Targets:
    """A cache of targets; the proxy is determined once per origin.

    Attributes:
        get: returns the target of a URL; raises `ConfigError` for one that cannot be used.
    """

    def __init__(self) -> None:
        self._routes: Final[dict[str, Route]] = {}
        # Bounded: a path or query may change with every call (Azure's deployments, a cursor).
        self.get: Final = lru_cache(_MAX_TARGETS)(self._make)

    def _make(self, url: str) -> Target:
        origin = request_origin(url)
        route = self._routes.get(origin)
        if route is None:
            route = self._routes[origin] = _route(origin)
        # A query may hold a key, and tracebacks can show local variables.
        path = HiddenStr(parse_url(url).rest.partition("#")[0].removesuffix("?"))
        path = HiddenStr(path if path.startswith("/") else f"/{path}")
        forwarded = route.proxy is not None and not route.tunnelled
        return Target(route=route, written=HiddenStr(f"{origin}{path}") if forwarded else path)


def _route(origin: str) -> Route:
    url = parse_url(origin)
    return Route(
        origin=origin,
        authority=origin.partition("://")[2],
        host=url.host,
        port=url.port or DEFAULT_PORTS[url.scheme],
        encrypted=url.encrypted,
        proxy=proxy_for(origin),
    )
