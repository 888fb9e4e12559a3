"""litellm's function and its Router."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.contenders.base import KEY, MODEL, Client, Setting, SyncClient


class LiteLLM(Client):
    """litellm.aembedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._module: Any = importlib.import_module("litellm")
        self._given = {"api_base": setting.base_url, "api_key": KEY}

    async def ask(self, texts: Sequence[str]) -> Any:
        return await self._module.aembedding(model=f"openai/{MODEL}", input=list(texts), **self._given)

    def rows(self, found: Any) -> Any:
        import numpy as np

        return np.array([item["embedding"] for item in found.data], np.float32)


class Router(LiteLLM):
    """litellm.Router with one deployment."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        params = {"model": f"openai/{MODEL}", **self._given}
        self._router = self._module.Router(model_list=[{"model_name": "embed", "litellm_params": params}])

    async def ask(self, texts: Sequence[str]) -> Any:
        return await self._router.aembedding(model="embed", input=list(texts))


class LiteLLMSync(SyncClient):
    """litellm.embedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._module: Any = importlib.import_module("litellm")
        self._given = {"api_base": setting.base_url, "api_key": KEY}

    def ask(self, texts: Sequence[str]) -> Any:
        return self._module.embedding(model=f"openai/{MODEL}", input=list(texts), **self._given)
