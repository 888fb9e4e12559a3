"""The base URL of an endpoint, taken apart strictly."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import frozen

from llmopt.errors import ConfigError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address, IPv6Network


# Host names and addresses: one spelling for each, and those that no request goes to.

_NAME: Final = re.compile(r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_NUMERIC: Final = re.compile(r"([0-9]+|0x[0-9a-f]*)")
_METADATA: Final = frozenset(
    {
        # Cloud machines hand out their credentials here; not all of it is link-local.
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
_IPV6_FORMS: Final = ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
"""Networks whose addresses hold an IPv4 address: compatible, mapped, NAT64 (two), Teredo, 6to4."""


class BadHost(ValueError):
    """A host that no request goes to; the text says why."""


def canonical_host(text: str) -> str:
    """The one spelling of a host: small letters, punycode, IPv6 without brackets and compressed.

    Raises:
        BadHost: it is no host, or one of those that are refused; the text does not hold it.
    """
    if text.startswith("["):
        host = _ipv6(text)
    else:
        name = _ascii(text).lower().removesuffix(".")
        host = _ipv4(name) if _NUMERIC.fullmatch(name.rpartition(".")[2]) else name
        if not _NAME.fullmatch(host):
            raise BadHost("the host is empty or holds a character that no host has")
    if host in _METADATA:
        raise BadHost("this is the address of a cloud's metadata service")
    return host


def is_loopback(host: str) -> bool:
    """Whether a canonical host is this machine itself."""
    if host == "localhost" or host.endswith(".localhost") or host == "::1":
        return True
    return host.startswith("127.") and bool(_NUMERIC.fullmatch(host.rpartition(".")[2]))


def host_matches(host: str, pattern: str) -> bool:
    """Whether a canonical host is the one of ``pattern``; ``*.`` at its beginning means all below."""
    pattern = pattern.lower()
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and host != pattern[1:]
    return host == pattern


def _ascii(text: str) -> str:
    if text.isascii():
        return text
    import idna

    try:
        return idna.encode(text, uts46=True).decode("ascii")
    except UnicodeError:
        raise BadHost("the host is no valid international name") from None


def _ipv4(text: str) -> str:
    from ipaddress import IPv4Address

    try:
        address = IPv4Address(text)
    except ValueError:
        # Decimal, octal, hexadecimal and short forms: libc reads them, people and filters do not.
        raise BadHost("an IPv4 address is written as four decimal numbers without leading zeros") from None
    _refuse(address)
    return str(address)


def _ipv6(text: str) -> str:
    from ipaddress import IPv6Address

    if not text.endswith("]") or "%" in text:
        raise BadHost("an IPv6 address stands in brackets and names no interface")
    try:
        address = IPv6Address(text[1:-1])
    except ValueError:
        raise BadHost("this is no IPv6 address") from None
    _refuse(address)
    if address.compressed != "::1" and any(address in network for network in _embedding()):
        raise BadHost("an IPv4 address inside an IPv6 address; write the IPv4 address itself")
    return address.compressed


def _refuse(address: IPv4Address | IPv6Address) -> None:
    if address.is_link_local:
        raise BadHost("link-local addresses are refused; a cloud's metadata service is among them")
    if address.is_unspecified:
        raise BadHost("this is the address for listening on; write 127.0.0.1 or [::1]")
    if address.is_multicast or str(address) == "255.255.255.255":
        raise BadHost("this is the address of a group, not of a server")


@lru_cache(maxsize=1)
def _embedding() -> tuple[IPv6Network, ...]:
    from ipaddress import IPv6Network

    return tuple(IPv6Network(form) for form in _IPV6_FORMS)


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
