"""Conformance tests for llmopt provider plugins.

::

    import llmopt_plugin_acme
    from llmopt_conformance import conformance

    test_conformance = conformance(llmopt_plugin_acme)

Each check is a test of its own and runs offline, without a key. `Samples` describes how a provider's
answers differ from the common dialect. From a shell: ``pytest --llmopt-conformance NAME``, or
``python -m llmopt_conformance NAME``.

`shared_state` makes the tests of a store of shared limits, in the same way.

Every name here is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmopt.testing.dialect import SampleChat as SampleChat
    from llmopt.testing.dialect import SampleError as SampleError
    from llmopt.testing.dialect import SamplePage as SamplePage
    from llmopt.testing.dialect import SampleRows as SampleRows
    from llmopt.testing.dialect import Samples as Samples
    from llmopt_conformance.runner import Conformance as Conformance
    from llmopt_conformance.runner import conformance as conformance
    from llmopt_conformance.shared_store import StoreServer as StoreServer
    from llmopt_conformance.shared_store import shared_state as shared_state
else:
    _MODULES = {
        "Conformance": "llmopt_conformance.runner",
        "SampleChat": "llmopt.testing.dialect",
        "SampleError": "llmopt.testing.dialect",
        "SamplePage": "llmopt.testing.dialect",
        "SampleRows": "llmopt.testing.dialect",
        "Samples": "llmopt.testing.dialect",
        "StoreServer": "llmopt_conformance.shared_store",
        "conformance": "llmopt_conformance.runner",
        "shared_state": "llmopt_conformance.shared_store",
    }
    __all__ = list(_MODULES)

    def __getattr__(name: str) -> object:
        """Import the module that a name lives in."""
        if name not in _MODULES:
            raise AttributeError(f"module 'llmopt_conformance' has no attribute {name!r}")
        from importlib import import_module

        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value
