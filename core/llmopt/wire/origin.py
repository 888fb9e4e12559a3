"""The origin of a URL: scheme, host and port, and nothing that could be secret."""

from __future__ import annotations

import re
from ipaddress import IPv4Address
from typing import Final
from urllib.parse import urlsplit

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
