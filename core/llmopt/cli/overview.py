"""Overviews for ``llmopt plugins`` and ``llmopt doctor``: what is installed, configured and usable, and what is wrong.

It reads the metadata of distributions from disk, imports plugins and calls their cheap hooks; it sends no requests
and opens no transport. The environment is passed in.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, frozen

from llmopt import __version__
from llmopt.client.options import WRAPPER_GROUP, load_wrappers
from llmopt.config.resolve import resolve_endpoints, url_placeholders
from llmopt.config.schema import Config, Flags, ProviderEntry
from llmopt.errors import LLMOptError, PluginContractError
from llmopt.hookspecs import PROJECT
from llmopt.providers.discovery import (
    FALLBACK_GROUP,
    PROVIDER_NAME,
    InstalledPlugin,
    group_by_name,
    how_to_install,
    installed_entry_points,
)
from llmopt.providers.hooks import ProviderHooks
from llmopt.providers.registry import Provider, Registry
from llmopt.values.calls import CatalogCall, EmbedCall, Settings
from llmopt.values.http import Failure, HttpResponse

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint


PluginState = Literal[
    "ok",
    "conflict",
    "does not load",
    "breaks the contract",
    "other version",
    "unusable name",
    "unknown group",
    "not installed",
]


@frozen(kw_only=True)
class PluginOverview:
    """One plugin and the state it is in.

    Attributes:
        name: the provider name.
        distributions: name and version of each distribution that claims the name.
        module: the plugin's module.
        state: "ok", or what is wrong.
        problem: what is wrong, in a sentence; "" if nothing is.
        entries: names of the configured entries that it serves.
        providers: further names that it serves, if it is a general plugin.
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
    """One provider, or why it cannot be used.

    Attributes:
        name: name of the entry.
        plugin: name of the plugin.
        provider: the provider, None if it cannot be created.
        problem: why it cannot be created.
        chosen: whether the user configured it or named it.
    """

    name: str
    plugin: str
    provider: Provider | None = None
    problem: LLMOptError | None = None
    chosen: bool = False


def plugins_overview(config: Config) -> tuple[PluginOverview, ...]:
    """Every installed plugin, and every missing one that a configured entry needs, sorted by name."""
    points, general = installed_entry_points(PROJECT), installed_entry_points(FALLBACK_GROUP)
    entries = _entries_by_plugin(config)
    own = group_by_name(points)
    # One row for each module: a general plugin serves dozens of names.
    modules = _by_module(
        each for each in group_by_name(general, fallback=True).values() if each.name not in own
    )
    plugins = [_plugin_overview(each, modules.pop(_module(each), []), entries) for each in own.values()]
    plugins += [_plugin_overview(first, others, entries) for first, *others in modules.values()]
    plugins += [
        _misnamed(point) for point in (*points, *general) if not PROVIDER_NAME.match(point.name.lower())
    ]
    plugins += _misgrouped()
    entries |= {f"wrapper {name}": ("all",) for name in config.wrappers or ()}
    wrappers = group_by_name(installed_entry_points(WRAPPER_GROUP))
    plugins += [_wrapper(each, entries) for each in wrappers.values()]
    plugins += [_not_installed(name, names) for name, names in entries.items()]
    return tuple(sorted(plugins, key=attrgetter("name")))


def providers_overview(
    config: Config, environ: Mapping[str, str], names: Iterable[str] = ()
) -> tuple[ProviderOverview, ...]:
    """Providers as a client would create them.

    Args:
        config: the configuration.
        environ: the environment variables.
        names: the providers to include. Default: all configured entries, and all installed plugins that could be
            used under their own names.
    """
    registry = Registry(config, (), environ)
    chosen = tuple(dict.fromkeys(names))
    shown = chosen or _all_names(config, registry)
    return tuple(_provider_overview(registry, config, name, bool(chosen)) for name in shown)


def _all_names(config: Config, registry: Registry) -> Sequence[str]:
    served = {entry.plugin_name for entry in config.providers.values()}
    # A general plugin has many names; only those with a key are shown.
    keyed = set(registry.names())
    return [
        *config.providers,
        *(
            name
            for name, plugin in registry.installed.items()
            if name not in {*config.providers, *served} and (name in keyed or not plugin.fallback)
        ),
    ]


def _provider_overview(registry: Registry, config: Config, name: str, chosen: bool) -> ProviderOverview:  # noqa: FBT001 - private
    plugin = config.entry(name).plugin_name
    chosen = chosen or name in config.providers
    try:
        return ProviderOverview(name=name, plugin=plugin, provider=registry.get(name), chosen=chosen)
    except LLMOptError as error:
        return ProviderOverview(name=name, plugin=plugin, problem=error, chosen=chosen)


def _entries_by_plugin(config: Config) -> dict[str, tuple[str, ...]]:
    entries: dict[str, tuple[str, ...]] = {}
    for name, entry in config.providers.items():
        entries[entry.plugin_name] = (*entries.get(entry.plugin_name, ()), name)
    return entries


def _module(plugin: InstalledPlugin) -> str:
    # A name with a conflict is shown by itself, not with the other names of a module.
    return plugin.entry_points[0].value if plugin.conflict is None else f"{plugin.name}: conflict"


def _by_module(plugins: Iterable[InstalledPlugin]) -> dict[str, list[InstalledPlugin]]:
    """General plugins: the names that each module serves."""
    modules: dict[str, list[InstalledPlugin]] = {}
    for plugin in plugins:
        modules.setdefault(_module(plugin), []).append(plugin)
    return modules


def _plugin_overview(
    plugin: InstalledPlugin, others: Sequence[InstalledPlugin], entries: dict[str, tuple[str, ...]]
) -> PluginOverview:
    """One row. Its entries are removed from ``entries``, so that only those of missing plugins remain."""
    state, problem = _state(plugin)
    names = tuple(each.name for each in others)
    points = [(point.name, each.name) for each in (plugin, *others) for point in each.entry_points]
    return PluginOverview(
        name=plugin.name,
        distributions=plugin.distributions,
        module=", ".join(point.value for point in plugin.entry_points),
        state=state,
        problem=problem or _renamed(points),
        entries=tuple(entry for name in (plugin.name, *names) for entry in entries.pop(name, ())),
        providers=names,
    )


def _state(plugin: InstalledPlugin) -> tuple[PluginState, str]:
    if plugin.conflict is not None:
        return "conflict", plugin.conflict.message
    if problem := _unmet_requirement(plugin.entry_points[0]):
        return "other version", problem
    try:
        check_hooks(plugin.name, ProviderHooks(plugin.name, plugin.load()))
    except PluginContractError as error:
        return "breaks the contract", error.message
    except LLMOptError as error:
        return "does not load", error.message
    return "ok", ""


def _unmet_requirement(point: EntryPoint) -> str:
    """The versions of llmopt that a plugin is written for, if the installed one is another; else ""."""
    from packaging.requirements import InvalidRequirement, Requirement

    for text in (point.dist.requires if point.dist is not None else None) or ():
        # pip has checked it at the installation: one that cannot be read was changed by hand, and is skipped.
        with suppress(InvalidRequirement):
            needed = Requirement(text)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            fits = needed.specifier.contains(__version__, prereleases=True)
            if needed.name == PROJECT and applies and not fits:
                return (
                    f"it requires llmopt{needed.specifier}, and llmopt {__version__} is installed; "
                    "install versions of both that fit."
                )
    return ""


def _renamed(points: Iterable[tuple[str, str]]) -> str:
    """What to say about entry points whose names have capitals; "" if there are none."""
    said = ", ".join(f"{name!r} is used as {used!r}" for name, used in points if not used.endswith(name))
    return f"{said}: names of plugins are in lower case; its author should rename it." if said else ""


def _misnamed(point: EntryPoint) -> PluginOverview:
    rule: Final = (
        "a provider's name has lower-case letters, digits, '-' and '_', and starts with a letter or a digit"
    )
    return PluginOverview(
        name=point.name,
        distributions=InstalledPlugin(name=point.name, entry_points=(point,)).distributions,
        module=point.value,
        state="unusable name",
        problem=f"{rule}; its author must rename the entry point.",
    )


def _wrapper(plugin: InstalledPlugin, entries: dict[str, tuple[str, ...]]) -> PluginOverview:
    row = _plugin_overview(evolve(plugin, name=f"wrapper {plugin.name}"), (), entries)
    try:
        load_wrappers([plugin.name])
    except LLMOptError as error:
        state: PluginState = "breaks the contract" if row.state == "ok" else row.state
        return evolve(row, state=state, problem=error.message)
    return row


def _misgrouped() -> list[PluginOverview]:
    """Entry points of a group that nobody reads and that looks like one of llmopt's."""
    points = installed_entry_points()
    groups = {point.group for point in points} - {PROJECT, FALLBACK_GROUP, WRAPPER_GROUP}
    meant = {group: near for group in groups if (near := _meant_group(group))}
    return [
        PluginOverview(
            name=point.name,
            distributions=InstalledPlugin(name=point.name, entry_points=(point,)).distributions,
            module=point.value,
            state="unknown group",
            problem=f"llmopt does not read the entry-point group {point.group!r}; "
            f"if its author means {meant[point.group]!r}, they must rename it.",
        )
        for point in points
        if point.group in meant
    ]


def _meant_group(group: str) -> str:
    if re.fullmatch(rf"{PROJECT}[._-](plugin|provider)s?", group.lower()):
        return PROJECT
    return next(
        iter(get_close_matches(group.lower(), (PROJECT, FALLBACK_GROUP, WRAPPER_GROUP), n=1, cutoff=0.8)), ""
    )


def _not_installed(name: str, entries: tuple[str, ...]) -> PluginOverview:
    problem = f"no plugin {name!r} is installed; {how_to_install(name)}"
    if name.startswith("wrapper "):
        problem = f"no {name} is installed; llmopt plugins lists what is installed"
    return PluginOverview(name=name, state="not installed", problem=problem, entries=entries)


# Check hooks without a network, a key or a model.

_SAMPLE_RESPONSE: Final = HttpResponse(status=200, body=b"{}")
_SAMPLE_FAILURE: Final = Failure(status=500, body=b"{}")
_SAMPLE_URL: Final = "https://provider.example"


def check_hooks(plugin: str, hooks: ProviderHooks) -> None:
    """Call a plugin's cheap hooks and check what they return. Hooks that open or load something are not called.

    Args:
        plugin: name of the plugin.
        hooks: its hooks.

    Raises:
        PluginContractError: a hook returned a wrong value, or raised something else than an error of llmopt.
    """
    settings = _settings(plugin, hooks)
    if settings is None:
        return
    for call_hook in (
        lambda: hooks.batch_limit(EmbedCall(model="model", texts=("text",)), settings),
        lambda: hooks.build_request(CatalogCall(), settings),
        lambda: hooks.request_cost(EmbedCall(model="model", texts=("text",)), settings),
        lambda: hooks.classify_error(_SAMPLE_FAILURE, settings),
        lambda: hooks.rate_limits(_SAMPLE_RESPONSE, settings),
    ):
        try:
            call_hook()
        except PluginContractError:
            raise
        except LLMOptError:
            # A plugin may refuse the sample model or have no list of models.
            continue


def _settings(plugin: str, hooks: ProviderHooks) -> Settings | None:
    """Settings for the call of a hook; None if they need the user's configuration."""
    entry = ProviderEntry(name=plugin)
    profile = hooks.provider_profile(entry)
    try:
        configured = not profile.in_process and (
            profile.base_url is None or bool(url_placeholders(profile.base_url))
        )
        if configured:
            entry = evolve(entry, base_url=_SAMPLE_URL)
        (endpoint,) = resolve_endpoints(entry, profile, client_flags=Flags(), environ={})
    except Exception as error:
        what = error.message if isinstance(error, LLMOptError) else f"{type(error).__name__}: {error}"
        raise PluginContractError(
            f"plugin {plugin!r}: hook provider_profile returned a Profile that cannot be used "
            f"({what.rstrip('.')}); llmopt-conformance says which field it is.",
            provider=plugin,
        ) from error
    return None if configured else endpoint.settings(None)
