"""The benchmarks run, their results are what the rounds say, and every curve, target and pin can be resolved."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.clients import CONTENDERS, STREAM_CONTENDERS
from benchmarks.cores import client_and_server_cores
from benchmarks.processes import CHECKOUT, Environments
from benchmarks.servers import Counters, EmbeddingsProtocol
from benchmarks.speed_cases import CURVES, all_cases, case_named
from benchmarks.speed_results import Measured, Results, curve_table
from benchmarks.speed_targets import FURTHER, MUST_REACH, SERVICE, targets_table
from tests.support.scale import NIGHTLY

ROOT = Path(__file__).parents[1]


def run(*arguments: str, exit_code: int = 0, **variables: str) -> str:
    """Run a command and return its output, both streams in one."""
    environment = {**os.environ, "COLUMNS": "100", **variables}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == exit_code, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_a_help(command: str) -> None:
    """With the purpose of the command and its options."""
    help_text = run(command, "--help")
    assert f"python -m benchmarks {command}" in help_text
    assert "--case" in help_text or "FILE" in help_text


def test_speed_measures_llmopt_and_the_floor() -> None:
    """Both decode the vectors correctly, which the worker checks."""
    arguments = ("--case", "numbers-128", "--contender", "llmopt", "--contender", "floor", "--rounds", "1")
    output = run("speed", *arguments, "--starts", "1")
    assert "not run" not in output
    assert "llmopt, policies off" not in output


def test_streams_measures_llmopt() -> None:
    """The text of each chunk arrives, in order."""
    output = run("streams", "--case", "burst", "--contender", "llmopt", "--rounds", "1")
    assert "not run" not in output
    assert "500 chunks at once" in output


def test_faults_checks_llmopt() -> None:
    """A reset connection costs one more request, and every row is correct."""
    output = run("faults", "--case", "reset", "--contender", "llmopt", "--check")
    assert "**2** · 4 of 4" in output


def test_faults_does_not_pass_without_a_peer(tmp_path: Path) -> None:
    """A client that cannot be started is named, with its interpreter."""
    absent = str(tmp_path / "python")
    arguments = ("--case", "reset", "--contender", "openai", "--python", f"openai={absent}", "--check")
    output = run("faults", *arguments, exit_code=1)
    assert "openai, reset: not run" in output
    assert absent in output


def test_limits_measures_llmopt(tmp_path: Path) -> None:
    """The server's books and the client's report make a row; a bound that is not kept fails the check."""
    results = tmp_path / "limits.json"
    case = "four-unknown" if NIGHTLY else "unknown"
    output = run("limits", "--case", case, "--contender", "llmopt", "--seconds", "2", "--json", str(results))
    assert "0 lost" in output
    stored = json.loads(results.read_text())
    (outcome,) = stored["outcomes"]
    assert outcome["admitted"] > 0
    assert 0 < outcome["share"] <= 1
    outcome["lost"] = 7
    results.write_text(json.dumps(stored))
    checked = run("limits", "--render", "--json", str(results), "--check", exit_code=1)
    assert f"llmopt, {case}: 7 lost" in checked


# ---- results of `speed`, without running anything


def row_of(contender: str, *starts: tuple[float, ...]) -> dict[str, Any]:
    """Rounds of one request each, by start, with their CPU in µs."""
    rounds = [
        {"start": start, "round": number, "cpu": cpu / 1e6, "wall": cpu / 1e6, "requests": 1, "vectors": 1}
        for start, costs in enumerate(starts)
        for number, cpu in enumerate(costs)
    ]
    return {"contender": contender, "title": contender, "rounds": rounds, "peak": 0}


def results_of(case: str, *rows: dict[str, Any]) -> Results:
    results = Results({})
    results.put(case_named(case), rows, machine="here", seconds=0)
    return results


def test_a_ratio_is_taken_within_a_round_and_its_median_over_the_starts() -> None:
    """A slow moment that meets both contenders changes nothing, and a lucky start is one of three."""
    results = results_of(
        "one-64",
        row_of("floor", (100, 900, 100), (100, 100, 100), (200, 200, 200)),
        row_of("llmopt", (50, 450, 50), (30, 30, 80), (180, 100, 100)),
    )
    assert results.ratio("one-64", "llmopt", "floor") == Measured(0.5, 0.3, 0.5, 3)
    assert results.ratio("one-64", "llmopt", "openai") is None


def test_a_contender_of_one_start_is_compared_within_that_start() -> None:
    results = results_of("one-64", row_of("openai", (1000,)), row_of("llmopt", (50,), (9,), (9,)))
    assert results.ratio("one-64", "llmopt", "openai") == Measured(0.05, 0.05, 0.05, 1)


def test_instructions_and_times_of_a_case_do_not_replace_each_other() -> None:
    results = results_of("one-64", row_of("llmopt", (50,)))
    results.put_instructions(case_named("one-64"), "llmopt", 440_000)
    results.put(case_named("one-64"), [row_of("floor", (100,))], machine="here", seconds=0)
    assert results.ratio("one-64", "llmopt", "floor") is not None
    table = targets_table(results, MUST_REACH)
    assert ["user instructions of one text, 64 in flight", "≤ 450 k", "", "440 k", "", "yes"] in table


@pytest.mark.parametrize(("share", "verdict"), [(0.9, "met"), (0.7, "**missed**")])
def test_a_smallest_value_is_missed_from_below(share: float, verdict: str) -> None:
    results = results_of("service", {"contender": "llmopt", "rounds": [], "values": {"hits": [share]}})
    (line,) = targets_table(results, SERVICE, found="met")[1:]
    assert line[1] == "≥ 80 %"
    assert line[-1] == verdict


def test_a_page_names_the_targets_that_were_not_measured() -> None:
    for targets in (MUST_REACH, FURTHER, SERVICE):
        table = targets_table(Results({}), targets, unmeasured="not measured")
        assert [line[3] for line in table[1:]] == ["not measured"] * len(targets)


def test_each_curve_has_cases_and_contenders_for_its_points() -> None:
    cases = {case.name: case for case in all_cases()}
    for curve in CURVES:
        points = [point for line in curve.lines.values() for point in line]
        assert all(contender in cases[case].contenders for _, case, contender in points), curve.name


def test_a_curve_becomes_a_table_with_a_row_for_each_number() -> None:
    results = results_of("endpoints", row_of("llmopt", (100,)), row_of("llmopt-10", (110,)))
    curve = next(each for each in CURVES if each.name == "endpoints")
    assert [line[:2] for line in curve_table(results, curve)[1:]] == [["1", "100"], ["10", "110"]]


def test_every_peer_is_pinned() -> None:
    environments = {each.environment for each in (*CONTENDERS, *STREAM_CONTENDERS)} - {CHECKOUT}
    for name in (*environments, "server", "reference"):
        lines = (ROOT / "benchmarks" / "peers" / f"{name}.txt").read_text().splitlines()
        assert lines
        assert all(line.count("==") == 1 for line in lines), name


def test_only_pinned_environments_are_created(tmp_path: Path) -> None:
    """This checkout and an earlier version run with the current interpreter unless another one is named."""
    environments = Environments({"before": "/usr/bin/python-before"}, tmp_path)
    assert environments.python("before") == "/usr/bin/python-before"
    assert Environments({}, tmp_path).python("before") == environments.python(CHECKOUT) == sys.executable


def test_client_and_server_get_two_cores_or_none() -> None:
    cores = client_and_server_cores()
    assert cores is None or cores[0] != cores[1]


def test_the_server_fails_one_request_in_some() -> None:
    """Four of five with a 503, the fifth with a lost connection; the others are answered."""

    class Transport(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.answers: list[str] = []

        def write(self, data: Any) -> None:
            self.answers.append(bytes(data[:12]).decode())

        def close(self) -> None:
            self.answers.append("closed")

    transport, counters = Transport(), Counters()
    protocol = EmbeddingsProtocol(counters)
    protocol.connection_made(transport)
    for _ in range(10):
        protocol.data_received(b"GET /requested-3x1-0ms-1in2/v1/models HTTP/1.1\r\n\r\n")
    failures = [*["HTTP/1.1 503"] * 4, "closed"]
    assert transport.answers == [each for failure in failures for each in ("HTTP/1.1 200", failure)]
    assert (counters.connections, counters.requests, counters.failures) == (1, 10, 5)


def test_counting_instructions_needs_valgrind(tmp_path: Path) -> None:
    """It is an error that names the package, not an empty table."""
    output = run("speed", "--callgrind", exit_code=2, PATH=str(tmp_path))
    assert "install" in output
    assert "valgrind" in output
