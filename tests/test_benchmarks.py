"""The benchmarks run: each command shows its help, and two short measurements work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS
from tests.support.scale import NIGHTLY

ROOT = Path(__file__).parents[1]


def run(*arguments: str, exit_code: int = 0) -> str:
    """Run a command and return its output, both streams in one."""
    environment = {**os.environ, "COLUMNS": "100"}
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
    output = run("speed", *arguments)
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
