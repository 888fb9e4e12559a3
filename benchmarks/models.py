"""What lists of models cost: of sixty providers at once, or how fast the lists in files are parsed.

    python -m benchmarks models
    python -m benchmarks models models.json

The first command starts sixty servers in one process on loopback, each with 100 models and a latency of 200 ms; five of
them fail. It lists the models with an empty cache, again from memory, in a new process from the disk, and without a
network. The second takes any response to ``GET /models``, or models.dev's ``api.json``, and measures how fast it is
parsed, how fast all its models are made, and the memory for it. Both take seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.tables import aligned

PROVIDERS: Final = 60
MODELS: Final = 100
LATENCY_S: Final = 0.2
CONCURRENCY: Final = 10
"""Lists that llmopt requests at the same time."""
FAILURES: Final = {7: "401", 18: "404", 29: "html", 40: "truncated", 51: "refused"}
IDEAL_S: Final = PROVIDERS / CONCURRENCY * LATENCY_S
ROUNDS: Final = 9
LOOKUPS: Final = 20_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="parse the lists in these files")
    # For the processes that this benchmark starts itself.
    parser.add_argument("--child", choices=("serve", "first", "later"), help=argparse.SUPPRESS)
    parser.add_argument("--settings", help=argparse.SUPPRESS)
    parser.add_argument("--label", help=argparse.SUPPRESS)


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:  # noqa: ARG001
    """Measure, and print one line for each step or file."""
    if arguments.child == "serve":
        asyncio.run(_serve())
    elif arguments.child == "first":
        asyncio.run(_list_first(json.loads(arguments.settings)))
    elif arguments.child == "later":
        asyncio.run(_list_later(json.loads(arguments.settings), arguments.label))
    elif arguments.files:
        print(aligned(_parsing_table(arguments.files)))
    else:
        _measure_sixty_providers()


# ---- sixty providers


def _measure_sixty_providers() -> None:
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "XDG_CACHE_HOME": folder}
        command = [sys.executable, "-m", "benchmarks", "models", "--child"]
        server = subprocess.Popen(
            [*command, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        requests, answers = server.stdin, server.stdout
        assert requests is not None
        assert answers is not None
        settings = _settings(json.loads(answers.readline()), str(Path(folder) / "cache"))

        def count_requests() -> int:
            print(file=requests, flush=True)
            return int(answers.readline())

        def measure(*arguments: str) -> None:
            before = count_requests()
            options = ["--settings", json.dumps(settings)]
            subprocess.run([*command, *arguments, *options], check=True, env=environment)
            print(f"{'':<44}requests: {count_requests() - before}")

        measure("first")
        measure("later", "--label", "new process, from the disk")
        server.kill()
        server.wait()
        for entry in settings["providers"].values():
            # So that the cached lists are expired.
            entry["cache_ttl"] = 0.1
        options = ["--label", "new process, no network", "--settings", json.dumps(settings)]
        subprocess.run([*command, "later", *options], check=True, env=environment)


async def _serve() -> None:
    """Run the servers; prints their ports, then the number of requests for each line of input."""
    ports, servers, count = [], [], 0

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, response: bytes) -> None:
        nonlocal count
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                count += 1
                await asyncio.sleep(LATENCY_S)
                writer.write(response)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    for number in range(PROVIDERS):
        response = _response(number)
        server = await asyncio.start_server(
            lambda reader, writer, response=response: respond(reader, writer, response),  # type: ignore[misc]
            "127.0.0.1",
            0,
        )
        ports.append(server.sockets[0].getsockname()[1])
        if FAILURES.get(number) == "refused":
            server.close()
        servers.append(server)
    print(json.dumps(ports), flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(count, flush=True)


def _response(number: int) -> bytes:
    models = [
        {"id": f"model-{number}-{each}", "object": "model", "created": 1_700_000_000, "owned_by": "them"}
        for each in range(MODELS)
    ]
    status, kind = "200 OK", "application/json"
    body = json.dumps({"object": "list", "data": models}).encode()
    match FAILURES.get(number):
        case "401":
            status, body = "401 Unauthorized", b'{"error":{"message":"bad key"}}'
        case "404":
            status, body = "404 Not Found", b'{"error":{"message":"no such path"}}'
        case "html":
            kind, body = "text/html", b"<html>gateway</html>"
        case "truncated":
            body = body[:200]
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _settings(ports: list[int], folder: str) -> dict[str, Any]:
    return {
        "cache_dir": folder,
        "providers": {
            f"p{number:02}": {"plugin": "local", "base_url": f"http://127.0.0.1:{port}/v1"}
            for number, port in enumerate(ports)
        },
    }


async def _list_first(settings: dict[str, Any]) -> None:
    import llmopt

    names = list(settings["providers"])
    async with llmopt.AsyncClient(settings, flags={"retry": False}) as client:
        await _list_all(client, names, f"first call (ideal {IDEAL_S * 1e3:.0f} ms)")
        await _list_all(client, names, "second call")
        started = time.perf_counter()
        for _ in range(LOOKUPS):
            await client.list_models(names[0])
        _print_lookup("one cached list", started)
    with llmopt.Client(settings, flags={"retry": False}) as sync_client:
        sync_client.list_models(names[0])
        started = time.perf_counter()
        for _ in range(LOOKUPS):
            sync_client.list_models(names[0])
        _print_lookup("one cached list, Client", started)


async def _list_later(settings: dict[str, Any], label: str) -> None:
    import llmopt

    names = [name for name in settings["providers"] if int(name[1:]) not in FAILURES]
    async with llmopt.AsyncClient(settings, flags={"retry": False}) as client:
        await _list_all(client, names, label)


async def _list_all(client: Any, names: list[str], label: str) -> None:
    from llmopt import Catalog

    started = time.perf_counter()
    results = await client.batch_list_models(names)
    milliseconds = (time.perf_counter() - started) * 1e3
    lists = [each for each in results.values() if isinstance(each, Catalog)]
    errors = sorted(type(each).__name__ for each in results.values() if not isinstance(each, Catalog))
    summary = (
        f"{len(lists)} lists ({sum(each.stale for each in lists)} stale) of {sum(map(len, lists))} models"
    )
    print(f"{label:<44}{milliseconds:>10.1f} ms   {summary}, {len(errors)} errors {errors}")


def _print_lookup(label: str, started: float) -> None:
    print(f"{label:<44}{(time.perf_counter() - started) / LOOKUPS * 1e6:>10.2f} µs")


# ---- lists in files


def _parsing_table(files: list[Path]) -> list[list[str]]:
    table = [["ms for 1,000 models", "models", "bytes", "parse", "read all", "peak MB"]]
    for path in files:
        body = _body(path)
        models = _parse(body)
        tracemalloc.start()
        _parse(body)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        times = [
            _best_ms(lambda body=body: _parse(body)),  # type: ignore[misc] # bound in the loop
            _best_ms(lambda body=body: list(_parse(body))),  # type: ignore[misc] # likewise
        ]
        cells = [f"{each / len(models) * 1000:.2f}" for each in times]
        table.append([path.name, str(len(models)), str(len(body)), *cells, f"{peak:.1f}"])
    return table


def _body(path: Path) -> bytes:
    """The content of a file in the form of a response to GET /models."""
    content = json.loads(path.read_bytes())
    if isinstance(content, dict) and "data" not in content:
        models = [model for provider in content.values() for model in provider["models"].values()]
        return json.dumps({"object": "list", "data": models}).encode()
    return path.read_bytes()


def _parse(body: bytes) -> Any:
    from llmopt import CatalogPage, HttpResponse, compatible

    page = compatible.parse_catalog(HttpResponse(status=200, body=body), "p")
    assert isinstance(page, CatalogPage)
    return page.models


def _best_ms(function: Callable[[], object]) -> float:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times) * 1e3
