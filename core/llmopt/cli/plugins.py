"""``llmopt plugins``."""

from __future__ import annotations

import os
from collections.abc import Sequence
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

_COLUMNS: Final = ("plugin", "distribution", "module", "state", "entries")


@click.command(
    "plugins",
    short_help="Show which plugins are installed.",
    epilog=example("llmopt plugins", "llmopt plugins --json"),
)
@shared
def command(*, config: str | None, as_json: bool, no_color: bool) -> Exit:
    """Show which plugins are installed, and whether they can be used.

    For each its distribution and version, its module, its state, and the entries of the configuration
    that it serves. The exit code is 3 if there is one that cannot be used.
    """
    found = plugins_overview(load_config(config, environ=os.environ))
    if as_json:
        print_json({"plugins": [asdict(each) for each in found]})
    else:
        show(found, no_color=no_color)
    return Exit.SETUP if any(each.state != "ok" for each in found) else Exit.OK


def show(found: Sequence[PluginOverview], *, no_color: bool) -> None:
    """The table, and what is wrong below it."""
    print_table(_COLUMNS, [_row(each) for each in found], no_color=no_color)
    for each in found:
        if each.problem:
            say(f"llmopt: {named(each.name, each.problem)}")
    if not found:
        say("llmopt: no plugin is installed; try: pip install llmopt-plugin-local")


def _row(plugin: PluginOverview) -> tuple[str, ...]:
    return (
        plugin.name,
        ", ".join(plugin.distributions),
        plugin.module,
        plugin.state,
        ", ".join(plugin.entries),
    )
