"""For tests of programs and of plugins that are built on llmopt.

* ``conformance(plugin)`` and ``Conformance``: everything that a plugin must be, as tests; ``Samples``
  says what is special about one. From a shell: ``pytest --llmopt-conformance NAME``, or
  ``python -m llmopt.testing NAME``.
* ``FakeProvider``: a provider without a network for the tests of an application.
* ``installed``: lets clients find a plugin that is not installed.
* ``SimulatedClock`` and ``run_simulated``: an hour of waiting runs in a moment.

Every name here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmopt.testing.clock import SimulatedClock as SimulatedClock
    from llmopt.testing.clock import run_simulated as run_simulated
    from llmopt.testing.conform import Conformance as Conformance
    from llmopt.testing.conform import conformance as conformance
    from llmopt.testing.fake import FakeProvider as FakeProvider
    from llmopt.testing.pretend import installed as installed
    from llmopt.testing.samples import SampleChat as SampleChat
    from llmopt.testing.samples import SampleError as SampleError
    from llmopt.testing.samples import SamplePage as SamplePage
    from llmopt.testing.samples import SampleRows as SampleRows
    from llmopt.testing.samples import Samples as Samples
else:
    _MODULES = {
        "Conformance": "conform",
        "FakeProvider": "fake",
        "SampleChat": "samples",
        "SampleError": "samples",
        "SamplePage": "samples",
        "SampleRows": "samples",
        "Samples": "samples",
        "SimulatedClock": "clock",
        "conformance": "conform",
        "installed": "pretend",
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
