"""The command line program ``llmopt``: its commands, their exit codes, and how errors are reported.

It imports each command when it is used, and all of them for the help. It writes to standard output and standard error,
which it sets to escape what they cannot print; a standard output that its reader closed is replaced by the null device.
Errors are printed with a traceback if LLMOPT_TRACEBACK is set, and click reads the variable of its shell completion;
files and requests are the commands' own. After an interrupt it ends the process at once, without waiting for threads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

import llmopt
from llmopt.cli.console import Exit, exit_code_for, print_error

_COMMANDS: Final = {
    "embed": ("embed", "command"),
    "chat": ("chat", "command"),
    "models": ("models", "command"),
    "plugins": ("doctor", "plugins_command"),
    "cache": ("cache", "command"),
    "doctor": ("doctor", "command"),
}
"""The module and name of each command. Modules are imported when their command is used."""
_HELP = """Fast, rate-limited and reliable requests to any LLM provider.

A model is written PROVIDER/MODEL: local/default is one that runs inside this process, without a key or a
server."""
_EPILOG = """\b
Example:
  llmopt embed notes.txt --model local/default --out notes.npy

\b
Exit codes:
  0    success
  1    a text or a provider failed
  2    wrong usage, or an input or output that cannot be used
  3    the configuration or a plugin cannot be used
  130  interrupted

An error is one sentence on standard error; LLMOPT_TRACEBACK=1 adds the traceback."""


class Commands(click.Group):
    """The commands, each imported when it is used. An error in any of them is printed as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import a command by its name."""
        if cmd_name not in _COMMANDS:
            return None
        file, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"llmopt.cli.{file}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command and exit with the code that it returns."""
        ctx.exit(_exit_code(lambda: super(Commands, self).invoke(ctx)))


def _exit_code(run: Callable[[], Any]) -> int:
    try:
        code = run()
        sys.stdout.flush()
    except (click.ClickException, click.exceptions.Exit):
        raise
    except BrokenPipeError:
        return _close_broken_pipe()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - every error is printed as a sentence
        print_error(error)
        return exit_code_for(error)
    return Exit.OK if code is None else int(code)


def _close_broken_pipe() -> int:
    """Treat a closed pipe as success: the reader of standard output, such as ``head``, needs no more."""
    # The interpreter flushes standard output at exit, which would fail on the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return Exit.OK


@click.group(
    cls=Commands, help=_HELP, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.version_option(llmopt.__version__, prog_name="llmopt", message="%(prog)s %(version)s")
def app() -> None:
    """The program."""


def main() -> None:
    """The entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            # A terminal that cannot print a character gets an escape instead of an exception.
            reconfigure(errors="backslashreplace")
    try:
        app(prog_name="llmopt")
    except SystemExit as end:
        if end.code == Exit.INTERRUPTED:
            _exit_immediately()
        raise
    except KeyboardInterrupt:
        _exit_immediately()


def _exit_immediately() -> None:
    """Exit without waiting for threads: an in-process engine may be computing a batch, and cannot be stopped."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(Exit.INTERRUPTED)
