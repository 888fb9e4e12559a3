"""The program ``llmopt``: its commands, and how each of them ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

import llmopt
from llmopt.cli.console import Exit, code_of, tell

_COMMANDS: Final = {
    "embed": ("embed", "command"),
    "chat": ("chat", "command"),
    "models": ("models", "command"),
    "plugins": ("doctor", "plugins_command"),
    "cache": ("cache", "command"),
    "doctor": ("doctor", "command"),
}
"""Where each command lives: its file, and its name there."""
_HELP = """Fast, paced and safe requests to any LLM provider.

A model is named PROVIDER/MODEL: local/default is one that runs inside this process, without a key or a
server."""
_EPILOG = """\b
Example:
  llmopt embed notes.txt --model local/default --out notes.npy

\b
Exit codes:
  0    all went well
  1    texts failed, or a provider did
  2    wrong usage, or an input or output that cannot be used
  3    the configuration or a plugin cannot be used
  130  interrupted

Errors are one sentence on standard error; LLMOPT_TRACEBACK=1 shows where they come from."""


class Commands(click.Group):
    """The commands, each imported when it is used; an error of any of them becomes a sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names, in the order in which people need them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """A command by its name."""
        if cmd_name not in _COMMANDS:
            return None
        file, name = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"llmopt.cli.{file}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command, which returns its exit code, and end with it."""
        ctx.exit(_ended(lambda: super(Commands, self).invoke(ctx)))


def _ended(run: Callable[[], Any]) -> int:
    try:
        code = run()
        sys.stdout.flush()
    except (click.ClickException, click.exceptions.Exit):
        raise
    except BrokenPipeError:
        return _leave_pipe()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is, it becomes a sentence
        tell(error)
        return code_of(error)
    return Exit.OK if code is None else int(code)


def _leave_pipe() -> int:
    """The reader of standard output has seen enough, which is its good right."""
    # So that the interpreter's own flush at exit finds something that takes it.
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
            # A name that this terminal cannot show is no reason to fail.
            reconfigure(errors="backslashreplace")
    try:
        app(prog_name="llmopt")
    except SystemExit as end:
        if end.code == Exit.INTERRUPTED:
            _leave_now()
        raise
    except KeyboardInterrupt:
        _leave_now()


def _leave_now() -> None:
    """End at once: an engine inside the process may be in the middle of a batch, and cannot be stopped."""
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(Exit.INTERRUPTED)
