"""Baseten's performance client, written in Rust.

As documented it asks for numbers and makes an array of them. Asked for base64 it hands out the text undecoded, so
that here the caller decodes: faster for long vectors, and one more thing to know.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.contenders.base import KEY, MODEL, Client, Setting, SyncClient

_MOST_CHARACTERS = 1_048_576  # otherwise it would cut batches at 8,000
_MOST_TEXTS = 1_024  # more it refuses


class Baseten(Client):
    """PerformanceClient, with numbers."""

    encoding: str | None = None

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("baseten_performance_client")
        size = min(setting.batch, _MOST_TEXTS)
        address = setting.base_url.removesuffix("/v1")
        if size < setting.batch:
            # The path says how many vectors an answer has.
            address = address.replace(f"-{setting.batch}x", f"-{size}x")
            self.note = f"in requests of {size:,}"
        self._client = module.PerformanceClient(address, KEY)
        self._preference = module.RequestProcessingPreference(
            batch_size=size,
            max_concurrent_requests=setting.in_flight,
            max_chars_per_request=_MOST_CHARACTERS,
        )

    async def ask(self, texts: Sequence[str]) -> Any:
        return await self._client.async_embed(
            list(texts), model=MODEL, encoding_format=self.encoding, preference=self._preference
        )

    def rows(self, found: Any) -> Any:
        return found.numpy()

    async def bulk(self, texts: Sequence[str]) -> Any:
        return self.rows(await self.ask(texts))


class BasetenBase64(Baseten):
    """PerformanceClient, with base64 that is decoded here."""

    encoding = "base64"

    def rows(self, found: Any) -> Any:
        from base64 import b64decode

        import numpy as np

        data = found.data
        first = np.frombuffer(b64decode(data[0].embedding), np.float32)
        rows = np.empty((len(data), first.size), np.float32)
        for number, item in enumerate(data):
            rows[number] = np.frombuffer(b64decode(item.embedding), np.float32)
        return rows


class BasetenSync(SyncClient):
    """PerformanceClient without ``await``."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("baseten_performance_client")
        self._client = module.PerformanceClient(setting.base_url.removesuffix("/v1"), KEY)

    def ask(self, texts: Sequence[str]) -> Any:
        return self._client.embed(list(texts), model=MODEL, encoding_format="base64")
