"""Host names and addresses: one spelling for each, and those that no request goes to."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address, IPv6Network

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


def matches(host: str, pattern: str) -> bool:
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
