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

_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


# The terminal itself says how wide it is.
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}


def on_terminal(
    *arguments: str, columns: int = 100, stdin: bytes = b"", env: Mapping[str, str] | None = None
) -> tuple[int, bytes, str]:
    """Run a command with standard error, and standard output too if nobody else takes it, on a terminal.

    Returns:
        The exit code, standard output, and what the terminal got.
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
        # The other side is closed.
        return


@pytest.fixture
def texts() -> str:
    Path("in.txt").write_text("".join(f"text number {row}\n" for row in range(20_000)))
    return "in.txt"


def test_bar_with_texts_rate_time_left_and_tokens(texts: str) -> None:
    """All the numbers in one line, then the closing line."""
    code, _, shown = on_terminal("embed", texts, "--model", "local/default", "--out", "out.npy")
    assert code == 0
    text = _STYLE.sub("", shown)
    assert re.search(r"[\d,]+/20,000 texts +[\d,]+/s +\S+ left +[\d,]+ tokens", text)
    assert text.splitlines()[-1].startswith("20,000 texts -> float32 20,000 x 256 in out.npy, ")


def test_bar_of_unknown_length() -> None:
    """A pipe has no length: no total and no time left."""
    content = "".join(f"text number {row}\n" for row in range(5000)).encode()
    code, _, shown = on_terminal("embed", "-", "--model", "local/default", "--out", "out.npy", stdin=content)
    assert code == 0
    text = _STYLE.sub("", shown)
    assert re.search(r"5,000 texts +[\d,]+/s +[\d,]+ tokens", text)
    assert "left" not in text


def test_standard_output_stays_clean_beside_a_bar(texts: str) -> None:
    """--json is one object, whatever the terminal shows."""
    code, out, shown = on_terminal("embed", texts, "--model", "local/default", "--out", "out.npy", "--json")
    assert code == 0
    assert json.loads(out)["texts"] == 20_000
    assert "20,000 texts" in shown


@pytest.mark.parametrize("options", [("--no-color",), ()], ids=["option", "variable"])
def test_no_colour(texts: str, options: tuple[str, ...]) -> None:
    """Neither --no-color nor NO_COLOR lets a colour through."""
    env = {} if options else {"NO_COLOR": "1"}
    _, _, shown = on_terminal(
        "embed", texts, "--model", "local/default", "--out", "out.npy", *options, env=env
    )
    assert "20,000/20,000" in _STYLE.sub("", shown)
    assert not re.search(r"\x1b\[(3|9)\d", shown)


def test_quiet_draws_nothing(texts: str) -> None:
    """--quiet on a terminal as well."""
    code, _, shown = on_terminal("embed", texts, "--model", "local/default", "--out", "out.npy", "--quiet")
    assert (code, shown) == (0, "")


def test_tables_fit_the_terminal() -> None:
    """No line is longer than the terminal is wide, and no name is cut."""
    for columns in (60, 100):
        code, _, shown = on_terminal("models", "local", columns=columns)
        assert code == 0
        lines = _STYLE.sub("", shown).splitlines()
        assert all(len(line) <= columns for line in lines)
        assert any(line.split()[:2] == ["local", "default"] for line in lines)
        assert "provider" in shown


def test_rich_is_imported_only_to_draw() -> None:
    """On a pipe no table needs it. (Where a provider is asked, httpx imports it for purposes of its own.)"""
    for arguments in (["plugins"], ["doctor", "--offline"], ["embed", "--help"]):
        code = (
            "import sys\nfrom llmopt.cli.app import app\n"
            f"app({arguments!r}, standalone_mode=False)\n"
            "print('rich' in sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.splitlines()[-1] == "False"
