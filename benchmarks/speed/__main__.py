"""What each client costs, against the same server: CPU per request and per vector, wall time, memory, import.

    python -m benchmarks.speed --venvs /tmp/peers --docs docs
    python -m benchmarks.speed --quick

Run it in the repository, with llmopt, its plugin for OpenAI and the extra `bench` installed. Each contender has a
process of its own, all traffic is on loopback, and rounds alternate. With `--json` a run can be taken up again: cases
that are asked for replace those in the file, all others stay.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.speed.cases import CASES, Case
from benchmarks.speed.contenders import CONTENDERS, contender_named
from benchmarks.speed.environments import PACKAGES, Environments
from benchmarks.speed.results import Results
from benchmarks.speed.rounds import run_case
from benchmarks.speed.starting import run_start

_QUICK = ("one-64", "large", "numbers-512")
_QUICK_CONTENDERS = ("floor", "llmopt", "llmopt-off")


def main() -> None:
    """Run what was asked for, and write it where it was asked for."""
    asked = _arguments()
    environments = Environments(dict(each.split("=", 1) for each in asked.python), asked.venvs)
    results = Results.load(asked.json)
    for case in CASES:
        if _wanted(case, asked):
            _run(case, asked, environments, results)
            if asked.json is not None:
                results.save(asked.json)
    print(results.text([case for case in CASES if case.name in results.cases]))
    if asked.docs is not None:
        from benchmarks.speed.pages import write_pages

        write_pages(results, asked.docs)


def _wanted(case: Case, asked: argparse.Namespace) -> bool:
    if asked.render:
        return False
    if asked.case:
        return case.name in asked.case
    return not asked.quick or case.name in _QUICK


def _run(case: Case, asked: argparse.Namespace, environments: Environments, results: Results) -> None:
    names = [name for name in case.contenders if not asked.contender or name in asked.contender]
    if asked.quick:
        names = [name for name in names if asked.contender or name in _QUICK_CONTENDERS]
    contenders = [contender_named(name) for name in names]
    rounds = asked.rounds or case.rounds
    print(f"{case.title}", flush=True)
    started = time.monotonic()
    if case.kind == "start":
        rows = run_start(contenders, environments, rounds)
    else:
        rows = run_case(case, contenders, environments, rounds)
    results.put(case, rows, machine=_machine(), seconds=time.monotonic() - started)


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [each.name for each in CONTENDERS]
    parser.add_argument(
        "--quick", action="store_true", help="half a minute: llmopt and the floor in three cases"
    )
    parser.add_argument(
        "--case", action="append", choices=[case.name for case in CASES], help="may be repeated"
    )
    parser.add_argument("--contender", action="append", choices=names, help="may be repeated")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    parser.add_argument(
        "--venvs", type=Path, metavar="DIR", help="where the peers' environments are, and are made if missing"
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"the Python of an environment ({', '.join(PACKAGES)}) that is elsewhere",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep everything that was measured in this file"
    )
    parser.add_argument(
        "--docs", type=Path, metavar="DIR", help="write performance.md's tables and the plots there"
    )
    parser.add_argument("--render", action="store_true", help="measure nothing, show what is in the file")
    asked = parser.parse_args()
    if sys.platform == "win32":
        parser.error("needs a POSIX system")
    return asked


if __name__ == "__main__":
    main()
