"""One provider entry: its plugin's hooks and its endpoints."""

from __future__ import annotations

from typing import Final

from llmopt.config.endpoint import Endpoint
from llmopt.providers.hooks import ProviderHooks


class Provider:
    """A configured provider, ready to be asked.

    Attributes:
        name: name of the entry.
        plugin: name of the plugin that serves it.
        hooks: the plugin's hooks.
        endpoints: where requests go; at least one.
    """

    def __init__(self, name: str, plugin: str, hooks: ProviderHooks, endpoints: tuple[Endpoint, ...]) -> None:
        self.name: Final = name
        self.plugin: Final = plugin
        self.hooks: Final = hooks
        self.endpoints: Final = endpoints

    def __repr__(self) -> str:
        return f"Provider({self.name!r}, plugin={self.plugin!r}, endpoints={len(self.endpoints)})"
