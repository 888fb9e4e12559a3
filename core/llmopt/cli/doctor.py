"""``llmopt doctor``."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from collections.abc import Sequence
from shutil import get_terminal_size
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final, Literal

import click
from attrs import asdict, evolve, field, frozen

import llmopt
from llmopt.cli.console import Exit, example, named, plain, print_json, print_table, say, sentence_of, shared
from llmopt.config.load import CONFIG_PATH, find_config_file, load_config
from llmopt.config.schema import Config
from llmopt.errors import (
    AttemptTimeout,
    AuthError,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    InvalidResponse,
    LLMOptError,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExhausted,
    RateLimited,
    RequestTimeout,
    ServerError,
    UnexpectedStatus,
)
from llmopt.providers.overview import PluginOverview, plugins_overview, providers_overview

if TYPE_CHECKING:
    from llmopt.config.resolve import Endpoint
    from llmopt.providers.overview import ProviderOverview


# What to do about an endpoint that does not answer as it should.

_CAUSES: Final = {
    "dns": "check the host name in base_url, and this machine's network",
    "refused": "start the server, or correct the port in base_url",
    "tls": "check the server's certificate, this machine's clock, and whether base_url should begin with http://",
    "timeout": "see whether a firewall or a missing proxy setting is in the way",
    "proxy": "check the proxy in HTTPS_PROXY, or name the host in NO_PROXY",
}
_KINDS: Final[tuple[tuple[type[LLMOptError], str], ...]] = (
    (PermissionDenied, "the key is valid and may not list models; embedding may work all the same"),
    (NotFound, "check the path of base_url; a server without a list of models may embed all the same"),
    (UnexpectedStatus, "check base_url: something else than the provider answers there"),
    (InvalidResponse, "check base_url: something else than the provider answers there"),
    (QuotaExhausted, "see the billing page of the provider"),
    (RateLimited, "wait a little, or lower rpm in the configuration"),
    (DeadlineExceeded, "try again, with a larger --deadline"),
    (AttemptTimeout, "try again, with a larger --deadline"),
    (ConnectionLost, "try again; if it stays, see the log of the server or of the proxy before it"),
    (Overloaded, "try again later; the provider's status page may say more"),
    (RequestTimeout, "try again later; the provider's status page may say more"),
    (ServerError, "try again later; the provider's status page may say more"),
)


def advice_for(error: LLMOptError, key_source: str) -> str:
    """What to do about an error, in half a sentence; "" where nothing is known to help.

    Args:
        error: what the endpoint answered, or did not.
        key_source: where its key comes from, in words.
    """
    if isinstance(error, ConnectFailed):
        return _CAUSES.get(error.cause, "check base_url, and this machine's network")
    if isinstance(error, AuthError):
        return f"check the key ({key_source})" if key_source else "set a key: this server wants one"
    return next((advice for kind, advice in _KINDS if isinstance(error, kind)), "")


# One endpoint, asked for its list of models to see whether it is there.

CheckState = Literal["ok", "no key", "not asked", "failed", "cannot be used"]
_AT_ONCE: Final = 10


@frozen(kw_only=True)
class Check:
    """What was found out about one endpoint of a provider.

    Attributes:
        name: of the provider's entry.
        plugin: that serves it.
        endpoint: position among the endpoints of the entry.
        base_url: where requests go, "" for an engine inside the process.
        key: "present", "missing", "unusable" or "not needed"; "" where nobody can tell.
        key_source: where the key comes from, in words; "" if there is none.
        state: "ok" when it answered.
        models: number of models that it has, None when it did not say.
        latency_ms: time of its answer, None when there was none.
        error: what went wrong; "" if nothing did.
        advice: what to do about it.
        chosen: whether somebody configured it or asked for it by name.
        rated: models or deployments that ``rpm`` and ``tpm`` are set for by name.
        unlisted: those of them that its list of models does not have.
    """

    name: str
    plugin: str
    endpoint: int = 0
    base_url: str = ""
    key: str = ""
    key_source: str = ""
    state: CheckState = "not asked"
    models: int | None = None
    latency_ms: float | None = None
    error: str = ""
    advice: str = ""
    chosen: bool = False
    rated: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def check_all(
    found: Sequence[ProviderOverview], config: Config, *, offline: bool, seconds: float
) -> list[Check]:
    """Look at every endpoint of these providers, at most ten asked at once.

    Args:
        found: the providers.
        config: the configuration they come from.
        offline: whether none is asked.
        seconds: time for each.
    """
    known = [check for each in found for check in _known(each)]
    return known if offline else asyncio.run(_ask_all(known, config, seconds))


def _known(found: ProviderOverview) -> list[Check]:
    """What is known of a provider without asking anybody, for each endpoint."""
    blank = Check(name=found.name, plugin=found.plugin, chosen=found.chosen)
    if found.provider is None:
        error = found.problem.message if found.problem is not None else ""
        return [evolve(blank, state="cannot be used", error=error)]
    return [
        _with_key(evolve(blank, endpoint=each.index, base_url=each.base_url, rated=_rated(each)), each)
        for each in found.provider.endpoints
    ]


def _rated(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*endpoint.rpm.by_name, *endpoint.tpm.by_name)))


def _with_key(check: Check, endpoint: Endpoint) -> Check:
    source, problem = endpoint.credential.describe(), endpoint.credential.problem
    none = source.startswith("none")
    if problem:
        check = evolve(check, key="missing" if none else "unusable", state="no key", error=problem)
    else:
        check = evolve(check, key="not needed" if none else "present")
    return check if source == "none" else evolve(check, key_source=source)


async def _ask_all(known: Sequence[Check], config: Config, seconds: float) -> list[Check]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(check: Check) -> Check:
        if check.state != "not asked":
            return check
        async with room:
            return await _ask(check, config, seconds)

    return list(await asyncio.gather(*map(one, known)))


async def _ask(check: Check, config: Config, seconds: float) -> Check:
    from llmopt.client.async_client import AsyncClient

    # A client of its own, that knows this endpoint alone and asks it once.
    async with AsyncClient(_alone(config, check), flags={"retry": False, "cache": False}) as client:
        started = time.monotonic()
        try:
            models = await client.list_models(check.name, deadline=seconds)
        except LLMOptError as error:
            advice = advice_for(error, check.key_source)
            return evolve(check, state="failed", error=error.message, advice=advice)
        except Exception as error:  # noqa: BLE001 - a plugin's fault is a finding as well
            return evolve(check, state="failed", error=sentence_of(error))
        passed = time.monotonic() - started
    listed = {name for model in models for name in (model.id, *model.aliases)}
    unlisted = tuple(name for name in check.rated if name not in listed)
    return evolve(
        check, state="ok", models=len(models), latency_ms=round(passed * 1000, 1), unlisted=unlisted
    )


def _alone(config: Config, check: Check) -> Config:
    entry = config.entry(check.name)
    if entry.endpoints:
        entry = evolve(entry, endpoints=(entry.endpoints[check.endpoint],))
    return evolve(config, providers={**config.providers, check.name: entry})


# ``llmopt plugins``.

_PLUGIN_COLUMNS: Final = ("plugin", "distribution", "module", "state", "entries", "providers")


@click.command(
    "plugins",
    short_help="Show which plugins are installed.",
    epilog=example("llmopt plugins", "llmopt plugins --json"),
)
@shared
def plugins_command(*, config: str | None, as_json: bool, no_color: bool) -> Exit:
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
        show_plugins(found, no_color=no_color)
    return Exit.SETUP if any(each.state != "ok" for each in found) else Exit.OK


def show_plugins(found: Sequence[PluginOverview], *, no_color: bool) -> None:
    """The table, and what is wrong below it."""
    terminal = sys.stdout.isatty()
    print_table(_PLUGIN_COLUMNS, [_plugin_row(each, names=not terminal) for each in found], no_color=no_color)
    for each in found if terminal else ():
        if each.providers:
            click.echo(f"{each.name} serves {len(each.providers)} providers:")
            click.echo(fill(", ".join(each.providers), get_terminal_size().columns, break_on_hyphens=False))
    for each in found:
        if each.problem:
            say(f"llmopt: {named(each.name, each.problem)}")
    if not found:
        say("llmopt: no plugin is installed; try: pip install llmopt-plugin-local")


def _plugin_row(plugin: PluginOverview, *, names: bool) -> tuple[str, ...]:
    count = str(len(plugin.providers)) if plugin.providers else ""
    return (
        plugin.name,
        ", ".join(plugin.distributions),
        plugin.module,
        plugin.state,
        ", ".join(plugin.entries),
        ", ".join(plugin.providers) if names else count,
    )


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
    file = source or os.environ.get(CONFIG_PATH) or find_config_file()
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
