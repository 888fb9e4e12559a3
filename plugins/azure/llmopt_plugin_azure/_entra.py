"""Entra ID: which scope a host wants, and tokens from azure-identity.

azure-identity is imported when the first token is asked for, in the thread that asks: the import
takes half a second, and finding a credential may ask the network.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Final
from urllib.parse import urlsplit

from llmopt import ConfigError, Settings

_CLASSIC_SCOPE: Final = "https://cognitiveservices.azure.com/.default"
# The API description names one scope for every host, Microsoft's documentation another one for
# Foundry's, and field reports differ; so each can be set as token_scope.
_BY_HOST: Final[Mapping[str, str]] = {
    ".services.ai.azure.com": "https://ai.azure.com/.default",
    ".azure.us": "https://cognitiveservices.azure.us/.default",
    ".azure.cn": "https://cognitiveservices.azure.cn/.default",
}


def scope_of(settings: Settings) -> str:
    """The scope of the tokens for an endpoint."""
    configured = settings.options.get("token_scope")
    if configured:
        return str(configured)
    host = urlsplit(settings.base_url).hostname or ""
    return next((scope for end, scope in _BY_HOST.items() if host.endswith(end)), _CLASSIC_SCOPE)


def token_provider(settings: Settings) -> Callable[[], str]:
    """A function that returns a valid token.

    Raises:
        ConfigError: azure-identity is not installed.
    """
    if not _is_installed():
        raise ConfigError(
            f'providers.{settings.provider}: auth = "entra" needs azure-identity; '
            'try: pip install "llmopt-plugin-azure[entra]"'
        )
    return EntraTokens(scope_of(settings))


def _is_installed() -> bool:
    try:
        return find_spec("azure.identity") is not None
    except ModuleNotFoundError:
        # There is no namespace `azure` at all.
        return False


class EntraTokens:
    """Tokens of azure-identity's default credential, which caches each token until it expires.

    Args:
        scope: the scope of the tokens.
    """

    def __init__(self, scope: str) -> None:
        self._scope: Final = scope
        # Many attempts may ask at once, each in its own thread; one of them signs in, the others wait.
        self._lock: Final = threading.Lock()
        self._provider: Callable[[], str] | None = None

    def __call__(self) -> str:
        """Return a valid token. May block."""
        with self._lock:
            if self._provider is None:
                identity = import_module("azure.identity")
                credential = identity.DefaultAzureCredential()
                self._provider = identity.get_bearer_token_provider(credential, self._scope)
            return self._provider()
