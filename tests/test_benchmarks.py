"""The benchmarks run: each command shows its help, and two short measurements work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> str:
    """Run a command and return its output."""
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


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
