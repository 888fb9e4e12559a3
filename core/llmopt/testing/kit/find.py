"""A plugin by the name it is installed under, or by its module's."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec

from llmopt.errors import UnknownProvider
from llmopt.providers.discovery import InstalledPlugin, discover
from llmopt.testing.kit.subject import Subject
from llmopt.testing.samples import Samples


def subject_named(name: str, samples: str = "") -> Subject:
    """The plugin to hold against the kit.

    Args:
        name: an installed provider's name, or a module's.
        samples: "module:name" of the `Samples` for it, "" for none.

    Raises:
        PluginError: it is installed and does not load.
        UnknownProvider: there is neither.
    """
    found = discover()
    if name in found:
        return Subject(found[name].load(), name=name, samples=_samples(samples))
    if not name.isidentifier() and not all(part.isidentifier() for part in name.split(".")):
        raise _unknown(name, found)
    if find_spec(name.partition(".")[0]) is None:
        raise _unknown(name, found)
    return Subject(import_module(name), samples=_samples(samples))


def _samples(place: str) -> Samples | None:
    if not place:
        return None
    module, _, name = place.partition(":")
    found = getattr(import_module(module), name or "SAMPLES")
    if not isinstance(found, Samples):
        raise TypeError(f"{place} is a {type(found).__name__}, not a llmopt.testing.Samples")
    return found


def _unknown(name: str, installed: Mapping[str, InstalledPlugin]) -> UnknownProvider:
    # A general plugin's many names are counted.
    have = [each.name for each in installed.values() if not each.shared]
    more = len(installed) - len(have)
    listed = ", ".join([*have, *([f"{more} more, which llmopt plugins lists"] if more else [])])
    return UnknownProvider(
        f"no provider {name!r} is installed (there are {listed or 'none'}), and no module is called that."
    )
