"""User instructions per request under callgrind, for one or more checkouts side by side.

    python -m benchmarks instructions . ../other-checkout

Unlike CPU time, the number of instructions does not depend on the load of the machine: a difference of 0.3 % is real. Each
case is run twice with different numbers of requests in one checkout after the other, and the difference is divided, so that
imports and the start of the client do not count. It needs valgrind, and takes two to three minutes per case and checkout.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONCURRENCY: Final = 64


@dataclass(frozen=True)
class Case:
    """One column of the table.

    Attributes:
        title: its heading.
        texts: texts per call.
        in_flight: concurrent calls.
        batch: texts per request.
        calls: numbers of calls in the two runs.
    """

    title: str
    texts: int
    in_flight: int
    batch: int
    calls: tuple[int, int]


CASES: Final = {
    "one-64": Case("one text, 64 in flight", 1, CONCURRENCY, 1, (64, 576)),
    "large": Case("2,048 x 1,536 base64 in requests of 64", 2048, 1, 64, (2, 6)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument(
        "checkouts",
        nargs="*",
        type=Path,
        default=[Path()],
        metavar="CHECKOUT",
        help="folders with core/llmopt and plugins/openai (default: the current folder)",
    )
    parser.add_argument("--case", action="append", choices=list(CASES), help="one case; may be repeated")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Measure, and print a row for each checkout."""
    from benchmarks.processes import ServerProcess
    from benchmarks.tables import aligned

    require_valgrind(parser)
    for checkout in arguments.checkouts:
        if not (checkout / "core" / "llmopt").is_dir():
            parser.error(f"{checkout} is not a checkout of llmopt: it has no folder core/llmopt")
    names = arguments.case or list(CASES)
    counts: list[list[int]] = []
    with ServerProcess("embeddings") as server:
        for checkout in arguments.checkouts:
            counts.append([_per_call(checkout.resolve(), name, server.origin, parser) for name in names])
            print(f"{checkout}: {', '.join(f'{count:,}' for count in counts[-1])}", flush=True)
    rows = [
        [str(checkout), *_cells(row, counts[0])]
        for checkout, row in zip(arguments.checkouts, counts, strict=True)
    ]
    titles = [title for name in names for title in (f"{CASES[name].title}, instructions per call", "")]
    print(f"\n{aligned([['', *titles], *rows])}")


def require_valgrind(parser: argparse.ArgumentParser) -> None:
    """End the program with a message if valgrind is not installed."""
    if shutil.which("valgrind") is None:
        parser.error("valgrind was not found: install it (for example: apt-get install valgrind)")


def collected_instructions(
    command: Sequence[str],
    environment: Mapping[str, str],
    folder: str | None = None,
    *,
    plain_first: bool = False,
) -> int:
    """Run a program under callgrind and return how many user instructions all its threads executed.

    Args:
        command: the program.
        environment: its environment variables.
        folder: its working directory, None for the current one.
        plain_first: whether to run it without callgrind before. That writes the bytecode of all modules, so that of two
            counts none contains compiling them.

    Raises:
        RuntimeError: the program failed, or valgrind reported no number.
    """
    if plain_first:
        subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=False)
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}"]
    process = subprocess.run(
        [*valgrind, *command], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    collected = re.search(r"Collected\s*:\s*(\d+)", process.stderr)
    # The worker of the speed benchmark says in its answer why it could not run.
    if process.returncode or collected is None or '"missing"' in process.stdout:
        raise RuntimeError(_last_lines(process.stdout + process.stderr))
    return int(collected[1])


def _cells(counts: Sequence[int], first: Sequence[int]) -> list[str]:
    """The counts of a checkout, each with the difference to the first checkout."""
    return [
        text
        for count, base in zip(counts, first, strict=True)
        for text in (f"{count:,}", f"{100 * (count / base - 1):+.2f} %")
    ]


def _per_call(checkout: Path, name: str, origin: str, parser: argparse.ArgumentParser) -> int:
    few, many = CASES[name].calls
    program = [sys.executable, __file__, name]
    with tempfile.TemporaryDirectory() as bytecode:
        environment = _environment(checkout, bytecode)
        try:
            first = collected_instructions([*program, str(few), origin], environment, plain_first=True)
            second = collected_instructions([*program, str(many), origin], environment)
        except RuntimeError as error:
            parser.error(f"the client failed in {checkout}: {error}")
    return (second - first) // (many - few)


def _environment(checkout: Path, bytecode: str) -> dict[str, str]:
    """For running this file as a script with the packages of a checkout."""
    paths = [checkout / "core", checkout / "plugins" / "openai"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PYTHONPYCACHEPREFIX": bytecode,
        # Else the order of sets, and with it the number of instructions, would differ between runs.
        "PYTHONHASHSEED": "0",
        # Else the modules beside this file would hide others of the same name.
        "PYTHONSAFEPATH": "1",
    }
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def _last_lines(output: str) -> str:
    """The end of an output, without valgrind's own lines."""
    lines = [line for line in output.strip().splitlines() if not line.startswith("==")]
    return "\n".join(lines[-3:])


async def _call(case: Case, calls: int, origin: str) -> None:
    """The measured program; it only uses what every version of llmopt has."""
    import llmopt

    gc.freeze()
    base_url = f"{origin}/requested-{case.batch}x1536-0ms/v1"
    entry = {
        "plugin": "openai",
        "base_url": base_url,
        "api_key": "key",
        "max_concurrency": CONCURRENCY,
        "pool_size": CONCURRENCY,
        "max_batch_size": CONCURRENCY,
        # Under callgrind everything takes about fifty times longer.
        "timeouts": {"connect": 600, "pool": 600, "read": 600},
    }
    async with llmopt.AsyncClient({"providers": {"server": entry}}) as client:

        async def embed(number: int) -> None:
            await client.embed("server/m", [f"text {number} {index}" for index in range(case.texts)])

        async def work() -> None:
            for number in numbers:
                await embed(number)

        # The warm-up opens all connections.
        await asyncio.gather(*(embed(-1 - number) for number in range(case.in_flight)))
        numbers = iter(range(calls))
        await asyncio.gather(*(work() for _ in range(case.in_flight)))


if __name__ == "__main__":
    asyncio.run(_call(CASES[sys.argv[1]], int(sys.argv[2]), sys.argv[3]))
