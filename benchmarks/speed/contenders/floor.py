"""The floor: aiohttp in a bare loop. One session, no checks, no protection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.speed.contenders.base import KEY, MODEL, Client, Setting
from benchmarks.speed.contenders.decoding import body_of, count_models, decode

HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


class Floor(Client):
    """aiohttp's session."""

    def __init__(self, setting: Setting) -> None:
        import aiohttp

        super().__init__(setting)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=setting.in_flight))
        self._url = f"{setting.base_url}/embeddings"

    async def ask(self, texts: Sequence[str]) -> Any:
        async with self._session.post(self._url, data=body_of(MODEL, texts), headers=HEADERS) as answer:
            return decode(await answer.read())

    def rows(self, found: Any) -> Any:
        return found

    async def models(self) -> int:
        async with self._session.get(f"{self.setting.base_url}/models", headers=HEADERS) as answer:
            return count_models(await answer.read())

    async def close(self) -> None:
        await self._session.close()
