"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

config: Final = click.option(
    "--config",
    metavar="FILE",
    help="Configuration file, instead of ./llmopt.toml or the one in your configuration folder.",
)
as_json: Final = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, for machines."
)
no_color: Final = click.option(
    "--no-color", is_flag=True, help="No colours; the variable NO_COLOR does the same."
)


def shared(command: _F) -> _F:
    """The options of every command: --config, --json, --no-color."""
    return config(as_json(no_color(command)))


def example(*lines: str) -> str:
    """The epilog of a command: an example, shown as it is typed."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
