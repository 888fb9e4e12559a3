"""Where a plugin's code is, and what it is called."""

from __future__ import annotations

import inspect
import sys
import sysconfig
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from llmopt.markers import PROJECT
from llmopt.providers.discovery import claims

if TYPE_CHECKING:
    from importlib_metadata import EntryPoint

_PREFIX: Final = f"{PROJECT}_plugin_"
CORE: Final = str(Path(__file__).parents[2])
"""The folder of the core."""
STANDARD: Final = sysconfig.get_path("stdlib")
"""The folder of the standard library."""


class Sources:
    """The files and the metadata of a plugin.

    Args:
        plugin: its module, or any object with its hooks.
    """

    def __init__(self, plugin: object) -> None:
        self._plugin: Final = plugin

    @cached_property
    def module_name(self) -> str:
        """Name of the module, or of the object's class."""
        plugin = self._plugin
        return plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__qualname__

    @cached_property
    def provider_name(self) -> str:
        """Key of the entry point, else what follows ``llmopt_plugin_`` in the module's name."""
        if self.entry_point is not None:
            return self.entry_point.name
        return self.module_name.rpartition(".")[2].removeprefix(_PREFIX).replace("_", "-").lower()

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """All Python files: of the package, or the module's one, or where the hooks are written."""
        if not isinstance(self._plugin, ModuleType):
            return self._files_of_hooks()
        path = getattr(self._plugin, "__file__", None)
        if path is None:
            return ()
        if hasattr(self._plugin, "__path__"):
            return tuple(sorted(Path(path).parent.rglob("*.py")))
        return (Path(path),)

    def _files_of_hooks(self) -> tuple[Path, ...]:
        found = (inspect.unwrap(value) for _, value in inspect.getmembers(self._plugin, callable))
        codes = (getattr(value, "__code__", None) for value in found)
        return tuple(sorted({Path(code.co_filename) for code in codes if code is not None}))

    @cached_property
    def folder(self) -> Path | None:
        """Folder of the package, None for a single file."""
        if isinstance(self._plugin, ModuleType) and hasattr(self._plugin, "__path__") and self.files:
            return Path(str(self._plugin.__file__)).parent
        return None

    def owns(self, filename: str) -> bool:
        """Whether code of this file is the plugin's."""
        if self.folder is not None and filename.startswith(f"{self.folder}/"):
            return True
        return filename in {str(path) for path in self.files}

    def shown(self, filename: str) -> str:
        """A file's name as its author knows it."""
        root = self.folder.parent if self.folder is not None else Path(filename).parent
        return filename.removeprefix(f"{root}/")

    @cached_property
    def entry_point(self) -> EntryPoint | None:
        """The entry point that names the module, None when it is not installed."""
        if not isinstance(self._plugin, ModuleType):
            return None
        own, shared = claims()
        found = [point for point in (*own, *shared) if point.module == self.module_name]
        return found[0] if found else None

    @property
    def distribution(self) -> Any:
        """The installed distribution, None when there is none; its class depends on importlib-metadata's version."""
        return None if self.entry_point is None else self.entry_point.dist


def is_standard(filename: str) -> bool:
    """Whether a file is of the standard library, or of no file at all."""
    if filename.startswith("<"):
        return True
    return filename.startswith(f"{STANDARD}/") and "site-packages" not in filename


def third_party(module: str) -> bool:
    """Whether a module is neither of the standard library nor of the core."""
    return module.partition(".")[0] not in {*sys.stdlib_module_names, PROJECT}
