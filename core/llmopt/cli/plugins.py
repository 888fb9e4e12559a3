"""``llmopt plugins``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from shutil import get_terminal_size
from textwrap import fill
from typing import Final

import click
from attrs import asdict

from llmopt.cli.exits import Exit
from llmopt.cli.jsonout import print_json
from llmopt.cli.options import example, shared
from llmopt.cli.table import print_table
from llmopt.cli.tell import named, say
from llmopt.config.load import load_config
from llmopt.providers.overview import PluginOverview, plugins_overview

_COLUMNS: Final = ("plugin", "distribution", "module", "state", "entries", "providers")


@click.command(
    "plugins",
    short_help="Show which plugins are installed.",
    epilog=example("llmopt plugins", "llmopt plugins --json"),
)
@shared
def command(*, config: str | None, as_json: bool, no_color: bool) -> Exit:
    """Show which plugins are installed, and whether they can be used.

    Hooks that need neither a network nor a key are tried. For each plugin its distribution and version, its
    module, its state, the entries of the configuration that it serves, and the further providers that a
    general plugin serves: on a terminal their number, with their names below the table. The exit code is 3
    if there is one that cannot be used.
    """
    found = plugins_overview(load_config(config, environ=os.environ))
    if as_json:
        print_json({"plugins": [asdict(each) for each in found]})
    else:
        show(found, no_color=no_color)
    return Exit.SETUP if any(each.state != "ok" for each in found) else Exit.OK


def show(found: Sequence[PluginOverview], *, no_color: bool) -> None:
    """The table, and what is wrong below it."""
    terminal = sys.stdout.isatty()
    print_table(_COLUMNS, [_row(each, names=not terminal) for each in found], no_color=no_color)
    for each in found if terminal else ():
        if each.providers:
            click.echo(f"{each.name} serves {len(each.providers)} providers:")
            click.echo(fill(", ".join(each.providers), get_terminal_size().columns, break_on_hyphens=False))
    for each in found:
        if each.problem:
            say(f"llmopt: {named(each.name, each.problem)}")
    if not found:
        say("llmopt: no plugin is installed; try: pip install llmopt-plugin-local")


def _row(plugin: PluginOverview, *, names: bool) -> tuple[str, ...]:
    count = str(len(plugin.providers)) if plugin.providers else ""
    return (
        plugin.name,
        ", ".join(plugin.distributions),
        plugin.module,
        plugin.state,
        ", ".join(plugin.entries),
        ", ".join(plugin.providers) if names else count,
    )
