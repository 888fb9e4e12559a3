"""What llmopt and its peers make of a rate limit: each in its own processes, against a server that keeps the limit.

    python -m benchmarks limits --venvs /tmp/peers --docs docs/development

Each case lasts 75 s, with all clients at the same time, each against a server of its own: about nine minutes in all. The
server admits requests and tokens per minute by two token buckets, and counts what it admits and refuses. All traffic is on
loopback.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from attrs import asdict, field, frozen

from benchmarks.clients import LIMIT_CONTENDERS, Contender
from benchmarks.processes import (
    CHECKOUT,
    START_TIMEOUT_S,
    Environments,
    JsonProcess,
    ProcessFailedError,
    add_environment_arguments,
    child_environment,
    machine,
)
from benchmarks.tables import markdown, replace_part

SECONDS: Final = 75.0
WORKERS: Final = 64
"""Calls at the same time, of all processes together."""
PAGE: Final = "peer-limits.md"
PLOT: Final = "peer-limits.svg"
_GRACE_S: Final = 30.0
"""Seconds after the end in which a process must report."""


@frozen(kw_only=True)
class Case:
    """What the server allows and says, and what must be kept.

    Attributes:
        name: on the command line.
        title: in the table.
        rpm: requests per minute.
        tpm: tokens per minute.
        burst: seconds of inflow that the full buckets hold.
        filled: how full they are at the beginning.
        headers: what responses state: "honest" (limit, what remains, and when it is full), or "none".
        configured: whether clients that can be told the limits are told.
        processes: clients with one key.
        steady: whether only the last two thirds count, against the inflow alone.
        share: part of the possible that llmopt must reach.
        refused: part of its requests that may be refused.
        least_share: part of an even share that each of its processes must get.
    """

    name: str
    title: str
    rpm: float = 1_200.0
    tpm: float = 300_000.0
    burst: Mapping[str, float] = field(factory=lambda: dict(_BANK))
    filled: float = 1.0
    headers: str = "honest"
    configured: bool = False
    processes: int = 1
    steady: bool = False
    share: float
    refused: float
    least_share: float = 0.0


_BANK: Final = {"requests": 60.0, "tokens": 60.0}
_SHALLOW: Final = {"requests": 1.0, "tokens": 5.0}
CASES: Final = (
    Case(name="steady", title="steady, of the refill", filled=0.2, steady=True, share=0.99, refused=0.0),
    Case(name="bank", title="a full bank of a minute", share=0.97, refused=0.005),
    Case(
        name="configured",
        title="no headers, limits configured",
        headers="none",
        burst=_SHALLOW,
        configured=True,
        share=0.98,
        refused=0.01,
    ),
    Case(
        name="unknown",
        title="neither headers nor limits",
        headers="none",
        burst=_SHALLOW,
        share=0.94,
        refused=0.03,
    ),
    Case(
        name="four",
        title="four processes, headers",
        processes=4,
        share=0.98,
        refused=0.005,
        least_share=0.8,
    ),
    Case(
        name="four-unknown",
        title="four processes, neither headers nor limits",
        processes=4,
        headers="none",
        burst=_SHALLOW,
        share=0.85,
        refused=0.05,
    ),
)


@frozen(kw_only=True)
class Outcome:
    """What one client reached in one case.

    Attributes:
        not_run: why it could not be run, None if it was.
        share: what was admitted, as a part of the possible.
        refused: requests that the server refused.
        admitted: requests that it admitted.
        lost: calls that failed.
        errors: their errors by name.
        cpu: seconds of CPU time of all processes.
        least_share: what the process with the fewest answers got, as a part of an even share.
    """

    not_run: str | None = None
    share: float = 0.0
    refused: int = 0
    admitted: int = 0
    lost: int = 0
    errors: Mapping[str, int] = field(factory=dict)
    cpu: float = 0.0
    least_share: float = 1.0

    def problems(self, case: Case) -> list[str]:
        """What does not keep the bounds of a case."""
        if self.not_run is not None:
            return [self.not_run]
        asked = self.admitted + self.refused
        checks = {
            f"{self.share:.1%} of the possible": self.share >= case.share,
            f"{self.refused} of {asked} refused": self.refused <= case.refused * asked,
            f"{self.lost} lost": self.lost == 0,
            f"the least share is {self.least_share:.2f}": self.least_share >= case.least_share,
        }
        return [text for text, kept in checks.items() if not kept]


_MISSING: Final = Outcome(not_run="not measured")
Outcomes = Mapping[tuple[str, str], Outcome]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    names = [case.name for case in CASES]
    contenders = [each.name for each in LIMIT_CONTENDERS]
    parser.add_argument(
        "--case", action="append", choices=names, metavar="NAME", help=f"may be repeated: {', '.join(names)}"
    )
    parser.add_argument(
        "--contender",
        action="append",
        choices=contenders,
        metavar="NAME",
        help=f"may be repeated: {', '.join(contenders)}",
    )
    add_environment_arguments(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"of each case (default: {SECONDS:g})")
    parser.add_argument("--docs", type=Path, metavar="DIR", help=f"write {PAGE} and its plot there")
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write all results to this file; what is not measured again stays in it",
    )
    parser.add_argument(
        "--render", action="store_true", help="measure nothing: take the results from the file of --json"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 if a client could not be run, or llmopt did not reach what it must",
    )
    parser.add_argument(
        "--jobs", type=int, default=len(contenders), help="clients at the same time (default: all)"
    )


def run(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Run the cases, print the table, and write the page."""
    if arguments.docs and (arguments.case or arguments.contender) and not arguments.json:
        parser.error(
            "--docs replaces the whole table: with --case or --contender it needs --json FILE with the rest"
        )
    if arguments.render and not arguments.json:
        parser.error("--render needs --json FILE")
    if arguments.render:
        versions, outcomes, where = _loaded(arguments.json)
    else:
        versions, outcomes = _measured(arguments)
        where = machine()
        if arguments.json and arguments.json.exists():
            earlier_versions, earlier, _ = _loaded(arguments.json)
            versions, outcomes = earlier_versions | versions, earlier | outcomes
    table = markdown(_table(versions, outcomes), numbers=False)
    print(f"\n{table}", end="")
    if arguments.docs:
        draw(versions, outcomes, arguments.docs / PLOT)
        replace_part(arguments.docs / PAGE, "table", "limits", f"Measured on: {where}.\n\n{table}")
    if arguments.json and not arguments.render:
        arguments.json.write_text(_json(versions, outcomes, where))
    if arguments.check and (problems := _problems(outcomes)):
        parser.exit(1, "".join(f"{problem}\n" for problem in problems))


def _problems(outcomes: Outcomes) -> list[str]:
    """What must not be: what other clients do is a result, what llmopt does not reach is a failure."""
    cases = {case.name: case for case in CASES}
    return [
        f"{name}, {case}: {problem}"
        for (case, name), outcome in outcomes.items()
        if name == "llmopt" or outcome.not_run is not None
        for problem in outcome.problems(cases[case])
    ]


# ---- running


def _measured(arguments: argparse.Namespace) -> tuple[dict[str, str], dict[tuple[str, str], Outcome]]:
    environments = Environments.from_arguments(arguments)
    cases = [case for case in CASES if not arguments.case or case.name in arguments.case]
    contenders = [
        each for each in LIMIT_CONTENDERS if not arguments.contender or each.name in arguments.contender
    ]
    # One after the other: creating an environment is not safe from several threads.
    for contender in contenders:
        environments.python(contender.environment)
    versions: dict[str, str] = {}
    outcomes: dict[tuple[str, str], Outcome] = {}

    def run_one(case: Case, contender: Contender) -> Outcome:
        try:
            return _run_case(contender, case, environments, arguments.seconds, versions)
        except ProcessFailedError as error:
            return Outcome(not_run=f"not run: {error}")

    for case in cases:
        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = pool.map(lambda each, case=case: run_one(case, each), contenders)
            for contender, outcome in zip(contenders, results, strict=True):
                outcomes[case.name, contender.name] = outcome
                print(f"{contender.name:8} {case.name:14} {_cell(outcome)}", flush=True)
    return versions, outcomes


def _run_case(
    contender: Contender, case: Case, environments: Environments, seconds: float, versions: dict[str, str]
) -> Outcome:
    """Run one client against a new server, each process with a new home folder."""
    failure = environments.failure(contender.environment)
    if failure is not None:
        raise ProcessFailedError(failure)
    with ExitStack() as stack:
        enter = stack.enter_context
        server = enter(_server(case))
        port = server.receive(START_TIMEOUT_S)["port"]
        clients = [
            enter(_client(contender, case, f"http://127.0.0.1:{port}", seconds, environments, home))
            for home in [
                Path(enter(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
                for _ in range(case.processes)
            ]
        ]
        for client in clients:
            ready = client.receive(START_TIMEOUT_S)
            if "missing" in ready:
                raise ProcessFailedError(ready["missing"])
            versions[contender.name] = ready["version"]
        server.ask(do="begin")
        for client in clients:
            client.send({"do": "go"})
        if case.steady:
            time.sleep(seconds / 3)
            server.ask(do="measure")
        judged = server.ask(do="report", at=seconds)
        reports = [client.receive(_GRACE_S) for client in clients]
    return _outcome(judged, reports)


def _outcome(judged: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]) -> Outcome:
    errors: dict[str, int] = {}
    for report in reports:
        for name, count in report["errors"].items():
            errors[name] = errors.get(name, 0) + count
    done = [report["done"] for report in reports]
    return Outcome(
        share=judged["share"],
        refused=judged["refused"],
        admitted=judged["admitted"],
        lost=sum(errors.values()),
        errors=errors,
        cpu=sum(report["cpu"] for report in reports),
        least_share=min(done) / max(1.0, sum(done) / len(done)),
    )


def _server(case: Case) -> JsonProcess:
    task = {"benchmark": "limits-server", "case": asdict(case)}
    environment = child_environment(checkout=True)
    return JsonProcess(Environments({}, None).python(CHECKOUT), task, environment)


def _client(
    contender: Contender, case: Case, origin: str, seconds: float, environments: Environments, home: Path
) -> JsonProcess:
    task = {
        "benchmark": "limits",
        "contender": contender.name,
        "origin": origin,
        "rpm": case.rpm if case.configured else None,
        "tpm": case.tpm if case.configured else None,
        "workers": WORKERS // case.processes,
        "seconds": seconds,
    }
    environment = child_environment(checkout=contender.environment == CHECKOUT, home=home)
    return JsonProcess(environments.python(contender.environment), task, environment, home)


# ---- the table and the plot


def _table(versions: Mapping[str, str], outcomes: Outcomes) -> list[list[str]]:
    contenders = [each for each in LIMIT_CONTENDERS if any(name == each.name for _, name in outcomes)]
    head = ["case", *(f"{each.title} ({versions.get(each.name, 'not run')})" for each in contenders)]
    return [
        head,
        *(
            [case.title, *(_cell(outcomes.get((case.name, each.name), _MISSING)) for each in contenders)]
            for case in CASES
            if any(name == case.name for name, _ in outcomes)
        ),
    ]


def _cell(outcome: Outcome) -> str:
    """The share of the possible, refused requests, lost calls, CPU seconds, and how uneven the processes' shares are."""
    if outcome.not_run is not None:
        return outcome.not_run
    words = [
        f"**{outcome.share:.1%}**",
        f"{outcome.refused:,} refused",
        f"{outcome.lost:,} lost",
        f"{outcome.cpu:.1f} s CPU",
    ]
    if outcome.least_share < 1.0:
        words.append(f"least share {outcome.least_share:.2f}")
    return " · ".join(words)


def draw(versions: Mapping[str, str], outcomes: Outcomes, path: Path) -> None:
    """Draw share, refused requests, lost calls and CPU time of all clients."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results always give the same file.
    mpl.rcParams.update({"svg.hashsalt": "llmopt", "font.size": 8})
    from matplotlib import pyplot as plt

    panels = (
        ("of the possible, %", lambda each: each.share * 100, "linear"),
        ("requests refused", lambda each: each.refused, "symlog"),
        ("calls lost", lambda each: each.lost, "symlog"),
        ("client CPU, s", lambda each: each.cpu, "linear"),
    )
    contenders = [each for each in LIMIT_CONTENDERS if each.name in versions]
    cases = [case for case in CASES if any(name == case.name for name, _ in outcomes)]
    colours = ("#1f6feb", "#9aa4b2", "#d29922", "#8a63d2")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(11, 0.7 + 0.62 * len(cases)), sharey=True, layout="constrained"
    )
    height = 0.8 / len(contenders)
    for axis, (label, value, scale) in zip(axes, panels, strict=True):
        for number, contender in enumerate(contenders):
            lengths = [value(outcomes.get((case.name, contender.name), _MISSING)) for case in cases]
            places = [row + (number - (len(contenders) - 1) / 2) * height for row in range(len(cases))]
            axis.barh(places, lengths, height, color=colours[number], label=contender.title)
        axis.set_xscale(scale)
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks(range(len(cases)), [case.title for case in cases])
    axes[0].invert_yaxis()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(contenders), frameon=False
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


# ---- results in a file


def _json(versions: Mapping[str, str], outcomes: Outcomes, where: str) -> str:
    cells = [
        {"case": case, "contender": name} | asdict(outcome) for (case, name), outcome in outcomes.items()
    ]
    return json.dumps({"machine": where, "versions": versions, "outcomes": cells}, indent=1) + "\n"


def _loaded(path: Path) -> tuple[dict[str, str], dict[tuple[str, str], Outcome], str]:
    stored = json.loads(path.read_text())
    outcomes = {(cell.pop("case"), cell.pop("contender")): Outcome(**cell) for cell in stored["outcomes"]}
    return stored["versions"], outcomes, stored["machine"]
