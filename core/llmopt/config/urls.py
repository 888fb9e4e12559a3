"""Parse URLs strictly: base URLs of endpoints, URLs of requests, addresses of proxies.

A host has one spelling here, so that origins can be compared as text. Error messages never quote a query, user
information or a path, which may hold secrets; they name only the known path of an operation, such as /embeddings.

No I/O: no host name is resolved. No state but a module-level cache of networks, which never change; idna, ipaddress and
urllib.parse are imported at first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import evolve, field, frozen

from llmopt.errors import ConfigError
from llmopt.values.secret import HiddenStr

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address, IPv6Network

MAX_URL_LENGTH: Final = 2048
MAX_PORT: Final = 65535
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(.*)", re.DOTALL)
# A single pattern decides where the host ends; two parsers that disagree are how filters are bypassed.
_AUTHORITY: Final = re.compile(r"(?:(.*)@)?(\[[0-9A-Fa-f:.%]*\]|[^:\[\]@]*)(?::([0-9]{1,9}))?")
_PATH: Final = re.compile(r"(/[^/]+)*/?")
_HOST: Final = re.compile(r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMERIC: Final = re.compile(r"([0-9]+|0x[0-9a-f]*)")
_METADATA_HOSTS: Final = frozenset(
    {
        # Cloud machines get their credentials from these hosts; not all of them are link-local.
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "fd00:ec2::254",
        "fd20:ce::254",
        "metadata",
        "metadata.goog",
        "metadata.google.internal",
    }
)
# Not /models: some clouds serve their whole API below that path.
_OPERATION_PATHS: Final = ("/chat/completions", "/completions", "/embeddings", "/responses")
_IPV4_IN_IPV6: Final = ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
"""Networks whose addresses contain an IPv4 address: compatible, mapped, NAT64 (two), Teredo, 6to4."""


class InvalidUrl(ValueError):
    """A URL that cannot be used. The text says why, without its subject and without any part of the URL but its host."""


@frozen(kw_only=True)
class Url:
    """A parsed URL.

    Attributes:
        scheme: in lower case.
        userinfo: what stands before an "@", None without one.
        host: in lower case and punycode; an IPv6 address compressed and without brackets.
        port: None if the URL names none.
        rest: path, query and fragment as given.
    """

    scheme: str
    userinfo: str | None = field(repr=False)
    host: str
    port: int | None
    rest: str = field(repr=False)

    @property
    def encrypted(self) -> bool:
        """Whether the scheme is https."""
        return self.scheme == "https"

    @property
    def url(self) -> str:
        """The URL in its one spelling, without user information."""
        return self.origin + self.rest

    @property
    def origin(self) -> str:
        """Scheme, host and port, without the scheme's default port: ``http://127.0.0.1:8000``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port in (None, DEFAULT_PORTS.get(self.scheme)):
            return f"{self.scheme}://{host}"
        return f"{self.scheme}://{host}:{self.port}"


def parse_url(text: str) -> Url:
    """Split an absolute URL.

    Raises:
        InvalidUrl: the text is no URL, or its host or port is not valid.
    """
    # Browsers and some libraries read a backslash as a slash, which moves the host's end.
    if any(character <= " " or character == "\\" for character in text):
        raise InvalidUrl("it contains a space, a control character or a backslash")
    match = _URL.fullmatch(text)
    if match is None:
        raise InvalidUrl("expected https://<host>, with a port and a path where needed")
    scheme, authority = match.group(1, 2)
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise InvalidUrl("expected a host, or a host and a port, after the scheme")
    userinfo, name, digits = parts.groups()
    port = None if digits is None else int(digits)
    if port is not None and not 1 <= port <= MAX_PORT:
        raise InvalidUrl(f"a port is a number from 1 to {MAX_PORT}")
    return Url(scheme=scheme.lower(), userinfo=userinfo, host=canonical_host(name), port=port, rest=match[3])


def origin_of(text: str) -> str:
    """The origin of the URL of a request, such as ``http://127.0.0.1:8000``, with the host name in ASCII.

    Raises:
        InvalidUrl: a request cannot be sent there.
    """
    url = parse_url(text)
    if url.scheme not in DEFAULT_PORTS:
        raise InvalidUrl(f"it starts with {url.scheme[:20]!r}; write http:// or https://")
    # URLs appear in logs and tracebacks, where a password must not.
    if url.userinfo is not None:
        raise InvalidUrl("it contains a user name or password; use api_key or headers for keys")
    return url.origin


def canonical_host(text: str) -> str:
    """The one spelling of a host: lower case, punycode, IPv6 compressed and without brackets.

    Raises:
        InvalidUrl: this is not a host.
    """
    if text.startswith("["):
        return _ipv6(text)
    # ``example.com.`` and ``example.com`` are one host; as two spellings they would escape comparisons.
    name = _ascii(text).lower().removesuffix(".")
    # A last label that is numeric makes the host an IPv4 address (WHATWG URL, "ends in a number").
    if _NUMERIC.fullmatch(name.rpartition(".")[2]):
        return _ipv4(name)
    if not _HOST.fullmatch(name):
        raise InvalidUrl("the host is empty or contains a character that no host has")
    return name


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    import idna

    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except UnicodeError:
        raise InvalidUrl("the host is not a valid international name") from None


def _ipv4(text: str) -> str:
    from ipaddress import IPv4Address

    try:
        return str(IPv4Address(text))
    except ValueError:
        # The C library also reads decimal, octal, hexadecimal and short forms: 127.1 and 0x7f000001 are 127.0.0.1
        # to it, and look like ordinary names to a filter.
        raise InvalidUrl("write an IPv4 address as four decimal numbers without leading zeros") from None


def _ipv6(text: str) -> str:
    from ipaddress import IPv6Address

    # A zone (%) names an interface of this machine and has no place in a URL that is shared.
    if not text.endswith("]") or "%" in text:
        raise InvalidUrl("write an IPv6 address in brackets and without an interface (%)")
    try:
        return IPv6Address(text[1:-1]).compressed
    except ValueError:
        raise InvalidUrl("this is not an IPv6 address") from None


# Base URLs: only http(s), no secrets in them, and no host that a request must not reach.


def parse_base_url(
    text: str, *, path: str, entry: str, allow_http: bool = False, operations: bool = False
) -> Url:
    """Parse and check a base URL; a trailing slash and the scheme's default port are dropped.

    Args:
        text: the URL.
        path: path of its configuration key, for messages.
        entry: path of the provider entry, for messages.
        allow_http: whether plain http to another machine is allowed.
        operations: whether it may end in the path of an operation.

    Raises:
        ConfigError: requests cannot or must not go there; the message contains at most the host.
    """
    try:
        url = _checked_url(text)
        if not operations and (pasted := _pasted_path(url.rest)):
            raise InvalidUrl(f"it ends in {pasted}, which llmopt adds to it; leave that part out")
    except InvalidUrl as error:
        problem = str(error)
    else:
        if url.encrypted or allow_http or is_loopback(url.host):
            port = None if url.port == DEFAULT_PORTS[url.scheme] else url.port
            return evolve(url, port=port, rest=url.rest.removesuffix("/"))
        problem = (
            f"plain http to {url.host} is refused, because others on the network could read the key and the texts; "
            f"use https, or set allow_http = true in {entry}"
        )
    # Outside the except block, so that no traceback shows the URL.
    raise ConfigError(f"{path}: {problem}.")


def _checked_url(text: str) -> Url:
    if problem := _forbidden_part(text):
        raise InvalidUrl(problem)
    url = parse_url(text)
    if url.scheme not in DEFAULT_PORTS or not _PATH.fullmatch(url.rest):
        raise InvalidUrl(
            "expected https://<host>, with a port and a path where needed, and no // in the path"
        )
    if not url.rest.isascii() or any(step in {".", ".."} for step in url.rest.split("/")):
        raise InvalidUrl("the path contains a . or .. step or a character outside ASCII")
    _refuse_special_host(url.host)
    return url


_FORBIDDEN: Final = (
    ("\\", "it contains a backslash"),
    ("@", "it contains an @; a user name or password does not belong here, give the key as api_key"),
    ("#", "it contains a fragment (#), which a base URL must not have"),
    ("?", 'it contains a query (?); give its parameters beside base_url, as in query = { name = "value" }'),
)


def _forbidden_part(text: str) -> str:
    if len(text) > MAX_URL_LENGTH:
        return f"longer than {MAX_URL_LENGTH} characters"
    if not text.isprintable() or " " in text:
        return "it contains a space, a line break or a control character"
    return next((problem for character, problem in _FORBIDDEN if character in text), "")


def _pasted_path(path: str) -> str:
    """The path of an operation that a base URL ends in; "" if there is none."""
    path = path.rstrip("/").lower()
    return next((each for each in _OPERATION_PATHS if path.endswith(each)), "")


def _refuse_special_host(host: str) -> None:
    """Refuse hosts that hand out credentials, and addresses that are not those of one server."""
    if host in _METADATA_HOSTS:
        raise InvalidUrl("this is the address of a cloud's metadata service")
    address = _address(host)
    if address is None:
        return
    if address.is_link_local:
        raise InvalidUrl("link-local addresses are refused, because clouds serve credentials there")
    if address.is_unspecified:
        raise InvalidUrl("this address is for listening only; write 127.0.0.1 or [::1]")
    if address.is_multicast or host == "255.255.255.255":
        raise InvalidUrl("this is the address of a group, not of one server")
    # A filter that knows IPv4 addresses only would not recognise these.
    if address.version == 6 and host != "::1" and any(address in network for network in _ipv4_in_ipv6()):
        raise InvalidUrl("an IPv4 address inside an IPv6 address; write the IPv4 address itself")


def _address(host: str) -> IPv4Address | IPv6Address | None:
    if ":" not in host and not _NUMERIC.fullmatch(host.rpartition(".")[2]):
        return None
    from ipaddress import ip_address

    return ip_address(host)


@lru_cache(maxsize=1)
def _ipv4_in_ipv6() -> tuple[IPv6Network, ...]:
    from ipaddress import IPv6Network

    return tuple(IPv6Network(network) for network in _IPV4_IN_IPV6)


def is_loopback(host: str) -> bool:
    """Whether a canonical host is this machine."""
    if host == "localhost" or host.endswith(".localhost") or host == "::1":
        return True
    # The number at the end excludes names such as ``127.0.0.1.example.com``.
    return host.startswith("127.") and bool(_NUMERIC.fullmatch(host.rpartition(".")[2]))


def host_matches(host: str, pattern: str) -> bool:
    """Whether a canonical host matches a pattern; ``*.`` at its beginning means all subdomains."""
    pattern = pattern.lower()
    if pattern.startswith("*."):
        # With the dot, so that ``evil-example.com`` does not match ``*.example.com``.
        return host.endswith(pattern[1:]) and host != pattern[1:]
    return host == pattern


def add_query(url: str, query: Mapping[str, str]) -> str:
    """The URL with more parameters, encoded; each replaces those of the same name that the URL has."""
    if not query:
        return url
    from urllib.parse import quote, unquote_plus

    base, _, present = url.partition("?")
    kept = [each for each in present.split("&") if each and unquote_plus(each.partition("=")[0]) not in query]
    # A parameter may be a key: no local variable of the path of a request may show it.
    added = HiddenStr("&".join(f"{quote(name, safe='')}={quote(query[name], safe='')}" for name in query))
    return HiddenStr(f"{base}?{'&'.join([*kept, added])}")
