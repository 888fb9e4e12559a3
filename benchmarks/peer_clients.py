"""How each client is used: llmopt, openai, LangChain, litellm and Baseten, for all benchmarks.

Each package is imported when its client is created, in its own environment.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

from benchmarks.clients import (
    CHAT_MODEL,
    KEY,
    MESSAGES,
    MODEL,
    Client,
    Embed,
    LimitedSetting,
    PartialResultError,
    Setting,
    SyncClient,
    Vectors,
    WaitLog,
)

RETRIES: Final = 3
"""For the clients that are told how often to retry; the others use their default."""

EmbedText = Callable[[str], Awaitable[Any]]
"""Embeds one text, for the limits benchmark."""

# ---- llmopt


NOT_A_POLICY: Final = ("pooling", "batching", "lane")
"""Flags that stay on in "policies off": without these llmopt would send other requests, or in another way."""


def llmopt_config(setting: Setting, *, compress: bool = False, endpoints: int = 1) -> dict[str, Any]:
    """Return a configuration whose limits never matter. The rate limiter is on and is asked for every request."""
    where: dict[str, Any] = {"base_url": setting.base_url}
    if endpoints > 1:
        # Paths of one server: the choice of an endpoint is measured, not that of thousands of connections.
        base = setting.base_url.removesuffix("/v1")
        where = {"endpoints": [{"base_url": f"{base}/e{number}/v1"} for number in range(endpoints)]}
    entry = where | {
        "api_key": KEY,
        "max_concurrency": setting.in_flight,
        "pool_size": setting.in_flight,
        "max_batch_size": setting.batch,
        "rpm": 1e8,
        "tpm": 1e11,
        "compress_requests": compress,
    }
    return {"providers": {"openai": entry}}


class Llmopt(Client):
    """llmopt.AsyncClient with its OpenAI plugin.

    Args:
        setting: the setting.
        policies: whether all policies are on; else every flag is off that does not change what is sent.
        compress: whether bodies of requests are compressed.
        compression: the flag for all compression.
        endpoints: number of its endpoints.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        policies: bool = True,
        compress: bool = False,
        compression: bool = True,
        endpoints: int = 1,
    ) -> None:
        import llmopt

        super().__init__(setting)
        self._folder = tempfile.TemporaryDirectory()
        flags = {} if compression else {"compression": False}
        if not policies:
            from llmopt.config.schema import Flags

            flags = {name: False for name in Flags.__annotations__ if name not in NOT_A_POLICY}
        config = llmopt_config(setting, compress=compress, endpoints=endpoints)
        config["cache_dir"] = self._folder.name
        self._client = llmopt.AsyncClient(config, flags=flags)

    async def embed(self, texts: Sequence[str]) -> Any:
        return await self._client.embed(f"openai/{MODEL}", texts)

    def rows(self, response: Any) -> Any:
        return response.vectors

    async def count_models(self) -> int:
        # Without "refresh" it would return the cached list and send nothing.
        return len(await self._client.list_models("openai", cached="refresh"))

    async def embed_many(self, texts: Sequence[str]) -> Any:
        return (await self._client.embed(f"openai/{MODEL}", texts)).vectors

    async def embed_to_file(self, texts: Sequence[str], path: str) -> int:
        count = 0
        with open(path, "wb") as file:  # noqa: ASYNC230, PTH123 # like a simple program
            async with self._client.embed_iter(f"openai/{MODEL}", texts) as parts:
                async for part in parts:
                    file.write(part.vectors.data)
                    count += len(part)
        return count

    async def close(self) -> None:
        await self._client.aclose()
        self._folder.cleanup()


class LlmoptReading(Llmopt):
    """The same, looking at every model of a list: llmopt makes a model when a program looks at it."""

    async def count_models(self) -> int:
        models = await self._client.list_models("openai", cached="refresh")
        return sum(1 for model in models if model.id)


class LlmoptCached(Llmopt):
    """A list that is cached already, from memory; or from the disk, by a new client for each look-up.

    Args:
        setting: the setting.
        disk: whether from the disk.
    """

    def __init__(self, setting: Setting, *, disk: bool = False) -> None:
        super().__init__(setting)
        self._config = llmopt_config(setting) | {"cache_dir": self._folder.name}
        self._disk = disk

    async def look_up_models(self) -> int:
        """Return the number of models of the cached list."""
        if not self._disk:
            return len(await self._client.list_models("openai"))
        import llmopt

        async with llmopt.AsyncClient(self._config) as client:
            return len(await client.list_models("openai", cached="offline"))


class LlmoptSync(SyncClient):
    """llmopt.Client."""

    def __init__(self, setting: Setting) -> None:
        import llmopt

        super().__init__(setting)
        self._client = llmopt.Client(llmopt_config(setting))

    def embed(self, texts: Sequence[str]) -> Any:
        return self._client.embed(f"openai/{MODEL}", texts)

    def close(self) -> None:
        self._client.close()


class LlmoptStream:
    """llmopt.AsyncClient.stream."""

    def __init__(self, base_url: str) -> None:
        import llmopt

        self._client = llmopt.AsyncClient({"providers": {"openai": {"base_url": base_url, "api_key": KEY}}})

    async def read(self) -> AsyncIterator[str]:
        """Yield the texts of one stream."""
        async with self._client.stream(f"openai/{CHAT_MODEL}", MESSAGES) as stream:
            async for event in stream:
                yield event.text

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class LlmoptSyncStream:
    """llmopt.Client.stream."""

    def __init__(self, base_url: str) -> None:
        import llmopt

        self._client = llmopt.Client({"providers": {"openai": {"base_url": base_url, "api_key": KEY}}})

    def read(self) -> Iterator[str]:
        """Yield the texts of one stream."""
        with self._client.stream(f"openai/{CHAT_MODEL}", MESSAGES) as stream:
            for event in stream:
                yield event.text

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


def open_llmopt(origin: str, deadline: float | None, waits: WaitLog) -> Embed:
    """llmopt with its OpenAI plugin and a callback for events."""
    llmopt: Any = importlib.import_module("llmopt")

    def on_event(event: Any) -> None:
        if event.name in ("request.retry", "request.wait"):
            seconds = event.delay if event.name == "request.retry" else event.seconds
            waits.add_event(f"{event.name} ({event.cause}) {seconds:.2f} s")

    config = {"providers": {"openai": {"base_url": f"{origin}/v1", "api_key": KEY}}}
    client = llmopt.AsyncClient(config, on_event=on_event)

    async def embed(texts: Sequence[str]) -> Vectors:
        try:
            result = await client.embed(f"openai/{MODEL}", texts, deadline=deadline)
        except llmopt.PartialFailure as failure:
            rows, errors = failure.result.vectors.tolist(), failure.result.errors
            kinds = sorted({type(error).__name__ for error in errors.values()})
            name = f"{type(failure).__name__} ({len(errors)} {', '.join(kinds)})"
            partial = [None if index in errors else row for index, row in enumerate(rows)]
            raise PartialResultError(name, partial) from failure
        return Vectors(result.vectors.tolist())

    return embed


def limited_llmopt(setting: LimitedSetting) -> EmbedText:
    """llmopt with its OpenAI plugin; told of limits by ``rpm`` and ``tpm``."""
    llmopt: Any = importlib.import_module("llmopt")
    limits = {"rpm": setting.rpm, "tpm": setting.tpm}
    entry = {
        "base_url": f"{setting.origin}/v1",
        "api_key": KEY,
        "max_concurrency": setting.in_flight,
        "pool_size": setting.in_flight,
        **{name: limit for name, limit in limits.items() if limit is not None},
    }
    client = llmopt.AsyncClient({"providers": {"openai": entry}})

    async def embed(text: str) -> Any:
        return await client.embed(f"openai/{MODEL}", [text])

    return embed


# ---- openai, and LangChain over it. They decode base64 themselves.


class OpenAI(Client):
    """openai.AsyncOpenAI."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("openai")
        self._client = module.AsyncOpenAI(base_url=setting.base_url, api_key=KEY)

    async def embed(self, texts: Sequence[str]) -> Any:
        return await self._client.embeddings.create(model=MODEL, input=list(texts))

    def rows(self, response: Any) -> Any:
        return _float32([item.embedding for item in response.data])

    async def count_models(self) -> int:
        return len([model async for model in self._client.models.list()])

    async def close(self) -> None:
        await self._client.close()


class OpenAISync(SyncClient):
    """openai.OpenAI."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("openai")
        self._client = module.OpenAI(base_url=setting.base_url, api_key=KEY)

    def embed(self, texts: Sequence[str]) -> Any:
        return self._client.embeddings.create(model=MODEL, input=list(texts))

    def close(self) -> None:
        self._client.close()


class OpenAIStream:
    """A chat stream of openai.AsyncOpenAI."""

    def __init__(self, base_url: str) -> None:
        module: Any = importlib.import_module("openai")
        self._client = module.AsyncOpenAI(base_url=base_url, api_key=KEY)

    async def read(self) -> AsyncIterator[str]:
        """Yield the texts of one stream."""
        stream = await self._client.chat.completions.create(
            model=CHAT_MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or ""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class OpenAISyncStream:
    """A chat stream of openai.OpenAI."""

    def __init__(self, base_url: str) -> None:
        module: Any = importlib.import_module("openai")
        self._client = module.OpenAI(base_url=base_url, api_key=KEY)

    def read(self) -> Iterator[str]:
        """Yield the texts of one stream."""
        stream = self._client.chat.completions.create(
            model=CHAT_MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or ""

    async def close(self) -> None:
        """Close the connections."""
        self._client.close()


def open_openai(origin: str, deadline: float | None, waits: WaitLog) -> Embed:  # noqa: ARG001
    """openai.AsyncOpenAI; the deadline is its timeout."""
    module: Any = importlib.import_module("openai")
    timeout = {} if deadline is None else {"timeout": deadline}
    client = module.AsyncOpenAI(base_url=f"{origin}/v1", api_key=KEY, **timeout)

    async def embed(texts: Sequence[str]) -> Vectors:
        response = await client.embeddings.create(model=MODEL, input=list(texts))
        return Vectors([item.embedding for item in response.data], [item.index for item in response.data])

    return embed


def limited_openai(setting: LimitedSetting) -> EmbedText:
    """openai.AsyncOpenAI, with its two retries. It cannot be told of limits."""
    module: Any = importlib.import_module("openai")
    client = module.AsyncOpenAI(base_url=f"{setting.origin}/v1", api_key=KEY)

    async def embed(text: str) -> Any:
        return await client.embeddings.create(model=MODEL, input=[text])

    return embed


class LangChain(Client):
    """langchain_openai.OpenAIEmbeddings, used as documented for servers other than OpenAI's."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("langchain_openai")
        self._client = module.OpenAIEmbeddings(
            model=MODEL,
            base_url=setting.base_url,
            api_key=KEY,
            chunk_size=setting.batch,
            # Otherwise it would count tokens with a file that it downloads.
            check_embedding_ctx_length=False,
        )

    async def embed(self, texts: Sequence[str]) -> Any:
        return await self._client.aembed_documents(list(texts))

    def rows(self, response: Any) -> Any:
        return _float32(response)


# ---- litellm


class LiteLLM(Client):
    """litellm.aembedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._module: Any = importlib.import_module("litellm")
        self._options = {"api_base": setting.base_url, "api_key": KEY}

    async def embed(self, texts: Sequence[str]) -> Any:
        return await self._module.aembedding(model=f"openai/{MODEL}", input=list(texts), **self._options)

    def rows(self, response: Any) -> Any:
        return _float32([item["embedding"] for item in response.data])


class Router(LiteLLM):
    """litellm.Router with one deployment."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        deployment = {"model": f"openai/{MODEL}", **self._options}
        self._router = self._module.Router(model_list=[{"model_name": "embed", "litellm_params": deployment}])

    async def embed(self, texts: Sequence[str]) -> Any:
        return await self._router.aembedding(model="embed", input=list(texts))


class LiteLLMSync(SyncClient):
    """litellm.embedding."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._module: Any = importlib.import_module("litellm")
        self._options = {"api_base": setting.base_url, "api_key": KEY}

    def embed(self, texts: Sequence[str]) -> Any:
        return self._module.embedding(model=f"openai/{MODEL}", input=list(texts), **self._options)


def open_litellm(origin: str, deadline: float | None, waits: WaitLog) -> Embed:  # noqa: ARG001
    """litellm.aembedding; the deadline is its timeout."""
    module: Any = importlib.import_module("litellm")
    options: dict[str, Any] = {"api_base": f"{origin}/v1", "api_key": KEY, "num_retries": RETRIES}
    options |= {} if deadline is None else {"timeout": deadline}

    async def embed(texts: Sequence[str]) -> Vectors:
        response = await module.aembedding(model=f"openai/{MODEL}", input=list(texts), **options)
        return _litellm_vectors(response)

    return embed


def open_router(origin: str, deadline: float | None, waits: WaitLog) -> Embed:  # noqa: ARG001
    """litellm.Router with one deployment; the deadline is its timeout."""
    module: Any = importlib.import_module("litellm")
    deployment = {"model": f"openai/{MODEL}", "api_base": f"{origin}/v1", "api_key": KEY}
    timeout = {} if deadline is None else {"timeout": deadline}
    models = [{"model_name": "embed", "litellm_params": deployment}]
    router = module.Router(model_list=models, num_retries=RETRIES, **timeout)

    async def embed(texts: Sequence[str]) -> Vectors:
        return _litellm_vectors(await router.aembedding(model="embed", input=list(texts)))

    return embed


def limited_router(setting: LimitedSetting) -> EmbedText:
    """litellm.Router with its strategy for limits; told of limits by ``rpm`` and ``tpm`` of the deployment."""
    module: Any = importlib.import_module("litellm")
    limits = {"rpm": setting.rpm, "tpm": setting.tpm}
    deployment = {
        "model": f"openai/{MODEL}",
        "api_base": f"{setting.origin}/v1",
        "api_key": KEY,
        **{name: int(limit) for name, limit in limits.items() if limit is not None},
    }
    router = module.Router(
        model_list=[{"model_name": "embed", "litellm_params": deployment}],
        num_retries=RETRIES,
        routing_strategy="usage-based-routing-v2",
        enable_pre_call_checks=True,
    )

    async def embed(text: str) -> Any:
        return await router.aembedding(model="embed", input=[text])

    return embed


def _litellm_vectors(response: Any) -> Vectors:
    return Vectors([item["embedding"] for item in response.data], [item["index"] for item in response.data])


# ---- Baseten's performance client, written in Rust


class Baseten(Client):
    """baseten_performance_client.PerformanceClient, which requests numbers, as documented."""

    encoding: str | None = None
    max_characters = 1_048_576  # with its default it would split batches at 8,000
    max_texts = 1_024  # it rejects larger batches

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("baseten_performance_client")
        size = min(setting.batch, self.max_texts)
        url = setting.base_url.removesuffix("/v1")
        if size < setting.batch:
            # The path contains the number of vectors in a response.
            url = url.replace(f"-{setting.batch}x", f"-{size}x")
            self.note = f"in requests of {size:,}"
        self._client = module.PerformanceClient(url, KEY)
        self._preference = module.RequestProcessingPreference(
            batch_size=size,
            max_concurrent_requests=setting.in_flight,
            max_chars_per_request=self.max_characters,
        )

    async def embed(self, texts: Sequence[str]) -> Any:
        return await self._client.async_embed(
            list(texts), model=MODEL, encoding_format=self.encoding, preference=self._preference
        )

    def rows(self, response: Any) -> Any:
        return response.numpy()

    async def embed_many(self, texts: Sequence[str]) -> Any:
        return self.rows(await self.embed(texts))


class BasetenBase64(Baseten):
    """The same, requesting base64. It does not decode it, so the caller does: faster for long vectors."""

    encoding = "base64"

    def rows(self, response: Any) -> Any:
        from base64 import b64decode

        import numpy as np

        data = response.data
        dimensions = np.frombuffer(b64decode(data[0].embedding), np.float32).size
        rows = np.empty((len(data), dimensions), np.float32)
        for number, item in enumerate(data):
            rows[number] = np.frombuffer(b64decode(item.embedding), np.float32)
        return rows


class BasetenSync(SyncClient):
    """The synchronous method of the performance client."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        module: Any = importlib.import_module("baseten_performance_client")
        self._client = module.PerformanceClient(setting.base_url.removesuffix("/v1"), KEY)

    def embed(self, texts: Sequence[str]) -> Any:
        return self._client.embed(list(texts), model=MODEL, encoding_format="base64")


def open_baseten(origin: str, deadline: float | None, waits: WaitLog) -> Embed:  # noqa: ARG001
    """Baseten's client; the deadline is its timeout for the whole operation, and so for each request."""
    module: Any = importlib.import_module("baseten_performance_client")
    client = module.PerformanceClient(origin, KEY)
    timeouts = {} if deadline is None else {"total_timeout_s": deadline, "timeout_s": deadline}

    async def embed(texts: Sequence[str]) -> Vectors:
        preference = module.RequestProcessingPreference(**timeouts)
        response = await client.async_embed(list(texts), model=MODEL, preference=preference)
        return Vectors(response.numpy().tolist(), [item.index for item in response.data])

    return embed


def limited_baseten(setting: LimitedSetting) -> EmbedText:
    """Baseten's client, with its own retries. It cannot be told of limits."""
    module: Any = importlib.import_module("baseten_performance_client")
    client = module.PerformanceClient(setting.origin, KEY)
    preference = module.RequestProcessingPreference(max_concurrent_requests=setting.in_flight)

    async def embed(text: str) -> Any:
        return await client.async_embed([text], model=MODEL, preference=preference)

    return embed


def _float32(rows: Any) -> Any:
    import numpy as np

    return np.array(rows, np.float32)
