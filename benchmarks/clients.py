"""The contenders of the benchmarks, and the interfaces of their clients. Imports the standard library only.

Every client is used as its documentation shows, with its own defaults. The worker process of a contender imports its
client, see `create`.
"""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL: Final = "text-embedding-3-small"
KEY: Final = "sk-benchmark"
HEADERS: Final = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
CHAT_MODEL: Final = "gpt-4o-mini"
MESSAGES: Final = [{"role": "user", "content": "Tell me a story."}]

Factory = tuple[str, str, dict[str, Any]]
"""Module of this package, class or function in it, and further keyword arguments."""


@dataclass(frozen=True)
class Contender:
    """One client in a table.

    Attributes:
        name: its name on the command line.
        title: its name in tables.
        package: the distribution whose version is shown, None for none.
        environment: where it is installed, see `benchmarks.processes`.
        client: makes its client.
        sync_client: makes its synchronous client, None if it has none or `client` is one.
        program: the shortest program that creates a client, for the cost of starting.
        plugins: number of unused plugins that are installed beside it.
    """

    name: str
    title: str
    package: str | None
    environment: str
    client: Factory | None = None
    sync_client: Factory | None = None
    program: str | None = None
    plugins: int = 0

    def create(self, *args: Any, sync: bool = False) -> Any:
        """Import and create the client."""
        factory = self.sync_client if sync and self.sync_client is not None else self.client
        assert factory is not None
        module, name, options = factory
        return getattr(importlib.import_module(f"benchmarks.{module}"), name)(*args, **options)


# ---- speed: embeddings and lists of models


@dataclass(frozen=True)
class Setting:
    """What a client of the speed benchmark needs to know.

    Attributes:
        base_url: the server's URL, with ``/v1`` at its end.
        batch: texts per request.
        in_flight: concurrent requests.
    """

    base_url: str
    batch: int
    in_flight: int


class Client:
    """An asynchronous client of the speed benchmark.

    `embed` and `count_models` are measured. So is `rows`, which turns a response into one float32 array: that is the
    form in which a program needs vectors.

    Attributes:
        note: what it does differently from the others in this case, "" for nothing.
    """

    note = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    async def embed(self, texts: Sequence[str]) -> Any:
        """Send one request and return its response in the client's own form."""
        raise NotImplementedError

    def rows(self, response: Any) -> NDArray[np.float32]:
        """Return the vectors of a response as one array."""
        raise NotImplementedError

    async def count_models(self) -> int:
        """List the models and return their number."""
        raise NotImplementedError

    async def look_up_models(self) -> int:
        """Return the number of models of a list that is cached already."""
        raise NotImplementedError

    async def embed_many(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed all texts in concurrent batches, into one array."""
        size = self.setting.batch
        arrays: list[NDArray[np.float32]] = []
        starts = iter(range(0, len(texts), size))

        async def work() -> None:
            import numpy as np

            for start in starts:
                rows = self.rows(await self.embed(texts[start : start + size]))
                if not arrays:
                    arrays.append(np.empty((len(texts), rows.shape[1]), np.float32))
                arrays[0][start : start + len(rows)] = rows

        await asyncio.gather(*(work() for _ in range(self.setting.in_flight)))
        return arrays[0]

    async def embed_to_file(self, texts: Sequence[str], path: str) -> int:
        """Embed all texts in concurrent batches, write each batch to a file, and return the number of rows.

        This is what a program writes around a client that offers nothing for it.
        """
        size = self.setting.batch
        first = self.rows(await self.embed(texts[:size]))
        with open(path, "wb") as file:  # noqa: ASYNC230, PTH123 # like such a program
            file.truncate(4 * len(texts) * first.shape[1])

            def write(start: int, rows: NDArray[np.float32]) -> None:
                file.seek(4 * start * rows.shape[1])
                file.write(rows.data)

            write(0, first)
            starts = iter(range(size, len(texts), size))

            async def work() -> None:
                for start in starts:
                    write(start, self.rows(await self.embed(texts[start : start + size])))

            await asyncio.gather(*(work() for _ in range(self.setting.in_flight)))
        return len(texts)

    async def close(self) -> None:
        """Close the connections."""


class SyncClient:
    """A synchronous client of the speed benchmark."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def embed(self, texts: Sequence[str]) -> Any:
        """Like `Client.embed`."""
        raise NotImplementedError

    def close(self) -> None:
        """Like `Client.close`."""


_CREATE = "import llmopt; llmopt.AsyncClient()"
_CREATE_PROVIDER = (
    "import llmopt; client = llmopt.AsyncClient({'providers': {'openai': {'api_key': 'k'}}}); "
    "client.embed_iter('openai/text-embedding-3-small', [])"
)


def _llmopt(**options: Any) -> Factory:
    return "peer_clients", "Llmopt", options


CONTENDERS: Final = (
    Contender("python", "Python itself", "llmopt", "llmopt", program="pass"),
    Contender("sockets", "sockets alone", "llmopt", "llmopt", ("reference_clients", "Sockets", {})),
    Contender(
        "floor",
        "aiohttp, bare",
        "aiohttp",
        "llmopt",
        ("reference_clients", "Aiohttp", {}),
        program="import aiohttp",
    ),
    *(
        Contender(
            module,
            f"{module}, bare",
            module,
            "llmopt",
            ("reference_clients", "Httpx", {"module": module}),
            ("reference_clients", "HttpxSync", {"module": module}),
            f"import {module}",
        )
        for module in ("httpx", "httpx2")
    ),
    Contender("llmopt", "llmopt", "llmopt", "llmopt", _llmopt(), ("peer_clients", "LlmoptSync", {}), _CREATE),
    Contender("llmopt-off", "llmopt, policies off", "llmopt", "llmopt", _llmopt(policies=False)),
    Contender("llmopt-async", "llmopt, asynchronous", "llmopt", "llmopt", _llmopt()),
    Contender("llmopt-compressed", "llmopt, requests compressed", "llmopt", "llmopt", _llmopt(compress=True)),
    Contender("llmopt-plain", "llmopt, no compression", "llmopt", "llmopt", _llmopt(compression=False)),
    *(
        Contender(
            f"llmopt-{count}", f"llmopt, {count:,} endpoints", "llmopt", "llmopt", _llmopt(endpoints=count)
        )
        for count in (10, 100, 1000)
    ),
    Contender(
        "llmopt-reading",
        "llmopt, looking at every model",
        "llmopt",
        "llmopt",
        ("peer_clients", "LlmoptReading", {}),
    ),
    Contender(
        "llmopt-memory", "llmopt, from memory", "llmopt", "llmopt", ("peer_clients", "LlmoptCached", {})
    ),
    Contender(
        "llmopt-disk",
        "llmopt, from the disk",
        "llmopt",
        "llmopt",
        ("peer_clients", "LlmoptCached", {"disk": True}),
    ),
    Contender(
        "typed", "gunzip and one typed decode", "msgspec", "llmopt", ("reference_clients", "TypedList", {})
    ),
    Contender("before", "an earlier version", "llmopt", "llmopt"),
    Contender("llmopt-provider", "llmopt, with a provider", "llmopt", "llmopt", program=_CREATE_PROVIDER),
    Contender(
        "llmopt-plugins",
        "the same, 20 unused plugins",
        "llmopt",
        "llmopt",
        program=_CREATE_PROVIDER,
        plugins=20,
    ),
    Contender(
        "openai",
        "openai",
        "openai",
        "openai",
        ("peer_clients", "OpenAI", {}),
        ("peer_clients", "OpenAISync", {}),
        "import openai; openai.AsyncOpenAI(api_key='k')",
    ),
    Contender(
        "litellm",
        "litellm",
        "litellm",
        "litellm",
        ("peer_clients", "LiteLLM", {}),
        ("peer_clients", "LiteLLMSync", {}),
        "import litellm; litellm.aembedding",
    ),
    Contender("router", "litellm Router", "litellm", "litellm", ("peer_clients", "Router", {})),
    Contender(
        "langchain",
        "LangChain",
        "langchain-openai",
        "langchain",
        ("peer_clients", "LangChain", {}),
        program="from langchain_openai import OpenAIEmbeddings; OpenAIEmbeddings(api_key='k')",
    ),
    Contender(
        "baseten",
        "Baseten, numbers",
        "baseten-performance-client",
        "baseten",
        ("peer_clients", "Baseten", {}),
        program="import baseten_performance_client as b; b.PerformanceClient('http://127.0.0.1:9', 'k')",
    ),
    Contender(
        "baseten-base64",
        "Baseten, base64",
        "baseten-performance-client",
        "baseten",
        ("peer_clients", "BasetenBase64", {}),
        ("peer_clients", "BasetenSync", {}),
    ),
)


# ---- streams: each class is made for a base URL; its ``read`` yields the text of every event when it has it

STREAM_CONTENDERS: Final = (
    Contender("sockets", "a bare socket", None, "llmopt", ("reference_clients", "SocketStream", {})),
    Contender("floor", "bare aiohttp, json", "aiohttp", "llmopt", ("reference_clients", "AiohttpStream", {})),
    Contender("llmopt", "llmopt", "llmopt", "llmopt", ("peer_clients", "LlmoptStream", {})),
    Contender("openai", "openai", "openai", "openai", ("peer_clients", "OpenAIStream", {})),
    Contender(
        "llmopt-sync", "llmopt, synchronous", "llmopt", "llmopt", ("peer_clients", "LlmoptSyncStream", {})
    ),
    Contender(
        "openai-sync", "openai, synchronous", "openai", "openai", ("peer_clients", "OpenAISyncStream", {})
    ),
)


# ---- faults: each function is called with the origin, the deadline and a `WaitLog`, and returns an `Embed`


@dataclass(frozen=True)
class Vectors:
    """What a call returned: vectors in their order, and the `index` that the client returns with each, if it does."""

    rows: list[Any]
    indices: list[int] | None = None


Embed = Callable[[Sequence[str]], Awaitable[Vectors]]


class PartialResultError(Exception):
    """A call returned some rows only; ``name`` is the error as the client calls it."""

    def __init__(self, name: str, rows: list[Any]) -> None:
        super().__init__(name)
        self.name = name
        self.rows = rows


@dataclass
class WaitLog:
    """What a program can see of a client's waits, each with the time of the monotonic clock."""

    events: list[tuple[float, str]] = field(default_factory=list)
    logs: list[tuple[float, str]] = field(default_factory=list)

    def add_event(self, text: str) -> None:
        """Record what a callback was called with."""
        self.events.append((time.monotonic(), text))

    def add_log(self, text: str) -> None:
        """Record a log record."""
        self.logs.append((time.monotonic(), text))


FAULT_CONTENDERS: Final = (
    Contender("llmopt", "llmopt", "llmopt", "llmopt", ("peer_clients", "open_llmopt", {})),
    Contender("openai", "openai", "openai", "openai", ("peer_clients", "open_openai", {})),
    Contender(
        "litellm", "litellm, `num_retries=3`", "litellm", "litellm", ("peer_clients", "open_litellm", {})
    ),
    Contender(
        "router", "litellm Router, `num_retries=3`", "litellm", "litellm", ("peer_clients", "open_router", {})
    ),
    Contender(
        "baseten", "Baseten", "baseten-performance-client", "baseten", ("peer_clients", "open_baseten", {})
    ),
)


# ---- limits: each function is called with a `LimitedSetting`, and returns a function that embeds one text


@dataclass(frozen=True)
class LimitedSetting:
    """What a client of the limits benchmark is told.

    Attributes:
        origin: the server's URL, without ``/v1``.
        rpm: requests per minute that the server allows, None if the client is to find out.
        tpm: tokens per minute, likewise.
        in_flight: calls at the same time.
    """

    origin: str
    rpm: float | None
    tpm: float | None
    in_flight: int


LIMIT_CONTENDERS: Final = (
    Contender("llmopt", "llmopt", "llmopt", "llmopt", ("peer_clients", "limited_llmopt", {})),
    Contender("openai", "openai", "openai", "openai", ("peer_clients", "limited_openai", {})),
    Contender("router", "litellm Router", "litellm", "litellm", ("peer_clients", "limited_router", {})),
    Contender(
        "baseten", "Baseten", "baseten-performance-client", "baseten", ("peer_clients", "limited_baseten", {})
    ),
)


def contender_named(name: str, contenders: Sequence[Contender]) -> Contender:
    """Return a contender by its name."""
    return next(each for each in contenders if each.name == name)
