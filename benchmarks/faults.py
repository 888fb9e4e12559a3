"""What llmopt and its peers do when a server fails: each in its own process, against the same server.

    python -m benchmarks faults --venvs /tmp/peers --markdown docs/development/peer-faults.md

It takes two to three minutes and needs the test dependencies of the repository. All traffic is on loopback, and every wait
is limited.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from benchmarks.clients import FAULT_CONTENDERS, Contender
from benchmarks.fault_cases import CASES, Case, Outcome, outcome_of
from benchmarks.processes import (
    CHECKOUT,
    START_TIMEOUT_S,
    Environments,
    JsonProcess,
    ProcessFailedError,
    add_environment_arguments,
    child_environment,
)
from benchmarks.tables import markdown, replace_part
from tests.support.faults import FaultServer, serving

JOBS: Final = 6
"""Cases that run at the same time: most of each is waiting."""
_GRACE_S: Final = 20.0
"""Seconds after the end of its window in which a process must report."""
_EXIT_TIMEOUT_S: Final = 5.0
"""Seconds for a process to end; a crash at exit is seen in this time."""

Outcomes = Mapping[tuple[str, str], Outcome]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    cases = [case.name for case in CASES]
    names = [each.name for each in FAULT_CONTENDERS]
    parser.add_argument(
        "--case",
        action="append",
        choices=cases,
        metavar="NAME",
        help=f"one case, may be repeated: {', '.join(cases)}",
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=names,
        metavar="NAME",
        help=f"one contender, may be repeated: {', '.join(names)}",
    )
    add_environment_arguments(parser)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="replace the table in this page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if a client could not be run, or llmopt returned a wrong row or did not end cleanly",
    )
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"cases at the same time (default: {JOBS})")


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Run the cases, print the table, and write it to the page."""
    if arguments.markdown and (arguments.case or arguments.contender):
        parser.error("--markdown replaces the whole table and cannot be used with --case or --contender")
    environments = Environments.from_arguments(arguments)
    cases = [case for case in CASES if not arguments.case or case.name in arguments.case]
    contenders = [
        each for each in FAULT_CONTENDERS if not arguments.contender or each.name in arguments.contender
    ]
    probes = {each.name: _probe(each, environments) for each in contenders}
    outcomes = _run_all(cases, contenders, environments, probes, arguments.jobs)
    versions = {name: probe.get("version", "not installed") for name, probe in probes.items()}
    table = markdown(_table(cases, contenders, versions, outcomes), numbers=False)
    print(f"\n{table}", end="")
    if arguments.markdown:
        replace_part(arguments.markdown, "table", "faults", table)
    if arguments.json:
        arguments.json.write_text(_json(versions, outcomes))
    if arguments.check and (problems := _problems(outcomes)):
        parser.exit(1, "".join(f"{problem}\n" for problem in problems))


def _problems(outcomes: Outcomes) -> list[str]:
    """What must not be: what other clients do wrong is a result, what llmopt does wrong is a failure."""
    problems = []
    for (case, name), outcome in outcomes.items():
        wrong = name == "llmopt" and not (outcome.correct and outcome.exit_code == 0)
        if outcome.not_run is not None or wrong:
            problems.append(f"{name}, {case}: {_cell(outcome)}")
    return problems


def _run_all(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    environments: Environments,
    probes: Mapping[str, Mapping[str, Any]],
    jobs: int,
) -> Outcomes:
    def run_one(pair: tuple[Contender, Case]) -> Outcome:
        contender, case = pair
        missing = probes[contender.name].get("missing")
        if missing is not None:
            return Outcome(not_run=f"not run: {missing}")
        outcome = _run_case(contender, case, environments)
        print(f"{contender.name:8} {case.name:22} {_cell(outcome)}", flush=True)
        return outcome

    # Reversed, because the clients that retry longest are at the end of the list.
    pairs = list(itertools.product(reversed(contenders), cases))
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = pool.map(run_one, pairs)
        return {
            (case.name, each.name): outcome for (each, case), outcome in zip(pairs, outcomes, strict=True)
        }


def _run_case(contender: Contender, case: Case, environments: Environments) -> Outcome:
    """Run one case with a new home folder and a new server."""
    with tempfile.TemporaryDirectory() as folder, serving() as thread:
        home = Path(folder)
        try:
            if case.again:
                _call(contender, case, environments, home, thread.server)
            return _call(contender, case, environments, home, thread.server)
        except ProcessFailedError as error:
            return Outcome(not_run=f"could not be run: {error}")


def _call(
    contender: Contender, case: Case, environments: Environments, home: Path, server: FaultServer
) -> Outcome:
    task = {
        "origin": server.base_url,
        "texts": case.texts,
        "window": case.window,
        "deadline": case.deadline,
        "probe": False,
    }
    with _start(contender, task, environments, home) as worker:
        ready = worker.receive(START_TIMEOUT_S)
        if "missing" in ready:
            raise ProcessFailedError(ready["missing"])
        before = len(server.requests)
        case.prepare(server)
        report = worker.ask(case.window + _GRACE_S)
        arrivals = [request.time for request in server.requests[before:]]
        return outcome_of(report, case.texts, arrivals, worker.exit_code(_EXIT_TIMEOUT_S))


def _probe(contender: Contender, environments: Environments) -> dict[str, Any]:
    """Return the version of a contender, or why it cannot be imported."""
    python = environments.python(contender.environment)
    failure = environments.failure(contender.environment)
    if failure is not None:
        return {"missing": failure}
    task = {"origin": "http://127.0.0.1:9", "deadline": None, "probe": True}
    with tempfile.TemporaryDirectory() as home:
        try:
            with _start(contender, task, environments, Path(home)) as worker:
                return worker.receive(START_TIMEOUT_S)
        except (ProcessFailedError, OSError) as error:
            return {"missing": f"{error} ({python})"}


def _start(contender: Contender, task: dict[str, Any], environments: Environments, home: Path) -> JsonProcess:
    """Start a process with an empty home folder, which is also its working directory."""
    environment = child_environment(checkout=contender.environment == CHECKOUT, home=home)
    task = {"benchmark": "faults", "contender": contender.name, **task}
    return JsonProcess(environments.python(contender.environment), task, environment, home)


# ---- the table


def _table(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    versions: Mapping[str, str],
    outcomes: Outcomes,
) -> list[list[str]]:
    head = ["case", *(f"{each.title} ({versions[each.name]})" for each in contenders)]
    return [
        head,
        *([case.title, *(_cell(outcomes[case.name, each.name]) for each in contenders)] for case in cases),
    ]


def _cell(outcome: Outcome) -> str:
    """Requests, the result, seconds, how a wait was reported, and how the process ended."""
    if outcome.not_run is not None:
        return outcome.not_run
    words = [f"**{outcome.requests}**", _result(outcome), f"{outcome.seconds:.1f} s", outcome.visible]
    return " · ".join(word for word in [*words, _exit(outcome.exit_code)] if word)


def _result(outcome: Outcome) -> str:
    if outcome.still_waiting:
        return "no answer yet"
    words = [_rows(outcome)] if outcome.rows is not None else []
    if outcome.error is not None:
        words.append(f"`{outcome.error}`")
    if outcome.retry_after is not None:
        words.append(f"says {outcome.retry_after:.0f} s")
    return ", ".join(words)


def _rows(outcome: Outcome) -> str:
    if outcome.rows != outcome.count:
        return f"**WRONG: {outcome.rows} rows for {outcome.count} texts**"
    if outcome.wrong:
        remedy = " unless sorted by `index`" if outcome.sorted_right else ""
        return f"**WRONG ROWS: {outcome.wrong} of {outcome.count}**{remedy}"
    return f"{outcome.good} of {outcome.count}"


def _exit(exit_code: int | None) -> str:
    """How the process failed at exit, after the result: the caller sees a failed program."""
    if not exit_code:
        return ""
    return f"then {signal.Signals(-exit_code).name}" if exit_code < 0 else f"then exit {exit_code}"


def _json(versions: Mapping[str, str], outcomes: Outcomes) -> str:
    cells = [
        {"case": case, "contender": name, "visible": outcome.visible, "correct": outcome.correct}
        | asdict(outcome)
        for (case, name), outcome in outcomes.items()
    ]
    return json.dumps({"versions": versions, "outcomes": cells}, indent=1) + "\n"
