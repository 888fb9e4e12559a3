"""Where a request goes: URL, origin and proxy, worked out once."""

from __future__ import annotations

from typing import Final

from attrs import frozen
from yarl import URL

from llmopt.errors import ConfigError
from llmopt.wire.origin import origin_of
from llmopt.wire.proxies import Proxy, proxy_for

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
