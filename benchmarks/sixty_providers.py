"""The lists of models of sixty providers at once, five of which fail: what it costs, and what is left without a network.

    python benchmarks/sixty_providers.py

Starts the sixty in a process of its own on loopback, each with 100 models and 200 ms for an answer.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROVIDERS = 60
MODELS = 100
DELAY_S = 0.2
AT_ONCE = 10
BAD = {7: "401", 18: "404", 29: "html", 40: "broken", 51: "refused"}
IDEAL_S = PROVIDERS / AT_ONCE * DELAY_S


def body(number: int) -> bytes:
    entries = [
        {"id": f"model-{number}-{each}", "object": "model", "created": 1_700_000_000, "owned_by": "them"}
        for each in range(MODELS)
    ]
    return json.dumps({"object": "list", "data": entries}).encode()


def answer(number: int) -> bytes:
    status, kind, content = "200 OK", "application/json", body(number)
    match BAD.get(number):
        case "401":
            status, content = "401 Unauthorized", b'{"error":{"message":"bad key"}}'
        case "404":
            status, content = "404 Not Found", b'{"error":{"message":"no such path"}}'
        case "html":
            kind, content = "text/html", b"<html>gateway</html>"
        case "broken":
            content = content[:200]
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def serve() -> None:
    """Sixty servers; prints their ports, then counts requests until it is ended."""
    ports = []
    servers = []
    count = [0]
    for number in range(PROVIDERS):
        content = answer(number)

        async def talk(
            reader: asyncio.StreamReader, writer: asyncio.StreamWriter, content: bytes = content
        ) -> None:
            try:
                while await reader.readuntil(b"\r\n\r\n"):
                    count[0] += 1
                    await asyncio.sleep(DELAY_S)
                    writer.write(content)
                    await writer.drain()
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        if BAD.get(number) == "refused":
            server.close()
        servers.append(server)
    print(json.dumps(ports), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(count[0], flush=True)


def config(ports: list[int], folder: str) -> dict[str, Any]:
    return {
        "cache_dir": folder,
        "providers": {
            f"p{number:02}": {"plugin": "local", "base_url": f"http://127.0.0.1:{port}/v1"}
            for number, port in enumerate(ports)
        },
    }


def summary(found: Any) -> str:
    from llmopt import Catalog

    good = [each for each in found.values() if isinstance(each, Catalog)]
    stale = sum(each.stale for each in good)
    bad = sorted(type(each).__name__ for each in found.values() if not isinstance(each, Catalog))
    return f"{len(good)} lists ({stale} stale) of {sum(map(len, good))} models, {len(bad)} errors {bad}"


async def asked(client: Any, names: list[str], label: str) -> None:
    started = time.perf_counter()
    found = await client.batch_list_models(names)
    print(f"{label:<44}{(time.perf_counter() - started) * 1e3:>10.1f} ms   {summary(found)}")


async def first(settings: dict[str, Any]) -> None:
    import llmopt

    names = list(settings["providers"])
    async with llmopt.AsyncClient(settings, flags={"retry": False}) as client:
        await asked(client, names, f"first call (ideal {IDEAL_S * 1e3:.0f} ms)")
        await asked(client, names, "second call")
        name = names[0]
        rounds = 20_000
        started = time.perf_counter()
        for _ in range(rounds):
            await client.list_models(name)
        print(f"{'one kept list':<44}{(time.perf_counter() - started) / rounds * 1e6:>10.2f} µs")
    with llmopt.Client(settings, flags={"retry": False}) as plain:
        plain.list_models(name)
        started = time.perf_counter()
        for _ in range(rounds):
            plain.list_models(name)
        print(f"{'one kept list, Client':<44}{(time.perf_counter() - started) / rounds * 1e6:>10.2f} µs")


async def later(settings: dict[str, Any], label: str) -> None:
    import llmopt

    names = [name for name in settings["providers"] if int(name[1:]) not in BAD]
    async with llmopt.AsyncClient(settings, flags={"retry": False}) as client:
        await asked(client, names, label)


def main() -> None:
    if len(sys.argv) > 1:
        mode, settings = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
        work = {
            "serve": serve,
            "first": lambda: first(settings),
            "later": lambda: later(settings, sys.argv[3]),
        }
        asyncio.run(work[mode]())
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        server = subprocess.Popen(
            [sys.executable, __file__, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert server.stdin is not None
        assert server.stdout is not None
        settings = json.dumps(config(json.loads(server.stdout.readline()), str(Path(folder) / "kept")))

        def requests() -> int:
            print(file=server.stdin, flush=True)
            return int(server.stdout.readline())

        def run(*arguments: str) -> None:
            before = requests()
            subprocess.run([sys.executable, __file__, *arguments], check=True)
            print(f"{'':<44}requests: {requests() - before}")

        run("first", settings)
        run("later", settings, "another process, from disk")
        server.kill()
        server.wait()
        old = json.loads(settings)
        for entry in old["providers"].values():
            # So that what was kept a moment ago is older than it should be.
            entry["cache_ttl"] = 0.1
        subprocess.run(
            [sys.executable, __file__, "later", json.dumps(old), "another process, network gone"], check=True
        )


if __name__ == "__main__":
    main()
