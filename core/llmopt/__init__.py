"""llmopt: embeddings, chats and model lists from any LLM provider, with batching, rate limits, retries and a cache.

>>> import llmopt
>>> with llmopt.Client() as client:
...     client.embed("local/default", ["a text", "another"]).vectors.shape
(2, 256)

Each name is imported when it is first used, so that ``import llmopt`` is fast. Type checkers read the names in
``__init__.pyi`` and not here; importing llmopt reads that file to find the module of each.
"""

from __future__ import annotations

import os

__version__ = "0.1.0"


def _modules() -> dict[str, str]:
    """The module of each public name, from the lines ``from <module> import <name> as <name>`` of the stub."""
    # Through the loader, so that it works in a zip file too.
    stub = __spec__.loader.get_data(f"{__path__[0]}{os.sep}__init__.pyi").decode()
    lines = (line.split() for line in stub.splitlines() if line.startswith("from "))
    # A name of llmopt itself is a submodule.
    return {name: f"llmopt.{name}" if module == "llmopt" else module for _, module, _, name, *_ in lines}


_MODULES = _modules()
__all__ = [*_MODULES, "__version__"]  # noqa: PLE0604 - the names come from a table


def __getattr__(name: str) -> object:
    """Import the module of a public name, and cache the value."""
    if name not in _MODULES:
        raise AttributeError(f"module 'llmopt' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_MODULES[name])
    value = getattr(module, name, module)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
