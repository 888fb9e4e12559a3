"""The cases of the speed benchmark that start processes of their own: imports, first requests, and a service.

A bare Python runs just before each import, so that only the package counts. The server of a first request has its own core.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import Contender
from benchmarks.cores import client_and_server_cores
from benchmarks.processes import (
    CHECKOUT,
    ROOT,
    START_TIMEOUT_S,
    Environments,
    JsonProcess,
    ServerProcess,
    child_environment,
)
from benchmarks.service_worker import DELAY_MS

Row = dict[str, Any]
Values = dict[str, list[float]]


# ---- the case "start": import a package and create a client


def measure_start(contenders: Sequence[Contender], environments: Environments, rounds: int) -> list[Row]:
    """Return a row for each contender: its process, and a bare Python in the same environment just before it."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        _install_plugins(Path(folder), max((each.plugins for each in contenders), default=0))
        for contender in contenders:
            row: Row = {"contender": contender.name, "title": contender.title, "rounds": []}
            rows.append(row)
            failure = environments.failure(contender.environment) or _measure_start_once(
                contender, environments, folder, row=None
            )
            if failure is not None:
                row["missing"] = failure
                print(f"  {contender.title}: not run: {failure}", flush=True)
        for _ in range(rounds):
            for contender, row in zip(contenders, rows, strict=True):
                if "missing" not in row:
                    _measure_start_once(contender, environments, folder, row)
    return rows


def _measure_start_once(
    contender: Contender, environments: Environments, folder: str, row: Row | None
) -> str | None:
    """Measure both processes; returns the reason of a failure. Without a row it only checks that they run."""
    python = environments.python(contender.environment)
    folders = (folder,) if contender.plugins else ()
    environment = child_environment(checkout=contender.environment == CHECKOUT, folders=folders)
    bare = _measure_process([python, "-c", "pass"], environment)
    full = _measure_process([python, "-c", contender.program or "pass"], environment)
    if full.get("missing"):
        return str(full["missing"])
    if row is not None:
        row["peak"] = max(row.get("peak", 0), full["peak"])
        bare_times = {"bare_cpu": bare["cpu"], "bare_wall": bare["wall"]}
        row["rounds"].append({**full, **bare_times, "start": 0, "round": len(row["rounds"])})
    return None


def _measure_process(command: Sequence[str], environment: dict[str, str]) -> Row:
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stderr=errors, cwd=tempfile.gettempdir())
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            return {"missing": errors.read().decode(errors="replace").strip().splitlines()[-1][:200]}
    return {"cpu": usage.ru_utime + usage.ru_stime, "wall": wall, "peak": usage.ru_maxrss * 1024}


def _install_plugins(folder: Path, count: int) -> None:
    """Write plugins as pip installs them; importing one of them fails."""
    for number in range(count):
        name = f"unused_{number:02d}"
        (folder / f"{name}.py").write_text("raise RuntimeError('this plugin must not be imported')\n")
        data = folder / f"{name}-1.0.dist-info"
        data.mkdir()
        (data / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (data / "entry_points.txt").write_text(f"[llmopt]\nunused{number:02d} = {name}\n")


# ---- the case "first": the first request of a process

_FIRST_PROGRAM: Final = """
import asyncio, json, sys, time
import llmopt

async def main():
    config = {"providers": {"openai": {"api_key": "key", "base_url": sys.argv[1]}}, "cache_dir": sys.argv[2]}
    started, cpu = time.perf_counter(), time.process_time()
    client = llmopt.AsyncClient(config)
    made = time.process_time()
    await client.embed("openai/model", ["one text"])
    done, wall = time.process_time(), time.perf_counter() - started
    await client.aclose()
    print(json.dumps({"cpu": done - made, "client_cpu": made - cpu, "wall": wall, "requests": 1}))

asyncio.run(main())
"""


def measure_first(
    contenders: Sequence[Contender], environments: Environments, rounds: int, before: Path | None
) -> list[Row]:
    """Return a row for each contender; ``before`` is the checkout of the contender "before"."""
    client_core, server_core = client_and_server_cores() or (None, None)
    rows: list[Row] = [{"contender": each.name, "title": each.title, "rounds": []} for each in contenders]
    with ServerProcess("embeddings", environments.python("server"), server_core) as server:
        # The first round compiles what is imported.
        for number in range(rounds + 1):
            for row in rows:
                _add_first(row, environments, server, before, client_core, keep=number > 0)
    for row in rows:
        if row["rounds"]:
            cpu = statistics.median(each["cpu"] for each in row["rounds"])
            print(f"  {row['title']:26} {cpu * 1e3:10.1f} ms CPU of the first request", flush=True)
        else:
            print(f"  {row['title']}: not run: {row['missing']}", flush=True)
    return rows


def _add_first(
    row: Row,
    environments: Environments,
    server: ServerProcess,
    before: Path | None,
    core: int | None,
    *,
    keep: bool,
) -> None:
    checkout, name = (before, "before") if row["contender"] == "before" else (ROOT, CHECKOUT)
    if checkout is None:
        row["missing"] = "no checkout was given (--before PATH)"
        return
    folders = (str(checkout.resolve() / "core"), str(checkout.resolve() / "plugins" / "openai"))
    with tempfile.TemporaryDirectory() as folder:
        url = f"{server.origin}/requested-1x1536-0ms/v1"
        report = _run_program(
            [environments.python(name), "-c", _FIRST_PROGRAM, url, folder],
            child_environment(checkout=False, folders=folders),
            core,
        )
    if "missing" in report:
        row["missing"] = report["missing"]
    elif keep:
        row["rounds"].append({**report, "start": 0, "round": len(row["rounds"])})


def _run_program(command: Sequence[str], environment: dict[str, str], core: int | None) -> Row:
    """Run a program that prints one JSON object; returns it, or the reason why there is none."""
    pinned = [] if core is None else ["taskset", "-c", str(core)]
    process = subprocess.run(
        [*pinned, *command],
        env=environment,
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    if process.returncode:
        return {"missing": process.stderr.strip().splitlines()[-1][:200]}
    return dict(json.loads(process.stdout.splitlines()[-1]))


# ---- the case "walk": how much code a warm call runs through

_WALK_PROGRAM: Final = """
import asyncio, json, sys
from pathlib import Path
import llmopt

PREFIX = f"{Path(llmopt.__file__).parent}/"

async def main():
    config = {"providers": {"openai": {"api_key": "key", "base_url": sys.argv[1]}}, "cache_dir": sys.argv[2]}
    client = llmopt.AsyncClient(config)
    await client.embed("openai/model", ["warm up"])
    counts = []
    # A timer of another call may fire in the middle of one: the smallest of six counts.
    for number in range(6):
        seen = set()
        def profile(frame, event, _):
            if event == "call" and frame.f_code.co_filename.startswith(PREFIX):
                seen.add(frame.f_code)
        sys.setprofile(profile)
        await client.embed("openai/model", [f"text {number}"])
        sys.setprofile(None)
        counts.append((len({code.co_filename for code in seen}), len(seen)))
    files, functions = map(min, zip(*counts))
    await client.aclose()
    print(json.dumps({"files": files, "functions": functions}))

asyncio.run(main())
"""


def measure_walk(environments: Environments) -> list[Row]:
    """Return one row with the numbers of files and functions."""
    row: Row = {"contender": "llmopt", "title": "llmopt", "rounds": []}
    with (
        ServerProcess("embeddings", environments.python("server")) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        url = f"{server.origin}/requested-1x1536-0ms/v1"
        command = [environments.python(CHECKOUT), "-c", _WALK_PROGRAM, url, folder]
        report = _run_program(command, child_environment(checkout=True), None)
    if "missing" in report:
        return [row | report]
    print(f"  {report['files']} files, {report['functions']} functions", flush=True)
    return [row | {"values": {name: [number] for name, number in report.items()}}]


# ---- the case "service"

_PROVIDERS: Final = 60
_FAILING: Final = 5
_LATENCY_MS: Final = 200
_MODELS: Final = 5000
_USED: Final = 20
"""Providers that the short processes list."""
_PROCESSES: Final = 5
_PACED: Final = (500, 500)
"""Chunks of a stream, and microseconds between them."""


def measure_service(environments: Environments, starts: int) -> list[Row]:
    """Return one row with the values of every start."""
    values: Values = {}
    for _ in range(starts):
        cores = client_and_server_cores() or (None, None)
        service = _Service(environments, cores)
        for name, value in {**service.calls(), **service.lists(), **service.chunks()}.items():
            values.setdefault(name, []).append(value)
    for name, each in values.items():
        print(f"  {name:26} {statistics.median(each):10.4g}", flush=True)
    return [{"contender": "llmopt", "title": "llmopt", "rounds": [], "values": values}]


class _Service:
    """The scenarios of the table of service targets; docs/performance.md describes them."""

    def __init__(self, environments: Environments, cores: tuple[int | None, int | None]) -> None:
        self._environments = environments
        self._client_core, self._server_core = cores

    def _server(self, kind: str) -> ServerProcess:
        return ServerProcess(kind, self._environments.python("server"), self._server_core)

    def _run(self, scenario: str, folder: str, **task: Any) -> Row:
        task |= {
            "benchmark": "service",
            "scenario": scenario,
            "folder": folder,
            "core": self._client_core,
        }
        python, environment = self._environments.python(CHECKOUT), child_environment(checkout=True)
        with JsonProcess(python, task, environment) as process:
            report = process.receive(START_TIMEOUT_S)
        assert "missing" not in report, report["missing"]
        return report

    def calls(self) -> dict[str, float]:
        """A twentieth of the requests fails, then none."""
        with self._server("embeddings") as server, tempfile.TemporaryDirectory() as folder:
            base_url = f"{server.origin}/requested-1x1536-{DELAY_MS}ms"
            report = self._run("calls", folder, base_url=f"{base_url}-1in20/v1")
            counters = server.counters()
            healthy = self._run("calls", folder, base_url=f"{base_url}/v1")
        # Without the connection that asks for the counters.
        connections = counters["connections"] - 1
        return {
            "failed": report["failed"] / report["calls"],
            "requests_per_call": counters["requests"] / report["calls"],
            "reuse": 1 - connections / counters["requests"],
            "added_p99_ms": healthy["added_p99_ms"],
        }

    def lists(self) -> dict[str, float]:
        """A long list from the provider, from memory and from the disk; those of sixty providers; short processes."""
        with self._server("embeddings") as server, tempfile.TemporaryDirectory() as folder:
            path = f"{server.origin}/requested-{{}}x1-{_LATENCY_MS}ms{{}}/{{}}/v1"
            long = {"long": path.format(_MODELS, "", "long")}
            first = self._run("one list", folder, urls=long, times=3)
            second = self._run("one list", folder, urls=long, times=1)
            failing = [""] * (_PROVIDERS - _FAILING) + ["-1in1"] * _FAILING
            urls = {f"p{number}": path.format(100, fails, number) for number, fails in enumerate(failing)}
            everyone = self._run("lists", folder, urls=urls, times=1)
            assert everyone["lists"] == _PROVIDERS - _FAILING
        return {
            "uncached_s": first["seconds"][0],
            "cached_ms": max(*first["seconds"][1:], *second["seconds"]) * 1e3,
            "all_providers_s": everyone["seconds"][0],
            "hits": self._hits(),
        }

    def _hits(self) -> float:
        with self._server("embeddings") as server, tempfile.TemporaryDirectory() as folder:
            urls = {
                f"p{number}": f"{server.origin}/requested-100x1-0ms/{number}/v1" for number in range(_USED)
            }
            for _ in range(_PROCESSES):
                self._run("lists", folder, urls=urls, times=2)
            return 1 - server.counters()["requests"] / (_USED * _PROCESSES * 2)

    def chunks(self) -> dict[str, float]:
        """A stream of chunks at a steady pace: from the server's write until the program has the text."""
        chunks, pace = _PACED
        with self._server("streams") as server:
            base_url = f"{server.origin}/{chunks}-{pace}us/v1"
            task = {
                "benchmark": "streams",
                "contender": "llmopt",
                "base_url": base_url,
                "chunks": chunks,
                "core": self._client_core,
            }
            python = self._environments.python(CHECKOUT)
            with JsonProcess(python, task, child_environment(checkout=True)) as process:
                report = process.receive(START_TIMEOUT_S)
                assert "missing" not in report, report["missing"]
                delays = process.ask(streams=4)["delays"]
        return {"chunk_p99_ms": delays[int(0.99 * (len(delays) - 1))] / 1e6}
