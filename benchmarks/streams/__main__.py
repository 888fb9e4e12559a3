"""What a streamed answer costs each client, and how late its words are, against the same server.

    python -m benchmarks.streams --venvs /tmp/peers
    python -m benchmarks.streams --python openai=/tmp/peers/openai/bin/python --json streams.json

Run it in the repository, with llmopt and its plugin for OpenAI installed. Each contender has a process of its own, all
traffic is on loopback, and rounds alternate. Two cases: chunks that come one by one, at a pace, and chunks that come
as fast as they go. A delay is from the moment at which the server writes a chunk to the moment at which the program has
its text; the bare socket's is what the machine itself needs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.speed.environments import CHECKOUT, Environments
from benchmarks.speed.processes import ROOT, environment_of
from benchmarks.streams.contenders import CONTENDERS, Contender

CHUNKS: Final = 500
CASES: Final = {
    "paced": (f"{CHUNKS} chunks, one every 0.5 ms", 500, 4),
    "burst": (f"{CHUNKS} chunks at once", 0, 20),
}
"""Title, pace in microseconds, streams in a block."""
PATIENCE_S: Final = 120.0

Row = dict[str, Any]


class Process:
    """A contender's process, which speaks in lines of JSON."""

    def __init__(self, contender: Contender, python: str, base_url: str) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
        task = json.dumps({"contender": contender.name, "base_url": base_url, "chunks": CHUNKS})
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.streams.worker", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment_of(checkout=contender.environment == CHECKOUT),
            cwd=tempfile.gettempdir(),
        )
        self.first = self._line()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def block(self, streams: int) -> Row:
        """Read so many streams and say what that cost."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"streams": streams}).encode() + b"\n")
        self._process.stdin.flush()
        return self._line()

    def _line(self) -> Row:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_S)
        line = self._process.stdout.readline() if ready else b""
        if line:
            return dict(json.loads(line))
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        return {"missing": words[-1][:300] if words else "it said nothing"}


def main() -> None:
    """Run what was asked for, and tell it."""
    asked = _arguments()
    environments = Environments(dict(each.split("=", 1) for each in asked.python), asked.venvs)
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.streams.server"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert server.stdout is not None
    origin = f"http://127.0.0.1:{int(server.stdout.readline())}"
    results: dict[str, list[Row]] = {}
    try:
        for name in asked.case or CASES:
            results[name] = _run(name, asked, environments, origin)
            print(_table(name, results[name]), flush=True)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    print(f"({machine})")
    if asked.json is not None:
        asked.json.write_text(json.dumps({"machine": machine, "cases": results}, indent=1) + "\n")


def _run(name: str, asked: argparse.Namespace, environments: Environments, origin: str) -> list[Row]:
    _, pace, streams = CASES[name]
    base_url = f"{origin}/{CHUNKS}-{pace}us/v1"
    chosen = [each for each in CONTENDERS if not asked.contender or each.name in asked.contender]
    rows, processes = [], {}
    for contender in chosen:
        python = environments.python(contender.environment)
        processes[contender.name] = process = Process(contender, python, base_url)
        rows.append({"name": contender.name, "title": contender.title, **process.first, "blocks": []})
    for number in range(asked.rounds):
        turn = number % len(rows)
        for row in [*rows[turn:], *rows[:turn]]:
            if "missing" not in row:
                row["blocks"].append(processes[row["name"]].block(streams))
    for process in processes.values():
        process.__exit__()
    return [_summed(row, streams * CHUNKS) for row in rows]


def _summed(row: Row, chunks: int) -> Row:
    blocks = row.pop("blocks")
    if blocks:
        row["cpu_us"] = statistics.median(block["cpu"] / chunks for block in blocks) * 1e6
        row["cpu_us_rounds"] = [block["cpu"] / chunks * 1e6 for block in blocks]
        row["delay_us"] = statistics.median(_at(block["delays"], 0.5) for block in blocks)
        row["delay_us_p99"] = statistics.median(_at(block["delays"], 0.99) for block in blocks)
        # Of the worst of each round the usual one: another program's turn is nobody's fault here.
        row["delay_us_worst"] = statistics.median(block["delays"][-1] / 1e3 for block in blocks)
    return row


def _at(delays: list[int], share: float) -> float:
    return delays[int(share * (len(delays) - 1))] / 1e3


def _table(name: str, rows: list[Row]) -> str:
    lines = [
        f"\n{CASES[name][0]}",
        f"{'':24}{'CPU/chunk':>12}{'delay, median':>16}{'p99':>10}{'worst':>10}   (µs)",
    ]
    for row in rows:
        title = f"{row['title']} {row.get('version', '')}".strip()
        if "cpu_us" not in row:
            lines.append(f"{title:24}not run: {row.get('missing')}")
            continue
        cells = [f"{row[key]:.1f}" for key in ("cpu_us", "delay_us", "delay_us_p99", "delay_us_worst")]
        lines.append(f"{title:24}{cells[0]:>12}{cells[1]:>16}{cells[2]:>10}{cells[3]:>10}")
    return "\n".join(lines + _reached(name, {row["name"]: row for row in rows}))


def _reached(name: str, rows: dict[str, Row]) -> list[str]:
    """The two things that are wanted, and whether they are so."""
    lines = []
    ours, theirs, bare = (rows.get(each, {}) for each in ("llmopt", "openai", "sockets"))
    if "cpu_us" in ours and "cpu_us" in theirs:
        share = ours["cpu_us"] / theirs["cpu_us"]
        lines.append(f"CPU of llmopt: 1/{1 / share:.1f} of openai's (wanted: 1/2 at most)")
    if name == "paced" and "cpu_us" in ours and "cpu_us" in bare:
        median = ours["delay_us"] - bare["delay_us"]
        worst = ours["delay_us_worst"] - bare["delay_us_worst"]
        lines.append(
            f"added delay: {median / 1e3:.3f} ms at the median (< 1), {worst / 1e3:.3f} ms at worst (< 5)"
        )
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.streams",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--case", action="append", choices=list(CASES), help="may be repeated")
    names = [each.name for each in CONTENDERS]
    parser.add_argument("--contender", action="append", choices=names, help="may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="how often each contender has its turn")
    parser.add_argument(
        "--venvs", type=Path, metavar="DIR", help="where the peer's environment is, and is made if missing"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the Python of an environment, such as openai",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep what was measured in this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
