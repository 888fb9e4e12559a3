"""Local and custom servers as a provider of llmopt, and an embedding engine inside the process.

With nothing configured, ``local/default`` is a real embedding model that runs in this process. With
a ``base_url`` it is whatever OpenAI-compatible server answers there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmopt import (
    BatchLimit,
    Call,
    EmbedCall,
    HttpRequest,
    Profile,
    ProviderEntry,
    Settings,
    Timeouts,
    compatible,
    hookimpl,
)
from llmopt_plugin_local._addresses import is_loopback

if TYPE_CHECKING:
    import httpx

_EMBEDDED_ITEMS = 1_024
_EMBEDDED_BYTES = 32 * 1024 * 1024


@hookimpl
def provider_profile(entry: ProviderEntry) -> Profile:
    """No key needed. Nearby servers get one retry, far ones four, the embedded engine none."""
    if entry.base_url is None:
        return Profile(key_required=False, in_process=True, max_retries=0, max_concurrency=2)
    near = is_loopback(entry.base_url)
    return Profile(
        key_required=False,
        timeouts=Timeouts(connect=30, read=10, read_large=60, catalog=30, pool=5, first=300),
        max_retries=1 if near else 4,
        retry_delay=0.2,
        max_concurrency=16,
    )


@hookimpl
def batch_limit(settings: Settings) -> BatchLimit:
    """Large batches for the embedded engine; 32 items for a server that says nothing else."""
    if not settings.base_url:
        return BatchLimit(max_items=_EMBEDDED_ITEMS, max_bytes=_EMBEDDED_BYTES)
    return BatchLimit(max_items=32)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest | None:
    """The common dialect. Base64 is asked for only of the embedded engine, which surely knows it."""
    if isinstance(call, EmbedCall) and not settings.base_url:
        return compatible.build_request(call, settings, encoding_format="base64")
    return None


@hookimpl
def open_transport(settings: Settings) -> httpx.AsyncBaseTransport | None:
    """The embedded engine, where no server is configured."""
    if settings.base_url:
        return None
    from llmopt_plugin_local._embedded import EmbeddedTransport

    return EmbeddedTransport()
