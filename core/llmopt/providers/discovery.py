"""Find installed plugins by their entry points, without importing them.

It reads the metadata of installed distributions from disk, again when a folder of ``sys.path`` or an import hook has
changed since. `InstalledPlugin.load` alone imports a plugin, which runs the plugin's code; if that fails, the
traceback's source files are read for the message.
`how_to_install` reads llmopt's own ``packages.toml``, for error messages. All of it is synchronous and runs on the
caller's thread, which may be that of an event loop. No network, no environment, no clock.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from llmopt.errors import PluginConflict, PluginLoadError
from llmopt.hookspecs import PROJECT
from llmopt.values.redaction import place_of

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

PROVIDER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")
"""The form of a provider's name."""
FALLBACK_GROUP: Final = f"{PROJECT}.fallback"
"""Entry-point group of general plugins: a plugin of one provider's own name takes precedence over them."""


@frozen(kw_only=True)
class InstalledPlugin:
    """The plugin of one provider name.

    Attributes:
        name: the provider's name, in lower case.
        entry_points: the entry points that claim the name; more than one is a conflict.
        fallback: whether a general plugin serves this name among others.
    """

    name: str
    entry_points: tuple[EntryPoint, ...] = field(repr=False)
    fallback: bool = False

    @property
    def conflict(self) -> PluginConflict | None:
        """The error if more than one distribution claims the name, else None."""
        if len(self.entry_points) == 1:
            return None
        claims = " and ".join(sorted(self.distributions))
        return PluginConflict(
            f"provider {self.name!r} is claimed by {claims}; uninstall all but one of them.",
            provider=self.name,
        )

    @cached_property
    def distributions(self) -> tuple[str, ...]:
        """Name and version of each distribution that claims the name. They are read from files, which takes long, and kept."""
        return tuple(_distribution(point) for point in self.entry_points)

    @property
    def _import_system(self) -> tuple[str, ...]:
        """The files of an import's frames that are not the plugin's."""
        load = type(self.entry_points[0]).load
        return (__file__, "<frozen importlib", importlib.__file__, load.__code__.co_filename)

    def load(self) -> object:
        """Import the plugin's module.

        Raises:
            PluginConflict: several distributions claim the name.
            PluginLoadError: the import failed.
        """
        if (conflict := self.conflict) is not None:
            raise conflict
        try:
            return self.entry_points[0].load()
        except (Exception, SystemExit) as error:
            # A module may raise anything, SystemExit too. It must not stop the others.
            raise PluginLoadError(
                f"the plugin of provider {self.name!r} ({self.entry_points[0].value}) cannot be imported: "
                f"{type(error).__name__}: {error}{place_of(error, self._import_system)}",
                provider=self.name,
            ) from error


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def discover_plugins() -> Mapping[str, InstalledPlugin]:
    """All installed plugins by provider name, in lower case.

    Where a plugin of a provider's own and a general plugin serve one name, the general one is left out.
    """
    return _metadata().plugins


def installed_entry_points(group: str | None = None) -> Sequence[EntryPoint]:
    """The entry points of all installed distributions, or those of one group."""
    return [each for each in _metadata().points if group is None or each.group == group]


@frozen(eq=False)
class _Metadata:
    """What the installed distributions say, at one state of ``sys.path`` and of the import hooks."""

    points: tuple[EntryPoint, ...]
    # Kept, because no later import hook can then have the id of one of them.
    import_hooks: tuple[object, ...]

    @cached_property
    def plugins(self) -> Mapping[str, InstalledPlugin]:
        own, general = (
            [each for each in self.points if each.group == group] for group in (PROJECT, FALLBACK_GROUP)
        )
        # The later one wins: a plugin of the provider's own knows more about it than a general one.
        plugins = {**group_by_name(general, fallback=True), **group_by_name(own)}
        return MappingProxyType({name: plugins[name] for name in sorted(plugins)})


def _metadata() -> _Metadata:
    folders = tuple((folder, _changed(folder)) for folder in sys.path)
    return _read_metadata((folders, tuple(map(id, sys.meta_path))))


@lru_cache(maxsize=1)
def _read_metadata(_import_state: tuple[object, ...]) -> _Metadata:
    """Read it, and keep it for the next client: with 90 distributions it takes 12 ms of CPU time."""
    from importlib_metadata import entry_points

    return _Metadata(tuple(entry_points()), tuple(sys.meta_path))


def _changed(folder: str) -> int:
    """When something was last installed in a folder or removed from it; 0 if there is no such folder."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0


def group_by_name(points: Iterable[EntryPoint], *, fallback: bool = False) -> Mapping[str, InstalledPlugin]:
    """Group entry points by provider name, sorted. Names of a wrong form are left out."""
    by_name: dict[str, list[EntryPoint]] = {}
    for point in points:
        # Lower case, so that "OpenAI" and "openai" are a conflict and not two providers.
        by_name.setdefault(point.name.lower(), []).append(point)
    return {
        name: InstalledPlugin(name=name, entry_points=tuple(by_name[name]), fallback=fallback)
        for name in sorted(by_name)
        if PROVIDER_NAME.match(name)
    }


def how_to_install(plugin: str, similar: Iterable[str] = ()) -> str:
    """What to do about a plugin that is not installed, as the end of a sentence.

    A package is named only if it is one of ours: a guessed one may not exist, or may be a stranger's.

    Args:
        plugin: name of the plugin.
        similar: names that can be used already and may be meant.
    """
    name = plugin.removeprefix("llmopt-plugin-")
    # Read at an error only.
    packages = tomllib.loads(Path(__file__).with_name("packages.toml").read_text("utf-8"))
    package_of = {each: package for package, names in packages.items() for each in names}
    near = get_close_matches(name, similar, n=1)
    if name in package_of:
        advice = f"try: pip install {package_of[name]}"
    elif not near and (known := get_close_matches(name, package_of, n=1)):
        advice = f"if you mean {known[0]!r}, try: pip install {package_of[known[0]]}"
    else:
        advice = "llmopt plugins lists what is installed, and docs/plugins.md describes how to add a provider"
    return f"did you mean {near[0]!r}? If not, {advice}" if near else advice
