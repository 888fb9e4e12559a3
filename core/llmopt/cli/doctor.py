"""``llmopt doctor`` and ``llmopt plugins``: check configuration, keys, plugins and endpoints.

Both read the configuration and the environment, import the installed plugins and call their cheap hooks, and print.
Unless ``--offline`` is given, `doctor` also asks each endpoint that has its key, or needs none, for the list of
models, and measures that by the monotonic clock; `plugins` never sends a request.
"""

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
from llmopt.cli.console import (
    Exit,
    common_options,
    error_message,
    example,
    print_json,
    print_message,
    print_table,
    printable,
    with_name,
)
from llmopt.cli.overview import PluginOverview, plugins_overview, providers_overview
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

if TYPE_CHECKING:
    from llmopt.cli.overview import ProviderOverview
    from llmopt.config.resolve import Endpoint


_CONNECT_HINTS: Final = {
    "dns": "check the host name in base_url, and this machine's network",
    "refused": "start the server, or correct the port in base_url",
    "tls": "check the server's certificate, ca_file and client_cert in the configuration, this machine's clock, and "
    "whether base_url should begin with http://",
    "timeout": "see whether a firewall or a missing proxy setting is in the way",
    "proxy": "check the proxy in HTTPS_PROXY or ALL_PROXY, or name the host in NO_PROXY",
}
_HINTS: Final[tuple[tuple[type[LLMOptError], str], ...]] = (
    (PermissionDenied, "the key is valid but may not list models; other calls may work"),
    (NotFound, "check the path of base_url; a server without a list of models may work for other calls"),
    (UnexpectedStatus, "check base_url: the server there is not the provider"),
    (InvalidResponse, "check base_url: the server there is not the provider"),
    (QuotaExhausted, "see the billing page of the provider"),
    (RateLimited, "try again later, or lower rpm in the configuration"),
    (DeadlineExceeded, "try again, with a larger --deadline"),
    (AttemptTimeout, "try again, with a larger --deadline"),
    (
        ConnectionLost,
        "try again; if it fails again, see the log of the server or of the proxy in front of it",
    ),
    (Overloaded, "try again later; the provider's status page may say more"),
    (RequestTimeout, "try again later; the provider's status page may say more"),
    (ServerError, "try again later; the provider's status page may say more"),
)


def hint_for(error: LLMOptError, key_source: str) -> str:
    """What to do about an error, without a full stop; "" if nothing is known to help.

    Args:
        error: how the request to the endpoint failed.
        key_source: where its key comes from, in words; "" if there is none.
    """
    if isinstance(error, ConnectFailed):
        return _CONNECT_HINTS.get(error.cause, "check base_url, and this machine's network")
    if isinstance(error, AuthError):
        return f"check the key ({key_source})" if key_source else "set a key: this server requires one"
    return next((advice for kind, advice in _HINTS if isinstance(error, kind)), "")


CheckState = Literal["ok", "no key", "not asked", "failed", "cannot be used"]
_MAX_CONCURRENT_CHECKS: Final = 10


@frozen(kw_only=True)
class Check:
    """The result of checking one endpoint of a provider.

    Attributes:
        name: name of the provider's entry.
        plugin: the plugin that serves it.
        endpoint: position among the endpoints of the entry.
        base_url: where requests go, "" for an engine inside the process.
        key: "present", "missing", "unusable" or "not needed"; "" if that is not known.
        key_source: where the key comes from, in words; "" if there is none.
        state: "ok" if it answered.
        models: number of models that it lists, None if it did not answer.
        latency_ms: time of its answer in milliseconds, None if there was none.
        error: what went wrong, "" for nothing.
        advice: what to do about it.
        chosen: whether it is configured or was named on the command line.
        rated: models or deployments that ``rpm`` and ``tpm`` are set for by name.
        unlisted: those of them that its list of models does not contain.
        operations: what it can be asked for, None if its plugin does not tell.
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
    operations: tuple[str, ...] | None = None

    @property
    def no_list(self) -> bool:
        """Whether the provider has no list of models, which is what an endpoint is asked for."""
        return self.operations is not None and "catalog" not in self.operations


def check_endpoints(
    overviews: Sequence[ProviderOverview], config: Config, *, offline: bool, seconds: float
) -> list[Check]:
    """Check every endpoint of some providers, at most ten at a time.

    Args:
        overviews: the providers.
        config: the configuration they come from.
        offline: check the configuration only, without sending requests.
        seconds: time limit for each.
    """
    checks = [check for each in overviews for check in _offline_checks(each)]
    return checks if offline else asyncio.run(_check_all_online(checks, config, seconds))


def _offline_checks(overview: ProviderOverview) -> list[Check]:
    """What the configuration alone says about each endpoint of a provider."""
    blank = Check(name=overview.name, plugin=overview.plugin, chosen=overview.chosen)
    if overview.provider is None:
        error = overview.problem.message if overview.problem is not None else ""
        return [evolve(blank, state="cannot be used", error=error)]
    return [_of_endpoint(blank, each) for each in overview.provider.endpoints]


def _of_endpoint(blank: Check, endpoint: Endpoint) -> Check:
    operations = None if endpoint.operations is None else tuple(sorted(endpoint.operations))
    check = evolve(
        blank,
        endpoint=endpoint.index,
        base_url=endpoint.base_url,
        rated=_rated(endpoint),
        operations=operations,
    )
    return _with_key(check, endpoint)


def _rated(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*endpoint.rpm.by_name, *endpoint.tpm.by_name)))


def _with_key(check: Check, endpoint: Endpoint) -> Check:
    source, problem = endpoint.credential.origin, endpoint.credential.problem
    none = source.startswith("none")
    if problem:
        check = evolve(check, key="missing" if none else "unusable", state="no key", error=problem)
    else:
        check = evolve(check, key="not needed" if none else "present")
    check = check if source == "none" else evolve(check, key_source=source)
    # A missing key is reported first: without one the entry is not set up.
    return check if problem else _with_certificates(check, endpoint)


def _with_certificates(check: Check, endpoint: Endpoint) -> Check:
    if not (endpoint.ca_file or endpoint.client_cert):
        return check
    from llmopt.transport.tls import tls_context

    try:
        tls_context(endpoint)
    except ConfigError as error:
        return evolve(check, state="cannot be used", error=error.message)
    return check


async def _check_all_online(checks: Sequence[Check], config: Config, seconds: float) -> list[Check]:
    slots = asyncio.Semaphore(_MAX_CONCURRENT_CHECKS)

    async def one(check: Check) -> Check:
        if check.state != "not asked" or check.no_list:
            return check
        async with slots:
            return await _check_online(check, config, seconds)

    return list(await asyncio.gather(*map(one, checks)))


async def _check_online(check: Check, config: Config, seconds: float) -> Check:
    from llmopt.client.async_client import AsyncClient

    # A client for this endpoint alone, so that no other endpoint answers in its place.
    async with AsyncClient(_only_endpoint(config, check), flags={"retry": False, "cache": False}) as client:
        started = time.monotonic()
        try:
            models = await client.list_models(check.name, deadline=seconds)
        except LLMOptError as error:
            hint = hint_for(error, check.key_source)
            return evolve(check, state="failed", error=error.message, advice=hint)
        except Exception as error:  # noqa: BLE001 - an error in a plugin is a result too
            return evolve(check, state="failed", error=error_message(error))
        latency_s = time.monotonic() - started
    listed = {name for model in models for name in (model.id, *model.aliases)}
    unlisted = tuple(name for name in check.rated if name not in listed)
    return evolve(
        check, state="ok", models=len(models), latency_ms=round(latency_s * 1000, 1), unlisted=unlisted
    )


def _only_endpoint(config: Config, check: Check) -> Config:
    entry = config.entry(check.name)
    if entry.endpoints:
        entry = evolve(entry, endpoints=(entry.endpoints[check.endpoint],))
    return evolve(config, providers={**config.providers, check.name: entry})


_PLUGIN_COLUMNS: Final = ("plugin", "distribution", "module", "state", "entries", "providers")


@click.command(
    "plugins",
    short_help="Show which plugins are installed.",
    epilog=example("llmopt plugins", "llmopt plugins --json"),
)
@common_options
def plugins_command(*, config: str | None, as_json: bool, no_color: bool) -> Exit:
    """Show which plugins are installed, and whether they can be used.

    Hooks that need neither network nor key are called. The table shows for each plugin its distribution and
    version, its module, its state, the entries of the configuration that it serves, and how many further
    providers it serves if it is a plugin that serves many providers; on a terminal their names follow below.
    The exit code is 3 if a plugin cannot be used.
    """
    plugins = plugins_overview(load_config(config, environ=os.environ))
    if as_json:
        print_json({"plugins": [asdict(each) for each in plugins]})
    else:
        print_plugins(plugins, no_color=no_color)
    return Exit.SETUP if any(each.state != "ok" for each in plugins) else Exit.OK


def print_plugins(plugins: Sequence[PluginOverview], *, no_color: bool) -> None:
    """Print the table of plugins, and their problems below it."""
    terminal = sys.stdout.isatty()
    print_table(
        _PLUGIN_COLUMNS, [_plugin_row(each, names=not terminal) for each in plugins], no_color=no_color
    )
    for each in plugins if terminal else ():
        if each.providers:
            click.echo(f"{each.name} serves {len(each.providers)} providers:")
            # Hyphens belong to the names, which can then be copied.
            click.echo(fill(", ".join(each.providers), get_terminal_size().columns, break_on_hyphens=False))
    for each in plugins:
        if each.problem:
            print_message(f"llmopt: {with_name(each.name, each.problem)}")
    if not plugins:
        print_message("llmopt: no plugin is installed; try: pip install llmopt-plugin-local")


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


_COLUMNS: Final = ("provider", "plugin", "base URL", "key", "state", "models", "ms")


@frozen(kw_only=True)
class DoctorReport:
    """All results of ``llmopt doctor``.

    Attributes:
        file: the configuration file in use, None for none.
        fault: why the configuration cannot be used, "" if it can be.
        plugins: the plugins.
        checks: the endpoints.
    """

    file: str | None
    fault: str = ""
    plugins: tuple[PluginOverview, ...] = ()
    checks: list[Check] = field(factory=list)

    @property
    def code(self) -> Exit:
        """The exit code. Providers that are neither configured nor named on the command line do not count."""
        chosen = {each.state for each in self.checks if each.chosen}
        broken = any(each.state != "ok" for each in self.plugins)
        if self.fault or broken or chosen & {"no key", "cannot be used"}:
            return Exit.SETUP
        return Exit.FAILED if any(each.state == "failed" for each in self.checks) else Exit.OK


@click.command(
    "doctor",
    short_help="Check the configuration, and which endpoints answer.",
    epilog=example("llmopt doctor", "llmopt doctor local --offline"),
)
@click.argument("providers", nargs=-1, metavar="[PROVIDER]...")
@click.option("--offline", is_flag=True, help="Check the configuration only; send no requests.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Time limit for each endpoint.",
)
@common_options
def command(
    providers: tuple[str, ...],
    *,
    offline: bool,
    deadline: float,
    config: str | None,
    as_json: bool,
    no_color: bool,
) -> Exit:
    """Check the configuration, the plugins and the endpoints, and say what to do about problems.

    Shows the versions, the configuration file in use, the plugins, and for each provider where requests
    go, whether there is a key and where it comes from (never the key itself), and whether it answers.
    Models that rpm or tpm is set for but that no list contains are reported, as their names may be misspelt.
    """
    report = _run_checks(providers, config, offline=offline, seconds=deadline)
    if as_json:
        print_json(_as_json(report))
    else:
        _print_report(report, no_color=no_color)
    return report.code


def _run_checks(
    providers: tuple[str, ...], source: str | None, *, offline: bool, seconds: float
) -> DoctorReport:
    file = source or os.environ.get(CONFIG_PATH) or find_config_file()
    try:
        config, fault = load_config(source, environ=os.environ), ""
    except ConfigError as error:
        config, fault = Config(), error.message
    checks: list[Check] = []
    if not fault:
        # Without the whole configuration, the wrong endpoints would be checked.
        overviews = providers_overview(config, os.environ, providers)
        checks = check_endpoints(overviews, config, offline=offline, seconds=seconds)
    return DoctorReport(file=file, fault=fault, plugins=plugins_overview(config), checks=checks)


def _print_report(report: DoctorReport, *, no_color: bool) -> None:
    click.echo(
        f"llmopt {llmopt.__version__}, Python {platform.python_version()}, {platform.platform(terse=True)}"
    )
    click.echo(f"configuration: {printable(report.file) if report.file else 'no file'}")
    if report.fault:
        print_message(f"llmopt: {report.fault}")
    click.echo()
    print_plugins(report.plugins, no_color=no_color)
    click.echo()
    print_table(_COLUMNS, [_row(each) for each in report.checks], no_color=no_color)
    for each in report.checks:
        if each.error:
            advice = f" To do: {each.advice}." if each.advice else ""
            print_message(
                f"{'llmopt' if each.chosen else 'not set up'}: {with_name(each.name, each.error)}{advice}"
            )
        if each.no_list and each.state == "not asked":
            print_message(
                f"note: {each.name}: the provider has no list of models, so llmopt doctor does not ask it; only a call shows whether it answers."
            )
        if each.unlisted:
            models = ", ".join(each.unlisted)
            print_message(
                f"note: {each.name}: rpm or tpm is set for {models}, which its list of models does not contain; ignore this if it is a deployment."
            )


def _row(check: Check) -> tuple[str, ...]:
    source = f" ({check.key_source})" if check.key_source else ""
    where = check.base_url or ("" if check.state == "cannot be used" else "in this process")
    state = check.state if check.chosen or check.state in ("ok", "not asked", "failed") else "not set up"
    numbers = ("" if each is None else f"{each:g}" for each in (check.models, check.latency_ms))
    return (check.name, check.plugin, where, check.key + source, state, *numbers)


def _as_json(report: DoctorReport) -> dict[str, Any]:
    return {
        "llmopt": llmopt.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "configuration": {"file": report.file, "error": report.fault or None},
        "plugins": [asdict(each) for each in report.plugins],
        "providers": [asdict(each) for each in report.checks],
    }
