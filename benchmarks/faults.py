"""What llmopt and its peers do when a server fails: each in its own process, against the same server.

    python -m benchmarks.faults --markdown docs/development/peer-faults.md

Run it in the repository. The peers are the extra `peers`; one that lives in another environment is named with
`--python litellm=PATH/bin/python`. All traffic is on loopback, and every wait is bounded.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from attrs import asdict

from benchmarks.peers.cases import CASES, Case
from benchmarks.peers.contenders import CONTENDERS, Contender
from benchmarks.peers.meeting import meet, probe
from benchmarks.peers.outcome import Outcome
from benchmarks.peers.table import cell_of, table_of, write

Outcomes = dict[tuple[str, str], Outcome]
JOBS = 6  # meetings at a time: most of each is waiting


def main() -> None:
    """Run what was asked for, and write it where it was asked for."""
    asked = _arguments()
    pythons = {name: path for name, _, path in (each.partition("=") for each in asked.python)}
    cases = [case for case in CASES if not asked.only or case.name in asked.only]
    contenders = [each for each in CONTENDERS if not asked.contender or each.name in asked.contender]
    probed = {each.name: probe(each, _python(each, pythons)) for each in contenders}
    outcomes = run(cases, contenders, pythons, probed, asked.jobs)
    versions = {name: report.get("version", "not installed") for name, report in probed.items()}
    table = table_of(cases, contenders, versions, outcomes)
    print(f"\n{table}", end="")
    if asked.markdown:
        write(asked.markdown, table)
    if asked.json:
        asked.json.write_text(_json(versions, outcomes))


def run(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    pythons: Mapping[str, str],
    probed: Mapping[str, Mapping[str, Any]],
    jobs: int,
) -> Outcomes:
    """Let every contender meet every case, a few at a time."""

    def one(pair: tuple[Contender, Case]) -> Outcome:
        contender, case = pair
        missing = probed[contender.name].get("missing")
        if missing is not None:
            return Outcome(broken=f"not run: {missing}")
        outcome = meet(contender, case, _python(contender, pythons))
        print(f"{contender.name:8} {case.name:22} {cell_of(outcome)}", flush=True)
        return outcome

    # Those that retry longest come last in the list of contenders, and go first.
    pairs = list(itertools.product(reversed(contenders), cases))
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(one, pairs)
        return {(case.name, each.name): outcome for (each, case), outcome in zip(pairs, found, strict=True)}


def _python(contender: Contender, pythons: Mapping[str, str]) -> str:
    return pythons.get(contender.environment, sys.executable)


def _json(versions: Mapping[str, str], outcomes: Outcomes) -> str:
    cells = [
        {"case": case, "contender": name, "visible": outcome.visible, "correct": outcome.correct}
        | asdict(outcome)
        for (case, name), outcome in outcomes.items()
    ]
    return json.dumps({"versions": versions, "outcomes": cells}, indent=1) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the table into this page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--only", action="append", choices=[case.name for case in CASES], help="this case; may be repeated"
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=[each.name for each in CONTENDERS],
        help="this contender; may be repeated",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="the Python in whose environment llmopt, openai, litellm or baseten is installed",
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help="meetings at a time")
    asked = parser.parse_args()
    if asked.markdown and (asked.only or asked.contender):
        parser.error("--markdown replaces the whole table, so it goes without --only and --contender")
    return asked


if __name__ == "__main__":
    main()
