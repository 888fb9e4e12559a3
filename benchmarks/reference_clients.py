"""Reference clients: bare sockets, aiohttp ("the floor") and httpx, with fast decoding and no checks.

They show what a request costs at least. Base64 is decoded straight into float32 rows; lists of numbers are located by
their brackets and read by a parser that fills a buffer. They use nothing of llmopt, so that a change of llmopt never
changes what it is compared with.
"""

from __future__ import annotations

import gzip
import importlib
import json
import socket
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from benchmarks.clients import CHAT_MODEL, HEADERS, KEY, MESSAGES, MODEL, Client, Setting, SyncClient
from benchmarks.speed_cases import texts as short_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Sockets(Client):
    """Sends a prepared request and reads as many bytes as a response has: the limit of what the server can do.

    It is driven by `send_all` instead of asyncio.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        url = urlsplit(setting.base_url)
        texts = short_texts(10**9, setting.batch)
        body = json.dumps({"model": MODEL, "input": texts, "encoding_format": "base64"}).encode()
        head = (
            f"POST {url.path}/embeddings HTTP/1.1\r\nhost: {url.netloc}\r\nauthorization: Bearer {KEY}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._request = head.encode() + body
        address = (url.hostname or "", url.port or 80)
        self._sockets = [socket.create_connection(address) for _ in range(setting.in_flight)]
        self._buffer = bytearray(1 << 20)
        self._response_size = self._measure_response()

    def send_all(self, count: int) -> None:
        """Send ``count`` requests, one on each connection at a time."""
        rounds, rest = divmod(count, len(self._sockets))
        for width in [*[len(self._sockets)] * rounds, rest]:
            for connection in self._sockets[:width]:
                connection.sendall(self._request)
            for connection in self._sockets[:width]:
                self._read(connection, self._response_size)

    def _read(self, connection: socket.socket, size: int) -> None:
        while size:
            size -= connection.recv_into(self._buffer)

    def _measure_response(self) -> int:
        connection = self._sockets[0]
        connection.sendall(self._request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(1 << 16)
        head_size = received.index(b"\r\n\r\n") + 4
        length = received[:head_size].lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        size = head_size + int(length)
        self._read(connection, size - len(received))
        return size

    async def close(self) -> None:
        for connection in self._sockets:
            connection.close()


class Aiohttp(Client):
    """The floor: one aiohttp session, no checks, no protection."""

    def __init__(self, setting: Setting) -> None:
        import aiohttp

        super().__init__(setting)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=setting.in_flight))
        self._url = f"{setting.base_url}/embeddings"
        self._codec = _Codec()

    async def embed(self, texts: Sequence[str]) -> Any:
        body = self._codec.encode(texts)
        async with self._session.post(self._url, data=body, headers=HEADERS) as response:
            return self._codec.decode(await response.read())

    def rows(self, response: Any) -> Any:
        return response

    async def count_models(self) -> int:
        async with self._session.get(f"{self.setting.base_url}/models", headers=HEADERS) as response:
            return len(json.loads(await response.read())["data"])

    async def close(self) -> None:
        await self._session.close()


class Httpx(Client):
    """The asynchronous client of httpx or httpx2."""

    def __init__(self, setting: Setting, module: str) -> None:
        super().__init__(setting)
        httpx: Any = importlib.import_module(module)
        self._client = httpx.AsyncClient(limits=httpx.Limits(max_connections=setting.in_flight), timeout=60)
        self._url = f"{setting.base_url}/embeddings"
        self._codec = _Codec()

    async def embed(self, texts: Sequence[str]) -> Any:
        response = await self._client.post(self._url, content=self._codec.encode(texts), headers=HEADERS)
        return self._codec.decode(response.content)

    def rows(self, response: Any) -> Any:
        return response

    async def count_models(self) -> int:
        response = await self._client.get(f"{self.setting.base_url}/models", headers=HEADERS)
        return len(json.loads(response.content)["data"])

    async def close(self) -> None:
        await self._client.aclose()


class HttpxSync(SyncClient):
    """The synchronous client of httpx or httpx2."""

    def __init__(self, setting: Setting, module: str) -> None:
        super().__init__(setting)
        httpx: Any = importlib.import_module(module)
        self._client = httpx.Client(timeout=60)
        self._url = f"{setting.base_url}/embeddings"
        self._codec = _Codec()

    def embed(self, texts: Sequence[str]) -> Any:
        response = self._client.post(self._url, content=self._codec.encode(texts), headers=HEADERS)
        return self._codec.decode(response.content)

    def close(self) -> None:
        self._client.close()


class _Codec:
    """Encodes requests and decodes embeddings, with the libraries that llmopt uses."""

    def __init__(self) -> None:
        # Imported here: the stream clients below need none of it.
        import msgspec
        import pybase64
        import simdjson

        item = msgspec.defstruct("Item", [("embedding", msgspec.Raw), ("index", int)])
        response = msgspec.defstruct("Response", [("data", list[item])])  # type: ignore[valid-type] # made at run time
        self._numpy: Any = importlib.import_module("numpy")
        self._encode = msgspec.json.Encoder().encode
        self._split: Any = msgspec.json.Decoder(response).decode
        self._b64decode = pybase64.b64decode
        self._parse: Any = simdjson.Parser().parse

    def encode(self, texts: Sequence[str]) -> bytes:
        """Return the body of a request."""
        return self._encode({"model": MODEL, "input": texts, "encoding_format": "base64"})

    def decode(self, body: bytes) -> NDArray[np.float32]:
        """Return the vectors of a response."""
        if body.find(b'"embedding":[', 0, 200) > 0:
            return self._decode_lists(body)
        data = self._split(body).data
        rows: Any = None
        for item in data:
            text = memoryview(item.embedding)[1:-1]
            row = self._numpy.frombuffer(self._b64decode(text, validate=True), "<f4")
            if rows is None:
                rows = self._numpy.empty((len(data), row.size), self._numpy.float32)
            rows[item.index] = row
        return rows  # type: ignore[no-any-return] # a response has at least one

    def _decode_lists(self, body: bytes) -> NDArray[np.float32]:
        # The lists are cut out before the JSON is parsed: no parser then goes over their numbers twice.
        rest, spans, at = [], [], 0
        start = body.find(b"[", body.find(b"[") + 1)
        while start >= 0:
            end = body.find(b"]", start)
            rest.append(body[at : start + 1])
            spans.append((start, end + 1))
            at, start = end, body.find(b"[", end)
        rest.append(body[at:])
        # In the order of the response; a careful program copies the rows only if the order is another one.
        assert [item.index for item in self._split(b"".join(rest)).data] == list(range(len(spans)))
        rows: Any = None
        for number, (start, end) in enumerate(spans):
            # One expression: the parser refuses new input while a value of the last one is still referenced.
            row = self._numpy.frombuffer(self._parse(body[start:end]).as_buffer(of_type="d"))
            if rows is None:
                rows = self._numpy.empty((len(spans), row.size), self._numpy.float32)
            rows[number] = row
            del row
        return rows  # type: ignore[no-any-return] # a response has at least one


class TypedList(Client):
    """Unpacks and decodes a list of models that it has already: the least that a list costs, without any request.

    It reads the fields that `llmopt.Model` has, all entries in one decode.
    """

    def __init__(self, setting: Setting) -> None:
        import msgspec

        super().__init__(setting)
        texts, text, number = tuple[str, ...], str | None, int | None
        entry = msgspec.defstruct(
            "Entry",
            [
                ("id", str),
                ("name", str),
                ("created", number),
                ("context_length", number),
                ("architecture", _struct("Architecture", input_modalities=texts, output_modalities=texts)),
                ("pricing", _struct("Pricing", prompt=text, completion=text)),
                ("top_provider", _struct("TopProvider", max_completion_tokens=number)),
            ],
            gc=False,
        )
        response = msgspec.defstruct("Response", [("data", list[entry])])  # type: ignore[valid-type] # made at run time
        self._decode: Any = msgspec.json.Decoder(response).decode
        request = urllib.request.Request(f"{setting.base_url}/models", headers={"accept-encoding": "gzip"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request) as answer:
            self._body: bytes = answer.read()

    async def count_models(self) -> int:
        return len(self._decode(gzip.decompress(self._body)).data)


def _struct(name: str, **fields: Any) -> Any:
    import msgspec

    return msgspec.defstruct(name, [*fields.items()], gc=False)


class SocketStream:
    """Reads a stream from a blocking socket and only searches for the text: what a stream costs at least."""

    def __init__(self, base_url: str) -> None:
        url = urlsplit(base_url)
        body = json.dumps({"model": CHAT_MODEL, "messages": MESSAGES, "stream": True})
        self._request = (
            f"POST {url.path}/chat/completions HTTP/1.1\r\nhost: {url.netloc}\r\n"
            f"content-length: {len(body)}\r\n\r\n{body}"
        ).encode()
        self._socket = socket.create_connection((url.hostname or "", url.port or 80))

    def read(self) -> Iterator[str]:
        """Yield the texts of one stream."""
        self._socket.sendall(self._request)
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            pieces = (rest + self._socket.recv(1 << 16)).split(b'"content":"')
            for piece in pieces[1:]:
                yield piece.partition(b'"')[0].decode()
            rest = pieces[-1][-16:] if len(pieces) == 1 or b'"' in pieces[-1] else b'"content":"' + pieces[-1]

    async def close(self) -> None:
        """Close the connection."""
        self._socket.close()


class AiohttpStream:
    """Reads a stream with an aiohttp session, a split at blank lines, and the standard library's JSON."""

    def __init__(self, base_url: str) -> None:
        self._aiohttp: Any = importlib.import_module("aiohttp")
        self._url = f"{base_url}/chat/completions"
        self._session: Any = None

    async def read(self) -> AsyncIterator[str]:
        """Yield the texts of one stream."""
        self._session = self._session or self._aiohttp.ClientSession()
        body = {"model": CHAT_MODEL, "messages": MESSAGES, "stream": True}
        async with self._session.post(self._url, json=body) as response:
            rest = b""
            async for chunk in response.content.iter_any():
                *events, rest = (rest + chunk).split(b"\n\n")
                for event in events:
                    if event != b"data: [DONE]":
                        for choice in json.loads(event[6:])["choices"]:
                            yield choice["delta"].get("content", "")

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
