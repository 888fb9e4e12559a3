"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final, TypeVar, cast

import click

_F = TypeVar("_F", bound=Callable[..., Any])

config: Final = click.option(
    "--config",
    metavar="FILE",
    help="Configuration file, instead of ./llmopt.toml or the one in your configuration folder.",
)
as_json: Final = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help='One JSON object on standard output, for machines; {"error": ...} where there is nothing else to tell.',
)
no_color: Final = click.option(
    "--no-color", is_flag=True, help="No colours; the variable NO_COLOR does the same."
)


def shared(command: _F) -> _F:
    """The options of every command: --config, --json, --no-color."""
    return config(as_json(no_color(telling_errors(command))))


def telling_errors(command: _F) -> _F:
    """With --json a command that ends in an error says so on standard output too, as its last JSON object."""

    @wraps(command)
    def run(**options: Any) -> Any:
        try:
            return command(**options)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except Exception as error:
            if options["as_json"]:
                from llmopt.cli.jsonout import print_line
                from llmopt.cli.tally import error_table

                print_line({"error": error_table(error)})
            raise

    return cast("_F", run)


def example(*lines: str) -> str:
    """The epilog of a command: an example, shown as it is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
