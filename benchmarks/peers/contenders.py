"""How each contender is asked for vectors. Imported in its own environment: nothing but the standard library is.

Every client is used as its documentation shows it, with its own defaults.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MODEL = "text-embedding-3-small"
KEY = "test-key"
RETRIES = 3  # for those that are asked to retry; the others have their own default

Rows = list[Any]


@dataclass(frozen=True)
class Answer:
    """What a call gave: vectors in their order, and the `index` that the client hands out beside each, if it does."""

    rows: Rows
    indices: list[int] | None = None


Embed = Callable[[Sequence[str]], Awaitable[Answer]]


@dataclass
class Seen:
    """What a program that uses the contender can see of its waits, and when (on the monotonic clock)."""

    events: list[tuple[float, str]] = field(default_factory=list)
    logs: list[tuple[float, str]] = field(default_factory=list)

    def event(self, text: str) -> None:
        """Take note of what a call-back was told."""
        self.events.append((time.monotonic(), text))

    def log(self, text: str) -> None:
        """Take note of a log record."""
        self.logs.append((time.monotonic(), text))


class PartlyFailedError(Exception):
    """Some rows came and some did not; `name` says why, as the contender does."""

    def __init__(self, name: str, rows: Rows) -> None:
        super().__init__(name)
        self.name = name
        self.rows = rows


def open_llmopt(origin: str, deadline: float | None, seen: Seen) -> Embed:
    """llmopt with its OpenAI plugin and a listener."""
    llmopt: Any = importlib.import_module("llmopt")

    def listen(event: Any) -> None:
        if event.name in ("request.retry", "request.wait"):
            seconds = event.delay if event.name == "request.retry" else event.seconds
            seen.event(f"{event.name} ({event.cause}) {seconds:.2f} s")

    config = {"providers": {"openai": {"base_url": f"{origin}/v1", "api_key": KEY}}}
    client = llmopt.AsyncClient(config, on_event=listen)

    async def embed(texts: Sequence[str]) -> Answer:
        try:
            found = await client.embed(f"openai/{MODEL}", texts, deadline=deadline)
        except llmopt.PartialFailure as failure:
            raise _partly(failure) from failure
        return Answer(found.vectors.tolist())

    return embed


def _partly(failure: Any) -> PartlyFailedError:
    rows, errors = failure.result.vectors.tolist(), failure.result.errors
    kinds = sorted({type(error).__name__ for error in errors.values()})
    name = f"{type(failure).__name__} ({len(errors)} {', '.join(kinds)})"
    return PartlyFailedError(name, [None if at in errors else row for at, row in enumerate(rows)])


def open_openai(origin: str, deadline: float | None, seen: Seen) -> Embed:  # noqa: ARG001
    """The AsyncOpenAI client; a deadline is its time-out."""
    module: Any = importlib.import_module("openai")
    bound = {} if deadline is None else {"timeout": deadline}
    client = module.AsyncOpenAI(base_url=f"{origin}/v1", api_key=KEY, **bound)

    async def embed(texts: Sequence[str]) -> Answer:
        answer = await client.embeddings.create(model=MODEL, input=list(texts))
        return Answer([item.embedding for item in answer.data], [item.index for item in answer.data])

    return embed


def open_litellm(origin: str, deadline: float | None, seen: Seen) -> Embed:  # noqa: ARG001
    """The function litellm.aembedding; a deadline is its time-out."""
    module: Any = importlib.import_module("litellm")
    given: dict[str, Any] = {"api_base": f"{origin}/v1", "api_key": KEY, "num_retries": RETRIES}
    given |= {} if deadline is None else {"timeout": deadline}

    async def embed(texts: Sequence[str]) -> Answer:
        answer = await module.aembedding(model=f"openai/{MODEL}", input=list(texts), **given)
        return Answer([item["embedding"] for item in answer.data], [item["index"] for item in answer.data])

    return embed


def open_router(origin: str, deadline: float | None, seen: Seen) -> Embed:  # noqa: ARG001
    """litellm's Router with one deployment; a deadline is its time-out."""
    module: Any = importlib.import_module("litellm")
    params = {"model": f"openai/{MODEL}", "api_base": f"{origin}/v1", "api_key": KEY}
    bound = {} if deadline is None else {"timeout": deadline}
    deployments = [{"model_name": "embed", "litellm_params": params}]
    router = module.Router(model_list=deployments, num_retries=RETRIES, **bound)

    async def embed(texts: Sequence[str]) -> Answer:
        answer = await router.aembedding(model="embed", input=list(texts))
        return Answer([item["embedding"] for item in answer.data], [item["index"] for item in answer.data])

    return embed


def open_baseten(origin: str, deadline: float | None, seen: Seen) -> Embed:  # noqa: ARG001
    """Baseten's performance client; a deadline is its time-out for the whole operation, and so for each request."""
    module: Any = importlib.import_module("baseten_performance_client")
    client = module.PerformanceClient(origin, KEY)
    bound = {} if deadline is None else {"total_timeout_s": deadline, "timeout_s": deadline}

    async def embed(texts: Sequence[str]) -> Answer:
        preference = module.RequestProcessingPreference(**bound)
        answer = await client.async_embed(list(texts), model=MODEL, preference=preference)
        return Answer(answer.numpy().tolist(), [item.index for item in answer.data])

    return embed


@dataclass(frozen=True)
class Contender:
    """One column of the table: `package` is what pip installs, `environment` what --python names."""

    name: str
    title: str
    package: str
    environment: str
    opened: Callable[[str, float | None, Seen], Embed]


CONTENDERS = (
    Contender("llmopt", "llmopt", "llmopt", "llmopt", open_llmopt),
    Contender("openai", "openai", "openai", "openai", open_openai),
    Contender("litellm", "litellm, `num_retries=3`", "litellm", "litellm", open_litellm),
    Contender("router", "litellm Router, `num_retries=3`", "litellm", "litellm", open_router),
    Contender("baseten", "Baseten", "baseten-performance-client", "baseten", open_baseten),
)


def contender_named(name: str) -> Contender:
    """The contender of that name."""
    return next(each for each in CONTENDERS if each.name == name)
