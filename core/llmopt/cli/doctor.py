"""``llmopt doctor``."""

from __future__ import annotations

import os
import platform
from typing import Any, Final

import click
from attrs import asdict, field, frozen

import llmopt
from llmopt.cli.checkup import Check, check_all
from llmopt.cli.exits import Exit
from llmopt.cli.jsonout import print_json
from llmopt.cli.options import example, shared
from llmopt.cli.plugins import show as show_plugins
from llmopt.cli.table import print_table
from llmopt.cli.tell import named, say
from llmopt.cli.text import plain
from llmopt.config.environment import CONFIG_PATH
from llmopt.config.load import discover, load_config
from llmopt.config.tree import Config
from llmopt.errors import ConfigError
from llmopt.providers.overview import PluginOverview, plugins_overview, providers_overview

_COLUMNS: Final = ("provider", "plugin", "where", "key", "state", "models", "ms")


@frozen(kw_only=True)
class Findings:
    """All that the doctor found.

    Attributes:
        file: the configuration file in use, None for none.
        fault: why the configuration cannot be used, "" if it can.
        plugins: the plugins.
        checks: the endpoints.
    """

    file: str | None
    fault: str = ""
    plugins: tuple[PluginOverview, ...] = ()
    checks: list[Check] = field(factory=list)

    @property
    def code(self) -> Exit:
        """Providers that nobody configured or named do not count."""
        chosen = {each.state for each in self.checks if each.chosen}
        broken = any(each.state != "ok" for each in self.plugins)
        if self.fault or broken or chosen & {"no key", "cannot be used"}:
            return Exit.SETUP
        return Exit.FAILED if any(each.state == "failed" for each in self.checks) else Exit.OK


@click.command(
    "doctor",
    short_help="See what is set up, and what answers.",
    epilog=example("llmopt doctor", "llmopt doctor local --offline"),
)
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@click.option("--offline", is_flag=True, help="Ask no provider; look at the configuration alone.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time for each provider's answer.",
)
@shared
def command(
    providers: tuple[str, ...],
    *,
    offline: bool,
    deadline: float,
    config: str | None,
    as_json: bool,
    no_color: bool,
) -> Exit:
    """See what is set up, what answers, and what to do where it does not.

    Shows the versions, the configuration file in use, the plugins, and for each provider where requests
    go, whether there is a key and where it comes from (never the key itself), and whether it answers.
    Names that rpm and tpm are set for and that no list of models has are told, as they may be misspelt.
    """
    found = _examine(providers, config, offline=offline, seconds=deadline)
    if as_json:
        print_json(_table(found))
    else:
        _show(found, no_color=no_color)
    return found.code


def _examine(providers: tuple[str, ...], source: str | None, *, offline: bool, seconds: float) -> Findings:
    file = source or os.environ.get(CONFIG_PATH) or discover()
    try:
        config, fault = load_config(source, environ=os.environ), ""
    except ConfigError as error:
        config, fault = Config(), error.message
    checks: list[Check] = []
    if not fault:
        # With half a configuration the providers would be others than the ones that are meant.
        found = providers_overview(config, os.environ, providers)
        checks = check_all(found, config, offline=offline, seconds=seconds)
    return Findings(file=file, fault=fault, plugins=plugins_overview(config), checks=checks)


def _show(found: Findings, *, no_color: bool) -> None:
    click.echo(
        f"llmopt {llmopt.__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    click.echo(f"configuration: {plain(found.file) if found.file else 'no file'}")
    if found.fault:
        say(f"llmopt: {found.fault}")
    click.echo()
    show_plugins(found.plugins, no_color=no_color)
    click.echo()
    print_table(_COLUMNS, [_row(each) for each in found.checks], no_color=no_color)
    for each in found.checks:
        if each.error:
            advice = f" To do: {each.advice}." if each.advice else ""
            say(f"{'llmopt' if each.chosen else 'not set up'}: {named(each.name, each.error)}{advice}")
        if each.unlisted:
            models = ", ".join(each.unlisted)
            say(
                f"note: {each.name}: rpm or tpm is set for {models}: no such model is listed; a deployment may be."
            )


def _row(check: Check) -> tuple[str, ...]:
    source = f" ({check.key_source})" if check.key_source else ""
    where = check.base_url or ("" if check.state == "cannot be used" else "in this process")
    state = check.state if check.chosen or check.state in ("ok", "not asked", "failed") else "not set up"
    numbers = ("" if each is None else f"{each:g}" for each in (check.models, check.latency_ms))
    return (check.name, check.plugin, where, check.key + source, state, *numbers)


def _table(found: Findings) -> dict[str, Any]:
    return {
        "llmopt": llmopt.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "configuration": {"file": found.file, "error": found.fault or None},
        "plugins": [asdict(each) for each in found.plugins],
        "providers": [asdict(each) for each in found.checks],
    }
