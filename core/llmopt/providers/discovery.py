"""Which plugins are installed, from entry-point metadata alone: nothing is imported here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

from llmopt.errors import PluginConflict, PluginLoadError
from llmopt.hookspecs import PROJECT

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

PROVIDER_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]*\Z")
"""What a provider may be called."""


FALLBACK_GROUP: Final = f"{PROJECT}.fallback"
"""Group of names that a general plugin serves for as long as no plugin of a name's own is installed."""


@frozen(kw_only=True)
class InstalledPlugin:
    """A provider's name and the entry points that claim it: one, unless there is a conflict.

    Attributes:
        name: the provider's name.
        entry_points: what claims it.
        fallback: whether it is one of many names that a general plugin serves.
    """

    name: str
    entry_points: tuple[EntryPoint, ...] = field(repr=False)
    fallback: bool = False

    @property
    def conflict(self) -> PluginConflict | None:
        """The error to raise when more than one distribution claims the name."""
        if len(self.entry_points) == 1:
            return None
        claims = " and ".join(sorted(self.distributions))
        return PluginConflict(
            f"provider {self.name!r} is claimed by {claims}; uninstall all but one of them.",
            provider=self.name,
        )

    @property
    def distributions(self) -> tuple[str, ...]:
        """Name and version of each distribution that claims the name (read from disk: slow)."""
        return tuple(_distribution(point) for point in self.entry_points)

    def load(self) -> object:
        """Import the plugin's module.

        Raises:
            PluginConflict: several distributions claim the name.
            PluginLoadError: the import failed, in whatever way.
        """
        if (conflict := self.conflict) is not None:
            raise conflict
        try:
            return self.entry_points[0].load()
        except (Exception, SystemExit) as error:
            # A plugin may fail in any way, and takes down only itself.
            raise PluginLoadError(
                f"the plugin of provider {self.name!r} ({self.entry_points[0].value}) did not import: "
                f"{type(error).__name__}: {error}",
                provider=self.name,
            ) from error


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def discover_plugins() -> Mapping[str, InstalledPlugin]:
    """All installed plugins by provider name. Names are compared without regard to case.

    A name of a general plugin's is left out where a plugin of that name is installed.
    """
    own, shared = plugin_entry_points()
    found = {**group_by_name(shared, fallback=True), **group_by_name(own)}
    return {name: found[name] for name in sorted(found)}


def plugin_entry_points() -> tuple[Sequence[EntryPoint], Sequence[EntryPoint]]:
    """The entry points of plugins of one name, and those of general plugins."""
    from importlib_metadata import entry_points

    # One look at all the metadata there is, which is what takes the time.
    points = tuple(entry_points())
    return [each for each in points if each.group == PROJECT], [
        each for each in points if each.group == FALLBACK_GROUP
    ]


def group_by_name(points: Iterable[EntryPoint], *, fallback: bool = False) -> Mapping[str, InstalledPlugin]:
    """Put entry points together by provider name, in the order of the names."""
    found: dict[str, list[EntryPoint]] = {}
    for point in points:
        found.setdefault(point.name.lower(), []).append(point)
    return {
        name: InstalledPlugin(name=name, entry_points=tuple(found[name]), fallback=fallback)
        for name in sorted(found)
        if PROVIDER_NAME.match(name)
    }
