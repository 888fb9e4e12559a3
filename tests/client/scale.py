"""A client with many callers or many texts: bounds are kept, and memory and descriptors stay flat.

    python -m tests.client.scale [threads | burst | texts] [--texts 1000000] [--calls 20000] [--threads 32]

``threads``: several threads share one blocking client, and the server never sees more than ``max_concurrency`` requests
at a time. ``burst``: many calls begin together; those above the bound of waiting calls are refused immediately, and all
others are answered. ``texts``: many texts pass through ``embed_iter``. Every vector is compared. The server is another
process. The exit code is 1 if one of these does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from attrs import define, field

import llmopt

MODEL: Final = "server/m"
MAX_WAITING: Final = 10_000  # docs/operating.md
HOLD_S: Final = 0.005  # the server keeps a request so long, so that others arrive meanwhile
CONCURRENCY: Final = 8
MAX_GROWTH: Final = 1.1
"""Memory or descriptors of the last third of a run, over those of the second third."""
SLACK_DESCRIPTORS: Final = 8


@define
class Resources:
    """Memory and open descriptors of this process over time."""

    mebibytes: list[int] = field(factory=list)
    descriptors: list[int] = field(factory=list)

    def sample(self) -> None:
        """Write down both."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self.mebibytes.append(pages * os.sysconf("SC_PAGE_SIZE") >> 20)
        self.descriptors.append(sum(1 for _ in Path("/proc/self/fd").iterdir()))

    @property
    def flat(self) -> bool:
        """Whether neither grew in the last third of the run; true for a run too short to tell."""
        return growth(self.mebibytes) <= MAX_GROWTH and (
            growth(self.descriptors) <= MAX_GROWTH
            or max(self.descriptors) - min(self.descriptors) <= SLACK_DESCRIPTORS
        )

    def __str__(self) -> str:
        if not self.mebibytes:
            return "memory and descriptors not looked at: the run was too short"
        return (
            f"memory {self.mebibytes[0]} to {self.mebibytes[-1]} MiB (growth {growth(self.mebibytes):.2f}), "
            f"descriptors {self.descriptors[0]} to {self.descriptors[-1]}, at most {max(self.descriptors)}"
        )


def growth(samples: list[int]) -> float:
    """The maximum of the last third over that of the second third; 1.0 for too few samples to tell."""
    third = len(samples) // 3
    if third < 2:
        return 1.0
    return max(samples[2 * third :]) / max(samples[third : 2 * third])


def number_of(text: str) -> int:
    """The number at the end of a text."""
    return int(text.rpartition(" ")[2])


def vector_of(number: int) -> list[int]:
    """Three numbers that tell which text it was, exact as float32."""
    return [1, number % 1_000, number // 1_000]


def check(texts: list[str], vectors: Any) -> None:
    """Compare every vector with its text."""
    expected = [vector_of(number_of(text)) for text in texts]
    if vectors.tolist() != expected:
        raise AssertionError(f"a wrong vector among those of {texts[0]!r}")


class CountingServer(asyncio.Protocol):
    """Answers embeddings after a while, and counts how many requests it has at a time.

    A GET is answered with the counts.
    """

    in_flight = peak = requests = connections = 0

    def __init__(self) -> None:
        self._received = b""
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        CountingServer.connections += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if len(body) < length or not _:
            return
        self._received = b""
        if head.startswith(b"GET"):
            self._answer({"peak": self.peak, "requests": self.requests, "connections": self.connections})
            return
        CountingServer.requests += 1
        CountingServer.in_flight += 1
        CountingServer.peak = max(self.peak, self.in_flight)
        asyncio.get_running_loop().call_later(HOLD_S, self._embed, json.loads(body)["input"])

    def _embed(self, texts: list[str]) -> None:
        CountingServer.in_flight -= 1
        rows = [{"index": index, "embedding": vector_of(number_of(text))} for index, text in enumerate(texts)]
        usage = {"prompt_tokens": len(texts), "total_tokens": len(texts)}
        self._answer({"data": rows, "model": "m", "usage": usage})

    def _answer(self, value: object) -> None:
        body = json.dumps(value).encode()
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


def serve() -> None:
    """Serve on a port of the loopback until standard input ends; prints the URL first."""

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(CountingServer, "127.0.0.1", 0, backlog=1024)
        print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.close()

    asyncio.run(run())


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Run the server in another process; its base URL."""
    command = [sys.executable, "-m", "tests.client.scale", "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()


def counts(url: str) -> dict[str, int]:
    """What the server counted."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        found: dict[str, int] = json.load(answer)
    return found


def config_for(url: str) -> dict[str, Any]:
    """A provider without rate limits, and no cache.

    The timeouts are long: when 20,000 calls begin at once, no event loop reads its sockets for seconds.
    """
    timeouts = dict.fromkeys(("connect", "read", "read_large", "total"), 600.0)
    entry = {
        "plugin": "local",
        "base_url": f"{url}/v1",
        "max_concurrency": CONCURRENCY,
        "max_retries": 0,
        "timeouts": timeouts,
    }
    return {"cache": False, "providers": {"server": entry}}


def threads(number: int, calls: int) -> str:
    """So many threads call one blocking client."""
    with serving() as url, llmopt.Client(config_for(url)) as client, ThreadPoolExecutor(number) as pool:
        ready = threading.Barrier(number)

        def work(first: int) -> None:
            ready.wait()
            for call in range(first, calls, number):
                texts = [f"text {call}"]
                check(texts, client.embed(MODEL, texts).vectors)

        for done in [pool.submit(work, first) for first in range(number)]:
            done.result()
        found = counts(url)
        assert found["requests"] == calls
        assert 1 < found["peak"] <= CONCURRENCY, found
        assert found["connections"] <= CONCURRENCY + 1, found  # and the one that asks for the counts
        return f"{number} threads: {found}"


def burst(calls: int) -> str:
    """So many calls at once."""

    async def run(url: str) -> Counter[str]:
        async with llmopt.AsyncClient(config_for(url)) as client:

            async def one(call: int) -> str:
                texts = [f"text {call}"]
                try:
                    found = await client.embed(MODEL, texts)
                except llmopt.QueueFull:
                    return "refused"
                check(texts, found.vectors)
                return "answered"

            outcomes = Counter(await asyncio.gather(*map(one, range(calls))))
            # What waits no longer makes room.
            assert await one(calls) == "answered"
            return outcomes

    with serving() as url:
        outcomes = asyncio.run(run(url))
        found = counts(url)
    least = min(calls, MAX_WAITING)
    assert least <= outcomes["answered"] <= least + CONCURRENCY, outcomes
    assert outcomes.total() == calls
    assert found["requests"] == outcomes["answered"] + 1
    assert found["peak"] <= CONCURRENCY, found
    return f"{calls:,} calls at once: {dict(outcomes)}, {found}"


def texts(number: int, *, samples: int = 100) -> str:
    """So many texts through ``embed_iter``."""
    resources = Resources()

    async def run(url: str) -> None:
        source = (f"text {index}" for index in range(number))
        seen = 0
        async with llmopt.AsyncClient(config_for(url)) as client:
            async for part in client.embed_iter(MODEL, source):
                count = len(part.vectors)
                assert part.start == seen
                check([f"text {index}" for index in range(seen, seen + count)], part.vectors)
                if seen * samples // number != (seen + count) * samples // number:
                    resources.sample()
                seen += count
        assert seen == number

    with serving() as url:
        asyncio.run(run(url))
    assert resources.flat, str(resources)
    return f"{number:,} texts: {resources}"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.client.scale", description=__doc__)
    parser.add_argument("part", nargs="*", choices=["threads", "burst", "texts", "serve", []])
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=32)
    options = parser.parse_args()
    if options.part == ["serve"]:
        serve()
        return 0
    parts = {
        "threads": lambda: threads(options.threads, options.calls),
        "burst": lambda: burst(options.calls),
        "texts": lambda: texts(options.texts),
    }
    failed = 0
    for name in options.part or parts:
        try:
            print(parts[name](), flush=True)
        except AssertionError as error:
            failed = 1
            print(f"{name} failed: {error}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
