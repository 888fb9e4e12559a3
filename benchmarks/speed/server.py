"""The loopback server: canned answers of the shape that the path names, at as little cost as Python can.

    python -m benchmarks.speed.server

Paths are ``/{form}-{items}x{dimensions}-{delay}ms/v1/...``. Form ``asked`` answers with base64 where the request
asks for it and with numbers where it does not; ``numbers`` always with numbers, as many servers do. GET
``.../v1/models`` lists ``items`` models, packed for who accepts that. ``/stats`` tells what was served, and what it
cost. One process, written over asyncio's protocols (uvloop's where that is installed): an answer is one look-up
and one write.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import re
import time
from functools import cache
from typing import Any, Final

from benchmarks.speed.texts import vectors

_SHAPE: Final = re.compile(rb" /(asked|numbers)-(\d+)x(\d+)-(\d+)ms(\S*) ")
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_PACKED: Final = re.compile(rb"content-encoding: *gzip", re.IGNORECASE)
_TAKES_GZIP: Final = re.compile(rb"accept-encoding:[^\r]*gzip", re.IGNORECASE)
_ASKS_BASE64: Final = re.compile(rb'"encoding_format": ?"base64"')
# As OpenAI sends them, with limits that are out of the way.
_HEADERS: Final = (
    "date: Mon, 02 Nov 2026 00:00:00 GMT\r\nserver: canned\r\naccess-control-expose-headers: X-Request-ID\r\n"
    "openai-processing-ms: 21\r\nopenai-version: 2020-10-01\r\nx-request-id: req_0123456789abcdef\r\n"
    "x-ratelimit-limit-requests: 100000000\r\nx-ratelimit-limit-tokens: 100000000000\r\n"
    "x-ratelimit-remaining-requests: 99999999\r\nx-ratelimit-remaining-tokens: 99999999999\r\n"
    "x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 0s\r\n"
)


class Counters:
    """What was served so far: requests, and the bytes of them and of their answers, heads included, as they travelled."""

    def __init__(self) -> None:
        self.requests = 0
        self.received = 0
        self.sent = 0

    def told(self) -> dict[str, float]:
        """As plain values, with the CPU seconds of this process."""
        return {**vars(self), "cpu": time.process_time()}


class Answering(asyncio.Protocol):
    """One connection."""

    def __init__(self, counters: Counters) -> None:
        self._counters: Final = counters
        self._pieces: list[bytes] = []
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._pieces.append(data)
        self._missing -= len(data)
        # A long body is put together once, when all of it is there.
        if self._missing > 0:
            return
        held = data if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        while held:
            end = held.find(b"\r\n\r\n")
            found = _LENGTH.search(held, 0, end) if end >= 0 else None
            whole = end + 4 + (int(found[1]) if found else 0) if end >= 0 else len(held) + 1
            if len(held) < whole:
                self._pieces.append(held)
                self._missing = whole - len(held)
                return
            self._answer(held[:whole], end)
            held = held[whole:]
        self._missing = 0

    def _answer(self, request: bytes, end: int) -> None:
        shape = _SHAPE.search(request, 0, request.find(b"\r\n"))
        if shape is None:
            self._write(_framed(json.dumps(self._counters.told()).encode()))
            return
        form, items, dimensions, delay, path = shape.groups()
        if path.endswith(b"/models"):
            answer = _catalogue(int(items), bool(_TAKES_GZIP.search(request, 0, end)))
        else:
            asked = form == b"asked" and _asks_base64(request, end)
            answer = _embeddings(int(items), int(dimensions), asked)
        self._counters.requests += 1
        self._counters.received += len(request)
        self._counters.sent += len(answer)
        if delay != b"0":
            asyncio.get_running_loop().call_later(int(delay) / 1000, self._write, answer)
        else:
            self._write(answer)

    def _write(self, answer: bytes) -> None:
        self._transport.write(answer)


def _asks_base64(request: bytes, end: int) -> bool:
    if _PACKED.search(request, 0, end):
        request, end = gzip.decompress(request[end + 4 :]), 0
    return bool(_ASKS_BASE64.search(request, end))


def _framed(body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@cache
def _embeddings(items: int, dimensions: int, packed: bool) -> bytes:  # noqa: FBT001 # the key of a table
    rows: list[Any] = vectors(items, dimensions).tolist()
    if packed:
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors(items, dimensions)]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": 12 * items, "total_tokens": 12 * items}
    body = {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}
    return _framed(json.dumps(body, separators=(",", ":")).encode(), _HEADERS)


@cache
def _catalogue(items: int, packed: bool) -> bytes:  # noqa: FBT001 # as above
    body = json.dumps({"object": "list", "data": [_model(number) for number in range(items)]}).encode()
    if packed:
        return _framed(gzip.compress(body, 6), _HEADERS + "content-encoding: gzip\r\n")
    return _framed(body, _HEADERS)


def _model(number: int) -> dict[str, Any]:
    """An entry with as much in it as gateways put there, about a kilobyte."""
    maker = f"maker-{number % 61}"
    name = f"{maker}/model-{number}-instruct"
    price = f"0.{number * 7919 % 10**7:07d}"
    return {
        "id": name,
        "canonical_slug": f"{name}-2026-{number % 12 + 1:02d}",
        "object": "model",
        "owned_by": maker,
        "name": f"{maker.title()}: Model {number} (instruct)",
        "created": 1_700_000_000 + number * 977,
        "description": f"Model {number} of {maker} is a {number % 400 + 1}B mixture for tasks no. {number * 31 % 977}. "
        "It follows instructions, calls functions and writes code; it was trained on text and images up to the "
        f"year 2026 and is served with a context of {number % 32 + 1} thousand tokens. " * 2,
        "context_length": (number % 32 + 1) * 4096,
        "architecture": {
            "modality": "text+image->text",
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "pricing": {"prompt": price, "completion": price, "request": "0", "image": "0"},
        "top_provider": {"context_length": 65536, "max_completion_tokens": 8192, "is_moderated": False},
        "per_request_limits": None,
        "supported_parameters": [
            "max_tokens",
            "temperature",
            "tools",
            "tool_choice",
            "top_p",
            "seed",
            "stop",
        ],
    }


async def _serve() -> None:
    counters = Counters()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Answering(counters), "127.0.0.1", 0, backlog=2048)
    print(listener.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    await listener.serve_forever()


def main() -> None:
    """Serve until the process is ended; the port is printed."""
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())


if __name__ == "__main__":
    main()
