"""Files that lie in a plugin's package."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from llmopt.errors import PluginContractError


def package_data(package: str, file: str) -> bytes:
    """A file of a package, through what imported the package: a folder, a zip or whatever it came from.

    The one way for a plugin to read a file, when it is first needed: hooks themselves touch none.

    Args:
        package: the plugin's package.
        file: name of the file within it.

    Raises:
        PluginContractError: there is no such package, or it cannot be read.
    """
    spec = find_spec(package)
    loader: Any = None if spec is None else spec.loader
    if spec is None or not spec.submodule_search_locations or not hasattr(loader, "get_data"):
        raise PluginContractError(f"{package}: no package that {file} could be in.")
    path = f"{next(iter(spec.submodule_search_locations))}{os.sep}{file}"
    try:
        return bytes(loader.get_data(path))
    except OSError as error:
        raise PluginContractError(f"{package}/{file} cannot be read: {type(error).__name__}.") from None
