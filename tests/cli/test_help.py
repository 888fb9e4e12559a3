"""Help: every command has an example, and every example can be typed."""

from __future__ import annotations

import shlex

import click
import pytest

from llmopt.cli.app import _COMMANDS, app
from llmopt.cli.console import Exit
from tests.cli.run import invoke

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
    codes = page.partition("Exit codes:")[2].split("Errors are")[0]
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
