"""openai's clients, and LangChain's over them. They decode base64 themselves."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from benchmarks.speed.contenders.base import KEY, MODEL, Client, Setting, SyncClient


class OpenAI(Client):
    """AsyncOpenAI."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("openai")
        self._client = module.AsyncOpenAI(base_url=setting.base_url, api_key=KEY)

    async def ask(self, texts: Sequence[str]) -> Any:
        return await self._client.embeddings.create(model=MODEL, input=list(texts))

    def rows(self, found: Any) -> Any:
        import numpy as np

        return np.array([item.embedding for item in found.data], np.float32)

    async def models(self) -> int:
        return len([model async for model in self._client.models.list()])

    async def close(self) -> None:
        await self._client.close()


class OpenAISync(SyncClient):
    """OpenAI."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("openai")
        self._client = module.OpenAI(base_url=setting.base_url, api_key=KEY)

    def ask(self, texts: Sequence[str]) -> Any:
        return self._client.embeddings.create(model=MODEL, input=list(texts))

    def close(self) -> None:
        self._client.close()


class LangChain(Client):
    """OpenAIEmbeddings, asked as its documentation says for servers other than OpenAI's."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("langchain_openai")
        self._client = module.OpenAIEmbeddings(
            model=MODEL,
            base_url=setting.base_url,
            api_key=KEY,
            chunk_size=setting.batch,
            # Otherwise it would count tokens with a file that it fetches.
            check_embedding_ctx_length=False,
        )

    async def ask(self, texts: Sequence[str]) -> Any:
        return await self._client.aembed_documents(list(texts))

    def rows(self, found: Any) -> Any:
        import numpy as np

        return np.array(found, np.float32)
