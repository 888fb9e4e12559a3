"""The public types, checked by mypy and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, assert_type

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

import llmopt
from llmopt import hookimpl
from llmopt.typing import Plugin
from llmopt.values.events import CallEnd, Event, RequestRetry

if TYPE_CHECKING:
    import httpx


def sync(client: llmopt.Client, texts: Iterator[str]) -> None:
    found = client.embed("local/default", texts, dimensions=64, errors="return")
    assert_type(found, llmopt.Embeddings)
    assert_type(found.vectors, NDArray[np.float32])
    assert_type(found.errors, Mapping[int, llmopt.LLMOptError])
    assert_type(found.usage.total_tokens, int)
    with client.embed_iter("local/default", texts, order="completion") as parts:
        for part in parts:
            assert_type(part, llmopt.EmbeddedPart)
            assert_type(part.start, int)
    messages = [{"role": "user", "content": "Hello?"}]
    assert_type(client.chat("local/m", messages, temperature=0.5, stop=["a"]), llmopt.ChatReply)
    assert_type(client.chat("local/m", [llmopt.Message("user", "Hello?")]).usage, llmopt.Usage | None)
    with client.stream("local/m", messages, max_tokens=7, buffer_size=10) as stream:
        for event in stream:
            assert_type(event, llmopt.ChatEvent)
    assert_type(stream.reply, llmopt.ChatReply)
    assert_type(stream.reply.provider_data, Mapping[str, Any])
    assert_type(client.list_models("local"), llmopt.Catalog)
    for model in client.list_models("local"):
        assert_type(model, llmopt.Model)
    assert_type(client.batch_list_models(["local"]), Mapping[str, llmopt.Catalog | llmopt.LLMOptError])
    assert_type(client.list_models("local", cached="offline").age, float)
    assert_type(client.warm(["local"]), Mapping[str, llmopt.Catalog | llmopt.LLMOptError])
    client.invalidate("local")
    client.invalidate()


async def asynchronous(texts: AsyncIterator[str], transport: httpx.AsyncBaseTransport) -> None:
    config = {"providers": {"mine": {"plugin": "local", "base_url": "http://127.0.0.1:1/v1"}}}
    async with llmopt.AsyncClient(config, transport=transport, flags={"retry": False}) as client:
        assert_type(await client.embed("local/default", ["a"]), llmopt.Embeddings)
        async with client.embed_iter("local/default", texts) as parts:
            async for part in parts:
                assert_type(part.vectors, NDArray[np.float32])
        assert_type(await client.list_models("local"), llmopt.Catalog)
        messages = [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}]
        assert_type(await client.chat("local/m", messages, tools=[{}], deadline=3), llmopt.ChatReply)
        async with client.stream("local/m", messages) as stream:
            async for event in stream:
                assert_type(event.text, str)
        assert_type(stream.tool_calls, tuple[llmopt.ToolCall, ...])


def caches(own: llmopt.CacheStore) -> None:
    llmopt.Client(cache=True)
    llmopt.Client(cache="memory")
    llmopt.Client(cache=Path("somewhere"))
    llmopt.Client(cache=own)
    llmopt.Client(cache=llmopt.MemoryStore(max_bytes=1 << 20))
    llmopt.Client(cache=llmopt.DiskStore("somewhere"))
    llmopt.Client(cache=3)  # type: ignore[arg-type] # nothing that keeps anything


def wrong(client: llmopt.Client) -> None:
    client.list_models("local", cached="never")  # type: ignore[arg-type] # no such mode
    client.embed("local/default", ["a"], errors="ignore")  # type: ignore[arg-type] # no such mode
    client.embed("local/default", ["a"], dimension=3)  # type: ignore[call-arg] # misspelled
    client.chat("local/m", [{"role": "user", "content": "?"}], temprature=1)  # type: ignore[call-arg] # misspelled
    client.stream("local/m", "Hello?")  # type: ignore[arg-type] # no list
    llmopt.Clinet()  # type: ignore[attr-defined] # misspelled


@llmopt.hookimpl
def batch_limit(call: llmopt.EmbedCall, settings: llmopt.Settings) -> llmopt.BatchLimit:
    return llmopt.BatchLimit(max_items=96 if settings.options.get("large") else 1, max_bytes=len(call.model))


def listen(event: Event) -> None:
    assert_type(event.call_id, str)
    if event.name == "request.retry":
        assert_type(event, RequestRetry)
        assert_type(event.delay, float)
    elif event.name == "call.end":
        assert_type(event, CallEnd)
        assert_type(event.usage, llmopt.Usage | None)
    llmopt.Client(on_event=listen)


class Acme(Plugin):
    """A plugin of one hook is a plugin."""

    @hookimpl
    @override
    def batch_limit(self, call: llmopt.EmbedCall, settings: llmopt.Settings) -> llmopt.BatchLimit:
        return llmopt.BatchLimit(max_items=64)


class WrongParameter(Plugin):
    @hookimpl
    def batch_limit(self, call: llmopt.ChatCall, settings: llmopt.Settings) -> llmopt.BatchLimit:  # type: ignore[override]
        return llmopt.BatchLimit()


class WrongResult(Plugin):
    @hookimpl
    def classify_error(self, failure: llmopt.Failure, settings: llmopt.Settings) -> str:  # type: ignore[override]
        return "transient"


class Misspelt(Plugin):
    @hookimpl
    @override
    def batch_limits(self, call: llmopt.EmbedCall, settings: llmopt.Settings) -> llmopt.BatchLimit:  # type: ignore[misc]
        return llmopt.BatchLimit()


def plugins() -> llmopt.Client:
    return llmopt.Client(plugins=[Acme()])
