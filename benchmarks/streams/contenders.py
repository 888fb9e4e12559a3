"""How each contender reads a stream. Imported in its own environment: nothing but the standard library is.

Every client is used as its documentation shows it, with its own defaults. Each gives the text of every event at the
moment it has it.
"""

from __future__ import annotations

import importlib
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

MODEL = "gpt-4o-mini"
KEY = "test-key"
MESSAGES = [{"role": "user", "content": "Tell me a story."}]

Texts = AsyncIterator[str]


class Sockets:
    """A blocking socket, and nothing but a look for the content: what a stream costs at the very least."""

    def __init__(self, base_url: str) -> None:
        host, _, path = base_url.removeprefix("http://").partition("/")
        name, _, port = host.partition(":")
        body = json.dumps({"model": MODEL, "messages": MESSAGES, "stream": True})
        self._request = (
            f"POST /{path}/chat/completions HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._socket = socket.create_connection((name, int(port)))

    def read(self) -> Iterator[str]:
        """The texts of one stream."""
        self._socket.sendall(self._request)
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            parts = (rest + self._socket.recv(1 << 16)).split(b'"content":"')
            for part in parts[1:]:
                yield part.partition(b'"')[0].decode()
            rest = parts[-1][-16:] if len(parts) == 1 or b'"' in parts[-1] else b'"content":"' + parts[-1]

    async def close(self) -> None:
        """Let the connection go."""
        self._socket.close()


class Floor:
    """aiohttp's session, a split at blank lines, and the standard library's JSON."""

    def __init__(self, base_url: str) -> None:
        self._aiohttp: Any = importlib.import_module("aiohttp")
        self._url = f"{base_url}/chat/completions"
        self._session: Any = None

    async def read(self) -> Texts:
        """The texts of one stream."""
        self._session = self._session or self._aiohttp.ClientSession()
        body = {"model": MODEL, "messages": MESSAGES, "stream": True}
        async with self._session.post(self._url, json=body) as answer:
            rest = b""
            async for piece in answer.content.iter_any():
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    if event != b"data: [DONE]":
                        for choice in json.loads(event[6:])["choices"]:
                            yield choice["delta"].get("content", "")

    async def close(self) -> None:
        """Let the connections go."""
        await self._session.close()


class Llmopt:
    """llmopt with its OpenAI plugin."""

    def __init__(self, base_url: str) -> None:
        llmopt: Any = importlib.import_module("llmopt")
        entry = {"base_url": base_url, "api_key": KEY}
        self._client = llmopt.AsyncClient({"providers": {"openai": entry}})

    async def read(self) -> Texts:
        """The texts of one stream."""
        async with self._client.stream(f"openai/{MODEL}", MESSAGES) as stream:
            async for event in stream:
                yield event.text

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.aclose()


class LlmoptSync:
    """llmopt's synchronous client."""

    def __init__(self, base_url: str) -> None:
        llmopt: Any = importlib.import_module("llmopt")
        entry = {"base_url": base_url, "api_key": KEY}
        self._client = llmopt.Client({"providers": {"openai": entry}})

    def read(self) -> Iterator[str]:
        """The texts of one stream."""
        with self._client.stream(f"openai/{MODEL}", MESSAGES) as stream:
            for event in stream:
                yield event.text

    async def close(self) -> None:
        """Let the connections go."""
        self._client.close()


class OpenAI:
    """AsyncOpenAI."""

    def __init__(self, base_url: str) -> None:
        module: Any = importlib.import_module("openai")
        self._client = module.AsyncOpenAI(base_url=base_url, api_key=KEY)

    async def read(self) -> Texts:
        """The texts of one stream."""
        stream = await self._client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        async for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or ""

    async def close(self) -> None:
        """Let the connections go."""
        await self._client.close()


class OpenAISync:
    """OpenAI, synchronous."""

    def __init__(self, base_url: str) -> None:
        module: Any = importlib.import_module("openai")
        self._client = module.OpenAI(base_url=base_url, api_key=KEY)

    def read(self) -> Iterator[str]:
        """The texts of one stream."""
        stream = self._client.chat.completions.create(
            model=MODEL, messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
        for chunk in stream:
            for choice in chunk.choices:
                yield choice.delta.content or ""

    async def close(self) -> None:
        """Let the connections go."""
        self._client.close()


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        name: on the command line.
        title: in the table.
        environment: which of `benchmarks.speed.environments` it is installed in.
        package: whose version is told; None for none.
        make: makes it for a base URL.
    """

    name: str
    title: str
    environment: str
    package: str | None
    make: Callable[[str], Any]


CONTENDERS = (
    Contender("sockets", "a bare socket", "llmopt", None, Sockets),
    Contender("floor", "bare aiohttp, json", "llmopt", "aiohttp", Floor),
    Contender("llmopt", "llmopt", "llmopt", "llmopt", Llmopt),
    Contender("openai", "openai", "openai", "openai", OpenAI),
    Contender("llmopt-sync", "llmopt, synchronous", "llmopt", "llmopt", LlmoptSync),
    Contender("openai-sync", "openai, synchronous", "openai", "openai", OpenAISync),
)


def contender_named(name: str) -> Contender:
    """The contender of that name."""
    return next(each for each in CONTENDERS if each.name == name)
