"""Measures the cost of a request: CPU per request with 64 in flight, against aiohttp alone.

    python -m tests.transport.overhead [--requests N] [--rounds N] [--vectors N] [--uvloop] [--profile]

The server is another process that answers at little cost. The rounds alternate, so that a busy machine disturbs both
clients alike, and the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import cProfile
import gc
import json
import os
import pstats
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest

WIDTH = 64
DIMENSIONS = 1536
HEADERS = {
    "authorization": "Bearer sk-0123456789abcdef0123456789abcdef",
    "content-type": "application/json",
    "accept": "application/json",
    "user-agent": "llmopt",
}
BODY = json.dumps({"model": "m", "input": ["a text of some words"], "encoding_format": "base64"}).encode()
Send = Callable[[], Awaitable[Any]]


class FixedServer(asyncio.Protocol):
    """Answers every request with the same bytes, and parses no more than necessary."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._kept = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self._kept += data
        while (end := self._kept.find(b"\r\n\r\n")) >= 0:
            head = self._kept[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\r\n", 1)[0] or 0)
            if len(self._kept) < end + 4 + length:
                return
            self._kept = self._kept[end + 4 + length :]
            self._transport.write(self._answer)


def answer(vectors: int) -> bytes:
    vector = base64.b64encode(os.urandom(4 * DIMENSIONS)).decode()
    data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(vectors)]
    body = json.dumps({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 5}}).encode()
    names = ("limit-requests", "remaining-requests", "reset-requests", "limit-tokens", "remaining-tokens")
    limits = "".join(f"x-ratelimit-{name}: 3000\r\n" for name in names)
    head = (
        "HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nx-request-id: req_0123456789\r\n{limits}server: s\r\n\r\n"
    )
    return head.encode() + body


async def serve(vectors: int) -> None:
    whole = answer(vectors)
    listener = await asyncio.get_running_loop().create_server(lambda: FixedServer(whole), "127.0.0.1", 0)
    print(listener.sockets[0].getsockname()[1], flush=True)
    gc.freeze()
    await listener.serve_forever()


async def drive(send: Send, requests: int) -> float:
    """CPU seconds per request of this process."""
    numbers = iter(range(requests))

    async def worker() -> None:
        for _ in numbers:
            await send()

    await asyncio.gather(*(send() for _ in range(WIDTH)))
    gc.collect()
    before = time.process_time()
    await asyncio.gather(*(worker() for _ in range(WIDTH)))
    return (time.process_time() - before) / requests


async def bare(url: str, requests: int) -> float:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=WIDTH)) as session:

        async def send() -> None:
            response = await session.post(url, data=BODY, headers=HEADERS)
            await response.read()

        return await drive(send, requests)


async def ours(url: str, requests: int) -> float:
    pool = ConnectionPool(pool_size=WIDTH)

    async def send() -> None:
        await pool.send(TransportRequest(method="POST", url=url, headers=HEADERS, body=BODY))

    seconds = await drive(send, requests)
    await pool.aclose()
    return seconds


def measure(url: str, options: argparse.Namespace) -> None:
    run: Any = asyncio.run
    if options.uvloop:
        import uvloop  # type: ignore[import-not-found,unused-ignore]

        run = uvloop.run
    if options.profile:
        with cProfile.Profile() as profile:
            run(ours(url, options.requests))
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    costs: dict[str, list[float]] = {"aiohttp": [], "llmopt": []}
    for _ in range(options.rounds):
        costs["aiohttp"].append(run(bare(url, options.requests)))
        costs["llmopt"].append(run(ours(url, options.requests)))
    middle = {name: statistics.median(each) * 1e6 for name, each in costs.items()}
    least = {name: min(each) * 1e6 for name, each in costs.items()}
    for name in costs:
        print(f"{name:8} {middle[name]:7.1f} µs of CPU per request (least {least[name]:.1f})")
    print(
        f"ratio    {middle['llmopt'] / middle['aiohttp']:7.2f} (least {least['llmopt'] / least['aiohttp']:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vectors", type=int, default=1)
    parser.add_argument("--uvloop", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.vectors))
        return
    command = [sys.executable, "-m", "tests.transport.overhead", "--serve", "--vectors", str(options.vectors)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            measure(f"http://127.0.0.1:{int(server.stdout.readline())}/v1/embeddings", options)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
