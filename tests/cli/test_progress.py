"""The progress display: on a terminal only."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.run import LLMOPT
from tests.support.scale import NIGHTLY

TEXTS = 4_000
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


# Without these variables the width is that of the terminal.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}


def on_terminal(
    *arguments: str, columns: int = 100, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[int, bytes, str]:
    """Run a command with standard error on a terminal, and standard output too unless it is JSON.

    Returns:
        The exit code, standard output, and the bytes that the terminal received.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    shown: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, shown))
    reader.start()
    to_terminal = "--json" not in arguments
    done = subprocess.run(
        [*LLMOPT, *arguments],
        input=stdin,
        stdout=theirs if to_terminal else subprocess.PIPE,
        stderr=theirs,
        env={**_ENVIRONMENT, "TERM": "xterm", **(env or {})},
        check=False,
    )
    os.close(theirs)
    reader.join()
    os.close(ours)
    return done.returncode, done.stdout or b"", b"".join(shown).decode()


def _read(terminal: int, shown: list[bytes]) -> None:
    try:
        while block := os.read(terminal, 65536):
            shown.append(block)
    except OSError:
        # The process closed its side.
        return


@pytest.fixture
def texts() -> str:
    Path("in.txt").write_text("".join(f"text number {row}\n" for row in range(TEXTS)))
    return "in.txt"


def test_bar_with_texts_rate_time_left_and_tokens(texts: str) -> None:
    """One line with all numbers, then the summary."""
    code, _, shown = on_terminal("embed", texts, "--model", "local/default", "--out", "out.npy")
    assert code == 0
    text = _STYLE.sub("", shown)
    assert re.search(r"[\d,]+/4,000 texts +[\d,]+/s +\S+ left +[\d,]+ tokens", text)
    assert text.splitlines()[-1].startswith("4,000 texts -> float32 4,000 x 256 in out.npy, ")


def test_bar_of_unknown_length() -> None:
    """A pipe has no known length, so the bar has neither a total nor the time left."""
    content = "".join(f"text number {row}\n" for row in range(5000)).encode()
    code, _, shown = on_terminal("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=content)
    assert code == 0
    text = _STYLE.sub("", shown)
    assert re.search(r"5,000 texts +[\d,]+/s +[\d,]+ tokens", text)
    assert "left" not in text


def test_the_bar_does_not_write_to_standard_output(texts: str) -> None:
    """With --json standard output is one object."""
    code, out, shown = on_terminal("embed", texts, "--model", "local/default", "--out", "out.npy", "--json")
    assert code == 0
    assert json.loads(out)["texts"] == TEXTS
    assert "4,000 texts" in shown


@pytest.mark.parametrize("options", [("--no-color",), ()], ids=["option", "variable"])
def test_colours_can_be_switched_off(texts: str, options: tuple[str, ...]) -> None:
    """By --no-color and by NO_COLOR."""
    env = {} if options else {"NO_COLOR": "1"}
    _, _, shown = on_terminal(
        "embed", texts, "--model", "local/default", "--out", "out.npy", *options, env=env
    )
    assert "4,000/4,000" in _STYLE.sub("", shown)
    assert not re.search(r"\x1b\[(3|9)\d", shown)


def test_quiet_draws_nothing(texts: str) -> None:
    code, _, shown = on_terminal("embed", texts, "--model", "local/default", "--out", "out.npy", "--quiet")
    assert (code, shown) == (0, "")


def test_tables_fit_the_terminal() -> None:
    """Lines are no longer than the terminal is wide, and no name is cut."""
    # At night also the width at which test_models.py shows the table.
    for columns in (60, 100) if NIGHTLY else (60,):
        code, _, shown = on_terminal("models", "local", columns=columns)
        assert code == 0
        lines = _STYLE.sub("", shown).splitlines()
        assert all(len(line) <= columns for line in lines)
        assert any(line.split()[:2] == ["local", "default"] for line in lines)
        assert "provider" in shown


def test_rich_is_imported_only_to_draw() -> None:
    """Commands that write to a pipe do not need rich. (A command that sends a request may load it with httpx.)"""
    commands = (["plugins"], ["doctor", "--offline"], ["embed", "--help"])
    code = (
        "import sys\nfrom llmopt.cli.app import app\n"
        f"for arguments in {commands!r}:\n"
        "    app(arguments, standalone_mode=False)\n"
        "    print('rich' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line for line in done.stderr.splitlines() if line in ("True", "False")] == ["False"] * 3
