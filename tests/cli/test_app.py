"""Exit codes, error messages, and tracebacks on request."""

from __future__ import annotations

import io
import json
import shlex
from contextlib import redirect_stdout
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmopt import errors
from llmopt.cli.app import _COMMANDS, app
from llmopt.cli.console import (
    CommandError,
    Exit,
    InputError,
    error_message,
    exit_code_for,
    format_count,
    print_json,
    print_json_line,
    printable,
    printable_text,
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
def test_exit_code_of_an_error(error: BaseException, code: Exit) -> None:
    assert exit_code_for(error) == code


def test_every_error_is_a_sentence() -> None:
    """Errors of the operating system and unexpected ones too."""
    assert (
        error_message(OSError(28, "No space left on device", "out.npy"))
        == "No space left on device: out.npy."
    )
    assert error_message(OSError(28, "No space left on device")) == "No space left on device."
    assert error_message(errors.ConfigError("do this.")) == "do this."
    assert "LLMOPT_TRACEBACK=1" in error_message(ValueError("oh"))


def test_an_unexpected_error_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback is shown with LLMOPT_TRACEBACK=1 only."""

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


def test_an_interrupt_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    """In every command."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llmopt.cli.doctor.load_config", interrupted)
    done = invoke("plugins")
    assert (done.exit_code, done.stderr) == (130, "llmopt: interrupted.\n")


def test_a_full_disk_keeps_the_rows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_name_too_long_for_a_partial_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows stay in the temporary file, which the error names."""
    name = "o" * 250 + ".npy"
    done = invoke("embed", "-", "--model", "local/default", "--out", name, stdin=b"good\n" * 3000 + b"\xff")
    assert done.exit_code == 2
    (left,) = Path().glob(".llmopt-*.tmp")
    assert str(left) in done.stderr


def test_hint_for_each_error() -> None:
    """With the source of the key if the key is wrong."""
    refused = errors.ConnectFailed("x", cause="refused")
    assert hint_for(refused, "") == "start the server, or correct the port in base_url"
    assert hint_for(errors.ConnectFailed("x", cause="other"), "").startswith("check base_url")
    assert hint_for(errors.AuthError("x"), "configuration") == "check the key (configuration)"
    assert hint_for(errors.DeadlineExceeded("x"), "") == "try again, with a larger --deadline"
    assert hint_for(errors.ItemRejected("x"), "") == ""


def test_formatting_of_numbers_and_names() -> None:
    """Numbers with their nouns, short lists of names, and no control characters."""
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
def test_json_output_of_an_error_before_the_work_begins(
    arguments: tuple[str, ...], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the same message as standard error."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("a text\n")
    Path("broken.toml").write_text("[providers\n")
    done = invoke(*arguments, "--json", "--config", "broken.toml", stdin=b"Hello?")
    error = json_of(done)["error"]
    assert error["type"] == kind
    assert error["message"] in done.stderr
    assert done.exit_code in (Exit.USAGE, Exit.SETUP)
    plain_done = invoke(*arguments, "--config", "broken.toml", stdin=b"Hello?")
    assert (plain_done.stdout, plain_done.stderr) == ("", done.stderr)


# Help: every command has an example, and every example can be typed.

_PAGES = ((), *((name,) for name in _COMMANDS))


def examples(help_page: str) -> list[str]:
    """The lines below "Example:"."""
    lines = iter(help_page.splitlines())
    for line in lines:
        if line.strip() == "Example:":
            break
    commands = []
    for line in lines:
        if not line.strip():
            break
        commands.append(line.strip())
    return commands


@pytest.mark.parametrize("arguments", _PAGES, ids=" ".join)
def test_help_has_examples_that_parse(arguments: tuple[str, ...]) -> None:
    """Each line below "Example:" is a valid command."""
    done = invoke(*arguments, "--help")
    assert done.exit_code == 0
    commands = examples(done.stdout)
    assert commands
    for line in commands:
        program, name, *rest = shlex.split(line.rpartition("|")[2])
        command = app.get_command(click.Context(app), name)
        assert program == "llmopt"
        assert command is not None
        assert arguments in ((), (name,))
        # Below the program, whose settings count: a command remembers its option for help.
        command.make_context(name, rest, parent=click.Context(app, **app.context_settings))


@pytest.mark.parametrize("arguments", _PAGES, ids=" ".join)
def test_every_option_has_a_help_text(arguments: tuple[str, ...]) -> None:
    """And -h is the same as --help."""
    command: click.Command | None = app.get_command(click.Context(app), arguments[0]) if arguments else app
    assert command is not None
    assert command.help
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, parameter.name
    assert invoke(*arguments, "-h").stdout == invoke(*arguments, "--help").stdout


def test_exit_codes_are_documented() -> None:
    """All are in ``llmopt --help``."""
    page = invoke("--help").stdout
    codes = page.partition("Exit codes:")[2].split("An error is")[0]
    assert [int(line.split()[0]) for line in codes.split("\n") if line.strip()] == [
        int(code) for code in Exit
    ]


def test_llmopt_without_a_command_shows_the_help() -> None:
    assert "Exit codes:" in (invoke().stdout + invoke().stderr)


def test_an_unknown_command_is_a_usage_error() -> None:
    done = invoke("embedd", "x")
    assert done.exit_code == 2
    assert "No such command 'embedd'" in done.stderr


@pytest.mark.row("S04")
@given(st.dictionaries(st.text(), st.text(), max_size=4))
@example({"\x1b\x7f\x9b": "\u202e\u2066\u2028\x85\r"})
def test_json_output_has_no_control_characters(value: dict[str, str]) -> None:
    """A parser reads the same values."""
    for show in (print_json, print_json_line):
        with redirect_stdout(io.StringIO()) as output:
            show(value)
        printed = output.getvalue()
        assert json.loads(printed) == value
        assert not CONTROLS & set(printed)
    assert not CONTROLS & set("".join(map(printable_text, value.values())))


CONTROLS = {
    *(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"),
    *"\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}
