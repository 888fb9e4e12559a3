"""httpx and httpx2 in a bare loop, with the floor's decoding."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.contenders.base import MODEL, Client, Setting, SyncClient
from benchmarks.speed.contenders.decoding import body_of, count_models, decode
from benchmarks.speed.contenders.floor import HEADERS


class BareHttpx(Client):
    """The asynchronous client of a module."""

    def __init__(self, setting: Setting, module: str) -> None:
        super().__init__(setting)
        httpx: Any = importlib.import_module(module)
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_connections=setting.in_flight), timeout=60)
        self._url = f"{setting.base_url}/embeddings"

    async def ask(self, texts: Sequence[str]) -> Any:
        answer = await self._client.post(self._url, content=body_of(MODEL, texts), headers=HEADERS)
        return decode(answer.content)

    def rows(self, found: Any) -> Any:
        return found

    async def models(self) -> int:
        answer = await self._client.get(f"{self.setting.base_url}/models", headers=HEADERS)
        return count_models(answer.content)

    async def close(self) -> None:
        await self._client.aclose()


class BareHttpxSync(SyncClient):
    """The synchronous client of a module."""

    def __init__(self, setting: Setting, module: str) -> None:
        super().__init__(setting)
        httpx: Any = importlib.import_module(module)
        self._client = httpx.Client(timeout=60)
        self._url = f"{setting.base_url}/embeddings"

    def ask(self, texts: Sequence[str]) -> Any:
        return decode(self._client.post(self._url, content=body_of(MODEL, texts), headers=HEADERS).content)

    def close(self) -> None:
        self._client.close()
