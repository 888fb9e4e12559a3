"""A plugin author's whole test file.

::

    import llmopt_plugin_acme
    from llmopt.testing import conformance
    test_conformance = conformance(llmopt_plugin_acme)

Each check is a test with a name of its own. It all runs offline, without a key.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, ClassVar

import pytest

from llmopt.testing.kit.catalog import checks_for
from llmopt.testing.kit.check import Check, CheckFailed, NotApplicable
from llmopt.testing.kit.subject import Subject
from llmopt.testing.samples import Samples


def conformance(plugin: object, *, name: str = "", samples: Samples | None = None) -> Callable[..., None]:
    """A test that pytest runs once for each check of the kit.

    Args:
        plugin: the plugin's module, its name, or any object with its hooks.
        name: the provider's name; by default the key of the entry point, else what follows
            ``llmopt_plugin_`` in the module's name.
        samples: how to ask and answer it, where its provider differs from the common dialect.
    """
    found = import_module(plugin) if isinstance(plugin, str) else plugin
    subject = Subject(found, name=name, samples=samples)
    checks = checks_for(subject)

    @pytest.mark.parametrize("check", checks, ids=[check.id for check in checks])
    def test_conformance(check: Check) -> None:
        """The plugin conforms."""
        run(check, subject)

    return test_conformance


class Conformance:
    """The same as a class.

    ::

        class TestAcme(Conformance):
            plugin = llmopt_plugin_acme
    """

    plugin: ClassVar[object]
    provider: ClassVar[str] = ""
    samples: ClassVar[Samples] = Samples()

    def __init_subclass__(cls, **values: Any) -> None:
        super().__init_subclass__(**values)
        if "plugin" in vars(cls):
            test = conformance(cls.plugin, name=cls.provider, samples=cls.samples)
            cls.test_conformance = staticmethod(test)  # type: ignore[attr-defined] # made for each subclass


def run(check: Check, subject: Subject) -> None:
    """Run one check as a test: a failure shows the check's own words and no traceback."""
    __tracebackhide__ = True
    try:
        check.run(subject)
    except CheckFailed as error:
        failed = str(error)
    except NotApplicable as reason:
        pytest.skip(str(reason))
    else:
        return
    pytest.fail(failed, pytrace=False)
