"""Exit codes, error messages, and tracebacks on request."""

from __future__ import annotations

import shlex
from pathlib import Path

import click
import numpy as np
import pytest

from llmopt import errors
from llmopt.cli.app import _COMMANDS, app
from llmopt.cli.console import (
    CommandError,
    Exit,
    InputError,
    error_message,
    exit_code_for,
    format_count,
    printable,
    quoted_list,
)
from llmopt.cli.doctor import hint_for
from llmopt.cli.writers import AppendFile
from tests.cli.run import invoke, json_of

CODES = [
    (errors.ConfigError("x"), Exit.SETUP),
    (errors.UnknownProvider("x"), Exit.SETUP),
    (errors.PluginConflict("x"), Exit.SETUP),
    (errors.InvalidInput("x"), Exit.USAGE),
    (errors.AuthError("x"), Exit.FAILED),
    (errors.DeadlineExceeded("x"), Exit.FAILED),
    (InputError("x"), Exit.USAGE),
    (CommandError("x", Exit.SETUP), Exit.SETUP),
    (KeyboardInterrupt(), Exit.INTERRUPTED),
    (OSError(28, "No space left on device"), Exit.FAILED),
    (ValueError("x"), Exit.FAILED),
]


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_code_of_an_error(error: BaseException, code: Exit) -> None:
    """What can be mended where, in a number."""
    assert exit_code_for(error) == code


def test_sentences() -> None:
    """Errors of the system and of nobody's making are sentences too."""
    assert (
        error_message(OSError(28, "No space left on device", "out.npy"))
        == "No space left on device: out.npy."
    )
    assert error_message(OSError(28, "No space left on device")) == "No space left on device."
    assert error_message(errors.ConfigError("do this.")) == "do this."
    assert "LLMOPT_TRACEBACK=1" in error_message(ValueError("oh"))


def test_an_internal_fault_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """No traceback, unless it is asked for."""

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oh dear")

    monkeypatch.setattr("llmopt.cli.doctor.load_config", broken)
    done = invoke("plugins")
    assert done.exit_code == 1
    assert done.stderr.startswith(
        "llmopt: unexpected error in llmopt or a plugin (ZeroDivisionError: oh dear)"
    )
    assert len(done.stderr.splitlines()) == 1
    monkeypatch.setenv("LLMOPT_TRACEBACK", "1")
    done = invoke("plugins")
    assert done.exit_code == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "in broken" in done.stderr


def test_an_interrupt_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 130 from every command."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmopt.cli.doctor.load_config", interrupted)
    done = invoke("plugins")
    assert (done.exit_code, done.stderr) == (130, "llmopt: interrupted.\n")


def test_a_disk_that_fills_up_keeps_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure to write is told, and the rows before it are kept."""
    append = AppendFile.append

    def full(self: AppendFile, data: memoryview) -> None:
        if self.size > 2_000_000:
            raise OSError(28, "No space left on device")
        append(self, data)

    monkeypatch.setattr(AppendFile, "append", full)
    Path("in.txt").write_text("".join(f"text {row}\n" for row in range(8000)))
    done = invoke("embed", "in.txt", "--model", "local/default", "--out", "out.npy")
    assert done.exit_code == 1
    assert (
        done.stderr == "llmopt: No space left on device. 2,048 finished rows are kept in out.npy.partial.\n"
    )
    assert np.load("out.npy.partial").shape == (2048, 256)


def test_a_partial_file_that_cannot_have_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is too long with ".partial": the rows stay in the temporary file, which is named."""
    name = "o" * 250 + ".npy"
    done = invoke("embed", "-", "--model", "local/default", "--out", name, stdin=b"good\n" * 3000 + b"\xff")
    assert done.exit_code == 2
    (left,) = Path().glob(".llmopt-*.tmp")
    assert str(left) in done.stderr


def test_advice_for_every_way_to_fail() -> None:
    """Half a sentence, with the key's source where the key is at fault."""
    refused = errors.ConnectFailed("x", cause="refused")
    assert hint_for(refused, "") == "start the server, or correct the port in base_url"
    assert hint_for(errors.ConnectFailed("x", cause="other"), "").startswith("check base_url")
    assert hint_for(errors.AuthError("x"), "configuration") == "check the key (configuration)"
    assert hint_for(errors.DeadlineExceeded("x"), "") == "try again, with a larger --deadline"
    assert hint_for(errors.ItemRejected("x"), "") == ""


def test_text_for_people() -> None:
    """Numbers with their nouns, names few and short, and nothing that moves a cursor."""
    assert (format_count(1, "text"), format_count(1234, "text")) == ("1 text", "1,234 texts")
    assert printable("a\x1b[1m\nb") == "a\ufffd[1m\ufffdb"
    assert printable("a\x1b\nb", lines=True) == "a\ufffd\nb"
    assert quoted_list(["a", "b"]) == "'a', 'b'"
    assert quoted_list(str(number) for number in range(30)).endswith("'19', and 10 more")
    assert len(quoted_list(["x" * 100])) < 50


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("embed", "in.txt", "--model", "local/default", "--out", "out.npy"), "ConfigError"),
        (("embed", "none.txt", "--model", "local/default", "--out", "out.npy"), "InputError"),
        (("models",), "ConfigError"),
        (("models", "--offline", "--refresh"), "CommandError"),
        (("plugins",), "ConfigError"),
        (("chat", "local/default"), "ConfigError"),
        (("cache", "info"), "ConfigError"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_what_never_began_is_told_to_machines_too(
    arguments: tuple[str, ...], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One object with the error, and the same sentence on standard error."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a text\n")
    Path("broken.toml").write_text("[providers\n")
    done = invoke(*arguments, "--json", "--config", "broken.toml", stdin=b"Hello?")
    told = json_of(done)["error"]
    assert told["type"] == kind
    assert told["message"] in done.stderr
    assert done.exit_code in (Exit.USAGE, Exit.SETUP)
    plain_done = invoke(*arguments, "--config", "broken.toml", stdin=b"Hello?")
    assert (plain_done.stdout, plain_done.stderr) == ("", done.stderr)


# Help: every command has an example, and every example can be typed.

_PAGES = ((), *((name,) for name in _COMMANDS))


def examples(help_page: str) -> list[str]:
    """The lines under "Example:"."""
    lines = iter(help_page.splitlines())
    for line in lines:
        if line.strip() == "Example:":
            break
    found = []
    for line in lines:
        if not line.strip():
            break
        found.append(line.strip())
    return found


@pytest.mark.parametrize("arguments", _PAGES, ids=" ".join)
def test_help_has_examples_that_parse(arguments: tuple[str, ...]) -> None:
    """Every line under "Example:" is a command that the parser takes."""
    done = invoke(*arguments, "--help")
    assert done.exit_code == 0
    found = examples(done.stdout)
    assert found
    for line in found:
        program, name, *rest = shlex.split(line.rpartition("|")[2])
        command = app.get_command(click.Context(app), name)
        assert program == "llmopt"
        assert command is not None
        assert arguments in ((), (name,))
        # Below the program, whose settings count: a command remembers its option for help.
        command.make_context(name, rest, parent=click.Context(app, **app.context_settings))


@pytest.mark.parametrize("arguments", _PAGES, ids=" ".join)
def test_every_option_is_explained(arguments: tuple[str, ...]) -> None:
    """No option without a sentence, and the page is the same with -h."""
    command: click.Command | None = app.get_command(click.Context(app), arguments[0]) if arguments else app
    assert command is not None
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name
    assert invoke(*arguments, "-h").stdout == invoke(*arguments, "--help").stdout


def test_exit_codes_are_documented() -> None:
    """Each of them stands in ``llmopt --help``."""
    page = invoke("--help").stdout
    codes = page.partition("Exit codes:")[2].split("An error is")[0]
    assert [int(line.split()[0]) for line in codes.split("\n") if line.strip()] == [
        int(code) for code in Exit
    ]


def test_no_command_shows_the_help() -> None:
    """``llmopt`` alone."""
    assert "Exit codes:" in (invoke().stdout + invoke().stderr)


def test_an_unknown_command() -> None:
    """Exit code 2, with a hint."""
    done = invoke("embedd", "x")
    assert done.exit_code == 2
    assert "No such command 'embedd'" in done.stderr
