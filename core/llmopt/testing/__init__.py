"""For tests of programs that are built on llmopt.

* ``FakeProvider``: a provider without a network for the tests of an application.
* ``installed``: lets clients find a plugin that is not installed.
* ``SimulatedStore``: a store of shared limits in memory, with delay, loss and restarts.
* ``SimulatedClock`` and ``run_simulated``: an hour of waiting runs in a moment.

Every name here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmopt.testing.clock import SimulatedClock as SimulatedClock
    from llmopt.testing.clock import run_simulated as run_simulated
    from llmopt.testing.fake import FakeProvider as FakeProvider
    from llmopt.testing.fake import installed as installed
    from llmopt.testing.shared import SimulatedStore as SimulatedStore
else:
    _MODULES = {
        "FakeProvider": "fake",
        "SimulatedClock": "clock",
        "SimulatedStore": "shared",
        "installed": "fake",
        "run_simulated": "clock",
    }
    __all__ = list(_MODULES)

    def __getattr__(name: str) -> object:
        """Import the module that a name lives in; a name always wins over a module called like it."""
        if name not in _MODULES:
            raise AttributeError(f"module 'llmopt.testing' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(f"llmopt.testing.{_MODULES[name]}"), name)
        globals()[name] = value
        return value
