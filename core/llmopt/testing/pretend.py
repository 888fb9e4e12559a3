"""A plugin that is found without being installed, for the length of a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any, Final

from importlib_metadata import Distribution, DistributionFinder

from llmopt.markers import PROJECT

if TYPE_CHECKING:
    from importlib_metadata import SimplePath


class _Pretended(Distribution):
    """A distribution that has nothing but an entry point."""

    def __init__(self, provider: str, module: str) -> None:
        self._files: Final = {
            "METADATA": f"Metadata-Version: 2.1\nName: {self.name_for(provider)}\nVersion: 0\n",
            "entry_points.txt": f"[{PROJECT}]\n{provider} = {module}\n",
        }

    @staticmethod
    def name_for(provider: str) -> str:
        """What the distribution is called."""
        return f"pretended-{provider}"

    def read_text(self, filename: str) -> str | None:
        """A file of the metadata."""
        return self._files.get(filename)

    def locate_file(self, path: Any) -> SimplePath:
        """There are no files."""
        raise FileNotFoundError(path)


class _Finder(MetaPathFinder):
    """Finds one pretended distribution, and no modules."""

    def __init__(self, provider: str, module: str) -> None:
        self._name: Final = _Pretended.name_for(provider)
        self._found: Final = _Pretended(provider, module)

    def find_spec(self, *_: object) -> None:
        """No module comes from here."""

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterator[Distribution]:
        """The one there is, if it is asked for."""
        name = None if context is None else context.name
        if name is None or name.replace("_", "-") == self._name:
            yield self._found


@contextmanager
def installed(provider: str, plugin: object) -> Iterator[None]:
    """Let every client made inside find a plugin as if it were installed.

    Args:
        provider: the provider's name.
        plugin: the plugin's module, or any object with its hooks.
    """
    # An entry point names a module, so the plugin is one under a name of its own.
    module = f"_llmopt_pretended_{provider.replace('-', '_')}_{id(plugin):x}"
    finder = _Finder(provider, module)
    sys.modules[module] = plugin  # type: ignore[assignment] # whatever is there is what an import gives
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.modules.pop(module, None)
