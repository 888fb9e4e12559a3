"""Configurations for tests: one provider, whose endpoints are servers that the test runs."""

from __future__ import annotations

from typing import Any, Protocol


class Server(Protocol):
    """A fault server or an emulator."""

    @property
    def base_url(self) -> str:
        """The URL that requests go to."""
        ...


def provider_config(*servers: Server, name: str = "server", **entry: Any) -> dict[str, Any]:
    """A configuration with one provider entry.

    Args:
        servers: the endpoints of the provider. One is the entry's ``base_url``, several are its ``endpoints``.
        name: the name of the entry.
        entry: further keys of the entry; ``plugin`` is "local" unless it is given.
    """
    if len(servers) == 1:
        place: dict[str, Any] = {"base_url": servers[0].base_url}
    else:
        place = {"endpoints": [{"base_url": server.base_url} for server in servers]}
    return {"providers": {name: {"plugin": "local", **place, **entry}}}
