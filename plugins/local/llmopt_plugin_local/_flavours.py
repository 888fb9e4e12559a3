"""The servers that are known by name, and where their interfaces are.

A flavour changes how a server is asked. How it is understood does not depend on it: answers and
errors are recognised by their shape, so that the OpenAI-compatible dialect works with all of them.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from llmopt import Settings

COMMON: Final = "openai-compatible"
TEI: Final = "tei"
OLLAMA: Final = "ollama"
VLLM: Final = "vllm"
LLAMACPP: Final = "llamacpp"
INFINITY: Final = "infinity"
LMSTUDIO: Final = "lmstudio"
FLAVOURS: Final = (COMMON, TEI, OLLAMA, VLLM, LLAMACPP, INFINITY, LMSTUDIO)

_BEHIND_ROOT: Final = ("/v1", "/api")


def flavour_of(settings: Settings) -> str:
    """The configured flavour; the common dialect where none is."""
    return str(settings.options.get("flavour") or COMMON)


def native(settings: Settings, path: str) -> str:
    """Where a native interface is: below the server's root, also where base_url ends in ``/v1``.

    Args:
        settings: the endpoint's.
        path: below the root, such as "/info".
    """
    root = _root(settings.base_url)
    return path if root == settings.base_url else f"{root}{path}"


def common(settings: Settings, path: str) -> str:
    """Where the common interface is: at base_url itself, unless the flavour is known to have ``/v1``.

    Args:
        settings: the endpoint's.
        path: such as "/embeddings".
    """
    # Infinity has no /v1, and an unknown server may not have it.
    if flavour_of(settings) in (COMMON, INFINITY) or settings.base_url.endswith("/v1"):
        return path
    return native(settings, f"/v1{path}")


def _root(base: str) -> str:
    for end in _BEHIND_ROOT:
        root = base.removesuffix(end)
        # A host may be called v1.
        if root != base and urlsplit(root).hostname:
            return root
    return base
