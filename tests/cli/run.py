"""Run the command line, in a process of its own or in this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from llmopt.cli.app import app

LLMOPT = (sys.executable, "-W", "error", "-m", "llmopt")
"""The command line of the process; warnings are errors in it."""


def llmopt(
    *arguments: str, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a process of its own."""
    return subprocess.run(
        [*LLMOPT, *arguments], input=stdin, capture_output=True, env=env, check=False, timeout=100
    )


def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, arguments, input=stdin, prog_name="llmopt")


def json_of(result: subprocess.CompletedProcess[bytes] | Result) -> Any:
    """The JSON value that standard output consists of."""
    return json.loads(result.stdout)


def names() -> list[str]:
    """Names of the files in the current directory."""
    return sorted(path.name for path in Path().iterdir())
