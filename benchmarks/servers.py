"""The loopback servers: prepared embeddings and model lists, and chat streams at a fixed pace.

    python -m benchmarks.servers embeddings [CORE]
    python -m benchmarks.servers streams [CORE]

Both print their port and serve until the process is killed.

Paths of the embeddings server are ``/{format}-{items}x{dimensions}-{delay}ms/v1/...``. With the format ``requested`` it
sends base64 if the request asks for it, else numbers; with ``numbers`` it always sends numbers, as many servers do. GET
``.../v1/models`` lists ``items`` models, compressed if the client accepts gzip. With ``-1in20`` after the delay, every
twentieth request fails: four of five get a 503, the fifth loses its connection. ``/stats`` returns counters. The server
is an asyncio protocol (of uvloop where it is installed): a response costs one dictionary lookup and one write.

Paths of the streams server are ``/{chunks}-{pace}us/v1/chat/completions``. With a pace of 0 all chunks are sent at once in
pieces of 64 KiB, as by a proxy that was blocked. Else each chunk is sent alone, ``pace`` microseconds after the one before
it, and its text is the moment of sending (nanoseconds of the monotonic clock). A thread keeps the pace, because a timer of
the event loop would be up to a millisecond late.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import json
import re
import socket
import sys
import threading
import time
from functools import cache
from typing import Any, Final

from benchmarks.cores import allow_many_sockets, pin
from benchmarks.speed_cases import vectors

_SHAPE: Final = re.compile(rb" /(requested|numbers)-(\d+)x(\d+)-(\d+)ms(?:-1in(\d+))?(/\S*) ")
_STREAM: Final = re.compile(rb" /(\d+)-(\d+)us/")
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_GZIPPED: Final = re.compile(rb"content-encoding: *gzip", re.IGNORECASE)
_ACCEPTS_GZIP: Final = re.compile(rb"accept-encoding:[^\r]*gzip", re.IGNORECASE)
_BASE64: Final = re.compile(rb'"encoding_format": ?"base64"')
# As OpenAI sends them, with limits that are never reached.
_HEADERS: Final = (
    "date: Mon, 02 Nov 2026 00:00:00 GMT\r\nserver: canned\r\naccess-control-expose-headers: X-Request-ID\r\n"
    "openai-processing-ms: 21\r\nopenai-version: 2020-10-01\r\nx-request-id: req_0123456789abcdef\r\n"
    "x-ratelimit-limit-requests: 100000000\r\nx-ratelimit-limit-tokens: 100000000000\r\n"
    "x-ratelimit-remaining-requests: 99999999\r\nx-ratelimit-remaining-tokens: 99999999999\r\n"
    "x-ratelimit-reset-requests: 6ms\r\nx-ratelimit-reset-tokens: 0s\r\n"
)
_STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 02 Nov 2026 00:00:00 GMT\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"openai-processing-ms: 21\r\nx-request-id: req_0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
# As OpenAI sends it, without its padding.
_EVENT: Final = (
    b'data: {"id":"chatcmpl-CF2w0qvDCKCLNpvbTUFU7EJqGrEC2","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_560af6e559",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
_LAST_EVENTS: Final = (
    b'data: {"id":"chatcmpl-CF2w0qvDCKCLNpvbTUFU7EJqGrEC2","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":null}\n\ndata: {"id":"chatcmpl-CF2w0qvDCKCLNpvbTUFU7EJqGrEC2","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":3,'
    b'"completion_tokens":500,"total_tokens":503}}\n\ndata: [DONE]\n\n'
)
_UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 52\r\n\r\n"
    b'{"error": {"message": "overloaded", "type": "busy"}}'
)
_LOST_OF_FAILURES: Final = 5
_WRITE_SIZE: Final = 1 << 16
# time.sleep can be late by about this much; the rest of a pause is skipped instead of slept.
_SLEEP_ERROR_S: Final = 0.0002


class Counters:
    """Connections and requests so far, and the bytes of requests and responses as transferred, with their heads."""

    def __init__(self) -> None:
        self.connections = 0
        self.requests = 0
        self.failures = 0
        self.received = 0
        self.sent = 0

    def snapshot(self) -> dict[str, float]:
        """Return the counters, and the CPU seconds of this process."""
        return {**vars(self), "cpu": time.process_time()}


class EmbeddingsProtocol(asyncio.Protocol):
    """One connection to the embeddings server."""

    def __init__(self, counters: Counters) -> None:
        self._counters: Final = counters
        self._chunks: list[bytes] = []
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._counters.connections += 1

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._missing -= len(data)
        # A long body is joined once, when it is complete.
        if self._missing > 0:
            return
        received = data if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        while received:
            head_end, size = _request_size(received)
            if len(received) < size:
                self._chunks.append(received)
                self._missing = size - len(received)
                return
            self._respond(received[:size], head_end)
            received = received[size:]
        self._missing = 0

    def _respond(self, request: bytes, head_end: int) -> None:
        shape = _SHAPE.search(request, 0, request.find(b"\r\n"))
        if shape is None:
            self._write(_response(json.dumps(self._counters.snapshot()).encode()))
            return
        form, items, dimensions, delay, one_in, path = shape.groups()
        if one_in and self._fails(int(one_in)):
            return
        if path.endswith(b"/models"):
            response = _model_list(int(items), bool(_ACCEPTS_GZIP.search(request, 0, head_end)))
        else:
            as_base64 = form == b"requested" and _wants_base64(request, head_end)
            response = _embeddings(int(items), int(dimensions), as_base64)
        self._counters.requests += 1
        self._counters.received += len(request)
        self._counters.sent += len(response)
        if delay != b"0":
            asyncio.get_running_loop().call_later(int(delay) / 1000, self._write, response)
        else:
            self._write(response)

    def _write(self, response: bytes) -> None:
        self._transport.write(response)

    def _fails(self, one_in: int) -> bool:
        """Whether this request fails; if so, it has been answered."""
        counters = self._counters
        if (counters.requests + 1) % one_in:
            return False
        counters.requests += 1
        counters.failures += 1
        if counters.failures % _LOST_OF_FAILURES:
            self._write(_UNAVAILABLE)
        else:
            self._transport.close()
        return True


def _request_size(received: bytes) -> tuple[int, int]:
    """The end of the head and the size of the first request; more than was received if its head is incomplete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return end, len(received) + 1
    length = _LENGTH.search(received, 0, end)
    return end, end + 4 + (int(length[1]) if length else 0)


def _wants_base64(request: bytes, head_end: int) -> bool:
    if _GZIPPED.search(request, 0, head_end):
        request, head_end = gzip.decompress(request[head_end + 4 :]), 0
    return bool(_BASE64.search(request, head_end))


def _response(body: bytes, headers: str = "") -> bytes:
    head = (
        f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{headers}content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@cache
def _embeddings(items: int, dimensions: int, as_base64: bool) -> bytes:  # noqa: FBT001 # a key of the cache
    rows: list[Any] = vectors(items, dimensions).tolist()
    if as_base64:
        rows = [base64.b64encode(row.tobytes()).decode() for row in vectors(items, dimensions)]
    data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)]
    usage = {"prompt_tokens": 12 * items, "total_tokens": 12 * items}
    body = {"object": "list", "data": data, "model": "text-embedding-3-small", "usage": usage}
    return _response(json.dumps(body, separators=(",", ":")).encode(), _HEADERS)


@cache
def _model_list(items: int, compressed: bool) -> bytes:  # noqa: FBT001 # a key of the cache
    body = json.dumps({"object": "list", "data": [_model(number) for number in range(items)]}).encode()
    if compressed:
        return _response(gzip.compress(body, 6), _HEADERS + "content-encoding: gzip\r\n")
    return _response(body, _HEADERS)


def _model(number: int) -> dict[str, Any]:
    """An entry as gateways send it, about a kilobyte."""
    maker = f"maker-{number % 61}"
    name = f"{maker}/model-{number}-instruct"
    price = f"0.{number * 7919 % 10**7:07d}"
    parameters = ["max_tokens", "temperature", "tools", "tool_choice", "top_p", "seed", "stop"]
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
        "supported_parameters": parameters,
    }


async def _serve_embeddings() -> None:
    counters = Counters()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: EmbeddingsProtocol(counters), "127.0.0.1", 0, backlog=8192)
    print(listener.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    await listener.serve_forever()


def _serve_streams() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve_connection, args=(connection,), daemon=True).start()


def _serve_connection(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    received = b""
    with connection:
        try:
            while True:
                head_end, size = _request_size(received)
                if len(received) < size:
                    data = connection.recv(1 << 16)
                    if not data:
                        return
                    received += data
                    continue
                shape = _STREAM.search(received, 0, head_end)
                received = received[size:]
                if shape is None:
                    return
                _send_stream(connection, int(shape[1]), int(shape[2]) / 1e6)
        except OSError:
            # The client has closed the connection.
            return


def _send_stream(connection: socket.socket, chunks: int, pace_s: float) -> None:
    end = _chunk(_LAST_EVENTS) + b"0\r\n\r\n"
    if not pace_s:
        response = _STREAM_HEAD + b"".join(_event() for _ in range(chunks)) + end
        for start in range(0, len(response), _WRITE_SIZE):
            connection.sendall(response[start : start + _WRITE_SIZE])
        return
    connection.sendall(_STREAM_HEAD)
    due = time.monotonic()
    for _ in range(chunks):
        due += pace_s
        remaining = due - time.monotonic()
        if remaining > _SLEEP_ERROR_S:
            time.sleep(remaining - _SLEEP_ERROR_S / 2)
        connection.sendall(_event())
    connection.sendall(end)


def _event() -> bytes:
    return _chunk(_EVENT % str(time.monotonic_ns()).encode())


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def main() -> None:
    """Serve until the process is killed."""
    allow_many_sockets()
    if len(sys.argv) > 2:
        pin(int(sys.argv[2]))
    if sys.argv[1] == "streams":
        _serve_streams()
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve_embeddings())
    else:
        uvloop.run(_serve_embeddings())


if __name__ == "__main__":
    main()
