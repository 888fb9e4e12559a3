"""Who is measured, where each is installed, and which cases it takes part in. Imports nothing of any of them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Contender:
    """One row of the tables.

    Attributes:
        name: what it is called on the command line.
        title: what it is called in tables.
        package: what tells its version.
        environment: where it is installed, see `benchmarks.speed.environments`.
        made: module, class and further arguments of its asynchronous client, None where it has none.
        made_sync: the same of its synchronous client.
        program: the shortest program that makes a client ready, for the cost of starting.
        plugins: how many plugins that it does not use are installed beside it.
    """

    name: str
    title: str
    package: str
    environment: str
    made: tuple[str, str, dict[str, Any]] | None = None
    made_sync: tuple[str, str] | tuple[str, str, str] | None = None
    program: str | None = None
    plugins: int = 0

    def client(self, setting: Any) -> Any:
        """Its asynchronous client."""
        assert self.made is not None
        module, kind, given = self.made
        return partial(_found(module, kind), **given)(setting)

    def sync_client(self, setting: Any) -> Any:
        """Its synchronous client."""
        assert self.made_sync is not None
        module, kind, *given = self.made_sync
        return _found(module, kind)(setting, *given)


def _found(module: str, kind: str) -> Any:
    return getattr(importlib.import_module(f"benchmarks.speed.contenders.{module}"), kind)


_OURS = "import llmopt; llmopt.AsyncClient()"
_FOUND = (
    "import llmopt; client = llmopt.AsyncClient({'providers': {'openai': {'api_key': 'k'}}}); "
    "client.embed_iter('openai/text-embedding-3-small', [])"
)

CONTENDERS = (
    Contender("python", "Python itself", "llmopt", "llmopt", program="pass"),
    Contender("sockets", "sockets alone", "llmopt", "llmopt", ("sockets", "Sockets", {})),
    Contender("floor", "aiohttp, bare", "aiohttp", "llmopt", ("floor", "Floor", {}), None, "import aiohttp"),
    Contender(
        "httpx",
        "httpx, bare",
        "httpx",
        "llmopt",
        ("bare_httpx", "BareHttpx", {"module": "httpx"}),
        ("bare_httpx", "BareHttpxSync", "httpx"),
        "import httpx",
    ),
    Contender(
        "httpx2",
        "httpx2, bare",
        "httpx2",
        "llmopt",
        ("bare_httpx", "BareHttpx", {"module": "httpx2"}),
        ("bare_httpx", "BareHttpxSync", "httpx2"),
        "import httpx2",
    ),
    Contender(
        "llmopt",
        "llmopt",
        "llmopt",
        "llmopt",
        ("ours", "Ours", {}),
        ("ours", "OursSync"),
        _OURS,
    ),
    Contender("llmopt-off", "llmopt, policies off", "llmopt", "llmopt", ("ours", "Ours", {"on": False})),
    Contender("llmopt-async", "llmopt, asynchronous", "llmopt", "llmopt", ("ours", "Ours", {})),
    Contender(
        "llmopt-packed", "llmopt, bodies packed", "llmopt", "llmopt", ("ours", "Ours", {"packed": True})
    ),
    Contender(
        "llmopt-plain", "llmopt, nothing packed", "llmopt", "llmopt", ("ours", "Ours", {"compression": False})
    ),
    Contender("llmopt-found", "llmopt, a provider looked up", "llmopt", "llmopt", program=_FOUND),
    Contender(
        "llmopt-plugins", "the same among 20 unused plugins", "llmopt", "llmopt", program=_FOUND, plugins=20
    ),
    Contender(
        "openai",
        "openai",
        "openai",
        "openai",
        ("openais", "OpenAI", {}),
        ("openais", "OpenAISync"),
        "import openai; openai.AsyncOpenAI(api_key='k')",
    ),
    Contender(
        "litellm",
        "litellm",
        "litellm",
        "litellm",
        ("litellms", "LiteLLM", {}),
        ("litellms", "LiteLLMSync"),
        "import litellm; litellm.aembedding",
    ),
    Contender("router", "litellm Router", "litellm", "litellm", ("litellms", "Router", {})),
    Contender(
        "langchain",
        "LangChain",
        "langchain-openai",
        "langchain",
        ("openais", "LangChain", {}),
        None,
        "from langchain_openai import OpenAIEmbeddings; OpenAIEmbeddings(api_key='k')",
    ),
    Contender(
        "baseten",
        "Baseten, numbers",
        "baseten-performance-client",
        "baseten",
        ("baseten", "Baseten", {}),
        None,
        "import baseten_performance_client as b; b.PerformanceClient('http://127.0.0.1:9', 'k')",
    ),
    Contender(
        "baseten-base64",
        "Baseten, base64",
        "baseten-performance-client",
        "baseten",
        ("baseten", "BasetenBase64", {}),
        ("baseten", "BasetenSync"),
    ),
)


def contender_named(name: str) -> Contender:
    """The contender of that name."""
    return next(each for each in CONTENDERS if each.name == name)
