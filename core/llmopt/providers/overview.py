"""What is installed and what is configured, looked at without changing or asking anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from attrs import frozen

from llmopt.config.resolve import resolve_endpoints
from llmopt.config.schema import Config, Flags, ProviderEntry
from llmopt.errors import ConfigError, LLMOptError, PluginContractError
from llmopt.providers.discovery import PROVIDER_NAME, InstalledPlugin, group_by_name, plugin_entry_points
from llmopt.providers.hooks import ProviderHooks
from llmopt.providers.registry import Provider, Registry
from llmopt.values.calls import CatalogCall, EmbedCall, Settings
from llmopt.values.http import Failure, HttpResponse

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint


# A plugin's hooks, asked what they can answer without a network, a key or a model.

_ANSWER: Final = HttpResponse(status=200, body=b"{}")
_FAILURE: Final = Failure(status=500, body=b"{}")


def try_hooks(plugin: str, hooks: ProviderHooks) -> None:
    """See that cheap hooks return what they should. What opens, starts or loads something is not asked.

    Args:
        plugin: its name.
        hooks: of that plugin.

    Raises:
        PluginContractError: one returned something else, or raised what is no error of llmopt's.
    """
    settings = _settings(plugin, hooks)
    if settings is None:
        return
    for ask in (
        lambda: hooks.batch_limit(EmbedCall(model="model", texts=("text",)), settings),
        lambda: hooks.build_request(CatalogCall(), settings),
        lambda: hooks.classify_error(_FAILURE, settings),
        lambda: hooks.rate_limits(_ANSWER, settings),
    ):
        try:
            ask()
        except PluginContractError:
            raise
        except LLMOptError:
            # There may be no such model, or no such list: that is an answer, too.
            continue


def _settings(plugin: str, hooks: ProviderHooks) -> Settings | None:
    """What hooks are given; None where only a user's configuration could tell it."""
    entry = ProviderEntry(name=plugin)
    profile = hooks.provider_profile(entry)
    try:
        (endpoint,) = resolve_endpoints(entry, profile, client_flags=Flags(), environ={})
    except ConfigError:
        return None
    except Exception as error:
        raise PluginContractError(
            f"plugin {plugin!r}: hook provider_profile returned a Profile that cannot be used "
            f"({type(error).__name__}: {error}); llmopt-conformance tells which field it is.",
            provider=plugin,
        ) from error
    return endpoint.settings(None)


PluginState = Literal[
    "ok", "conflict", "does not load", "breaks the contract", "unusable name", "not installed"
]


@frozen(kw_only=True)
class PluginOverview:
    """One plugin's name, and what claims it.

    Attributes:
        name: the provider name.
        distributions: name and version of each distribution that claims it.
        module: where the plugin is.
        state: "ok", or what is wrong with it.
        problem: what is wrong, in a sentence; "" if nothing is.
        entries: names of the configured entries that it serves.
        providers: further names that it serves, where it is a general plugin; a plugin of a name's own
            comes before it.
    """

    name: str
    distributions: tuple[str, ...] = ()
    module: str = ""
    state: PluginState = "ok"
    problem: str = ""
    entries: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()


@frozen(kw_only=True)
class ProviderOverview:
    """One provider: as it would be asked, or why it cannot be.

    Attributes:
        name: name of the entry.
        plugin: name of the plugin.
        provider: ready to be asked, None when it cannot be made.
        problem: why it cannot be made.
        chosen: whether somebody configured it or asked for it by name.
    """

    name: str
    plugin: str
    provider: Provider | None = None
    problem: LLMOptError | None = None
    chosen: bool = False


def plugins_overview(config: Config) -> tuple[PluginOverview, ...]:
    """Every plugin that is installed, and every one that an entry of the configuration needs."""
    points, general = plugin_entry_points()
    users = _users(config)
    own = group_by_name(points)
    modules = _by_module(
        each for each in group_by_name(general, fallback=True).values() if each.name not in own
    )
    found = [_overview(each, modules.pop(_module(each), []), users) for each in own.values()]
    found += [_overview(first, others, users) for first, *others in modules.values()]
    found += [
        _misnamed(point) for point in (*points, *general) if not PROVIDER_NAME.match(point.name.lower())
    ]
    found += [_missing(name, entries) for name, entries in users.items()]
    return tuple(sorted(found, key=_by_name))


def providers_overview(
    config: Config, environ: Mapping[str, str], names: Iterable[str] = ()
) -> tuple[ProviderOverview, ...]:
    """Providers as they would be asked.

    Args:
        config: the configuration.
        environ: the environment variables.
        names: the ones to look at; without any all configured entries, and all installed plugins
            that could be used under their own names.
    """
    registry = Registry(config, (), environ)
    chosen = tuple(dict.fromkeys(names))
    shown = chosen or _all_names(config, registry)
    return tuple(_look(registry, config, name, bool(chosen)) for name in shown)


def _all_names(config: Config, registry: Registry) -> Sequence[str]:
    served = {entry.plugin_name for entry in config.providers.values()}
    # Of a general plugin's many names only those that somebody has a key for.
    keyed = set(registry.names())
    return [
        *config.providers,
        *(
            name
            for name, plugin in registry.installed.items()
            if name not in {*config.providers, *served} and (name in keyed or not plugin.fallback)
        ),
    ]


def _look(registry: Registry, config: Config, name: str, chosen: bool) -> ProviderOverview:  # noqa: FBT001 - private
    plugin = config.entry(name).plugin_name
    chosen = chosen or name in config.providers
    try:
        return ProviderOverview(name=name, plugin=plugin, provider=registry.get(name), chosen=chosen)
    except LLMOptError as error:
        return ProviderOverview(name=name, plugin=plugin, problem=error, chosen=chosen)


def _users(config: Config) -> dict[str, tuple[str, ...]]:
    users: dict[str, tuple[str, ...]] = {}
    for name, entry in config.providers.items():
        users[entry.plugin_name] = (*users.get(entry.plugin_name, ()), name)
    return users


def _module(plugin: InstalledPlugin) -> str:
    # Where several claim a name, each stands for itself.
    return plugin.entry_points[0].value if plugin.conflict is None else f"{plugin.name}: conflict"


def _by_module(plugins: Iterable[InstalledPlugin]) -> dict[str, list[InstalledPlugin]]:
    """The names of general plugins, by the module that serves them."""
    found: dict[str, list[InstalledPlugin]] = {}
    for plugin in plugins:
        found.setdefault(_module(plugin), []).append(plugin)
    return found


def _overview(
    plugin: InstalledPlugin, others: Sequence[InstalledPlugin], users: dict[str, tuple[str, ...]]
) -> PluginOverview:
    state, problem = _state(plugin)
    names = tuple(each.name for each in others)
    return PluginOverview(
        name=plugin.name,
        distributions=plugin.distributions,
        module=", ".join(point.value for point in plugin.entry_points),
        state=state,
        problem=problem,
        entries=tuple(entry for name in (plugin.name, *names) for entry in users.pop(name, ())),
        providers=names,
    )


def _state(plugin: InstalledPlugin) -> tuple[PluginState, str]:
    if plugin.conflict is not None:
        return "conflict", plugin.conflict.message
    try:
        try_hooks(plugin.name, ProviderHooks(plugin.name, plugin.load()))
    except PluginContractError as error:
        return "breaks the contract", error.message
    except LLMOptError as error:
        return "does not load", error.message
    return "ok", ""


def _misnamed(point: EntryPoint) -> PluginOverview:
    rule: Final = (
        "a provider's name has small letters, digits, '-' and '_', and begins with none of those two"
    )
    return PluginOverview(
        name=point.name,
        distributions=InstalledPlugin(name=point.name, entry_points=(point,)).distributions,
        module=point.value,
        state="unusable name",
        problem=f"{rule}; its author must rename the entry point.",
    )


def _missing(name: str, entries: tuple[str, ...]) -> PluginOverview:
    return PluginOverview(
        name=name,
        state="not installed",
        problem=f"no plugin {name!r} is installed; try: pip install llmopt-plugin-{name}",
        entries=entries,
    )


def _by_name(plugin: PluginOverview) -> str:
    return plugin.name
