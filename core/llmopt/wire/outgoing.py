"""A request as aiohttp's connector wants it: for the way it shows, not to be sent."""

from __future__ import annotations

import asyncio

from aiohttp import ClientRequest
from multidict import CIMultiDict

from llmopt.wire.target import Target
from llmopt.wire.trip import Trip


class Outgoing(ClientRequest):
    """Says where a connection leads; ``trip`` is told how far it has come about."""

    trip: Trip | None


def way_to(target: Target, loop: asyncio.AbstractEventLoop, trip: Trip | None = None) -> Outgoing:
    """The way to a target."""
    proxy, headers = target.proxy, None
    if proxy is not None and proxy.authorization is not None and target.tunnelled:
        # A fresh one each time: aiohttp adds to it after it has hashed it.
        headers = CIMultiDict({"proxy-authorization": proxy.authorization})
    made = Outgoing(
        "GET",
        target.url,
        loop=loop,
        proxy=None if proxy is None else target.proxy_url,
        proxy_headers=headers,
    )
    made.trip = trip
    return made
