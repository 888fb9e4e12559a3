"""llmopt with its OpenAI plugin, all its policies on; and with all of them off.

Rate limits are set out of the way, not switched off: the limiter is asked for every request.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.contenders.base import KEY, MODEL, Client, Setting, SyncClient

REFERENCE = f"openai/{MODEL}"


def config_of(setting: Setting, *, packed: bool = False) -> dict[str, Any]:
    """A configuration in which nothing but the case says how much at once."""
    entry = {
        "base_url": setting.base_url,
        "api_key": KEY,
        "max_concurrency": setting.in_flight,
        "pool_size": setting.in_flight,
        "max_batch_size": setting.batch,
        "rpm": 1e8,
        "tpm": 1e11,
        "compress_requests": packed,
    }
    return {"providers": {"openai": entry}}


def flags_of(*, on: bool, compression: bool = True) -> dict[str, bool]:
    """No switch touched, or that of compression, or every one off that can be without changing what is sent."""
    if on:
        return {} if compression else {"compression": False}
    from llmopt.config.schema import Flags

    # Without pooling and batching it would send other requests than everybody else.
    return {name: False for name in Flags.__annotations__ if name not in ("pooling", "batching")}


class Ours(Client):
    """llmopt.AsyncClient."""

    def __init__(
        self, setting: Setting, *, on: bool = True, packed: bool = False, compression: bool = True
    ) -> None:
        import llmopt

        super().__init__(setting)
        self._folder = tempfile.TemporaryDirectory()
        config = config_of(setting, packed=packed) | {"cache_dir": self._folder.name}
        self._client = llmopt.AsyncClient(config, flags=flags_of(on=on, compression=compression))

    async def ask(self, texts: Sequence[str]) -> Any:
        return await self._client.embed(REFERENCE, texts)

    def rows(self, found: Any) -> Any:
        return found.vectors

    async def models(self) -> int:
        # Otherwise it would give what it has, and do nothing.
        return len(await self._client.list_models("openai", cached="refresh"))

    async def bulk(self, texts: Sequence[str]) -> Any:
        return (await self._client.embed(REFERENCE, texts)).vectors

    async def stored(self, texts: Sequence[str], path: str) -> int:
        rows = 0
        with open(path, "wb") as file:  # noqa: ASYNC230, PTH123 # a program like this does
            async with self._client.embed_iter(REFERENCE, texts) as parts:
                async for part in parts:
                    file.write(part.vectors.data)
                    rows += len(part)
        return rows

    async def close(self) -> None:
        await self._client.aclose()
        self._folder.cleanup()


class OursSync(SyncClient):
    """llmopt.Client."""

    def __init__(self, setting: Setting) -> None:
        import llmopt

        super().__init__(setting)
        self._client = llmopt.Client(config_of(setting))

    def ask(self, texts: Sequence[str]) -> Any:
        return self._client.embed(REFERENCE, texts)

    def close(self) -> None:
        self._client.close()
