"""The pytest option ``--llmopt-conformance NAME``.

A wall: pytest imports this file in every run of every project that has llmopt-conformance installed, so it
imports nothing of llmopt until the option is given.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from llmopt_conformance.subject import Check, Subject


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("llmopt")
    group.addoption(
        "--llmopt-conformance",
        action="append",
        default=[],
        metavar="NAME",
        help="hold an installed provider plugin, or a module, against llmopt's conformance kit; may be given "
        "several times. Test files are run as well only when they are named.",
    )
    group.addoption(
        "--llmopt-samples",
        metavar="MODULE:NAME",
        help="the llmopt_conformance.Samples for it, where the provider differs from the common dialect",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave test files alone that nobody named, when the kit was asked for."""
    named = config.args_source is pytest.Config.ArgsSource.ARGS
    return (
        True if config.getoption("llmopt_conformance") and not named and collection_path.is_file() else None
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Add a test for each check of each plugin named, before others choose among the tests."""
    for name in config.getoption("llmopt_conformance"):
        collector = Plugin.from_parent(session, name=name, nodeid=f"llmopt/{name}")
        items.extend(collector.collect())


class Plugin(pytest.Collector):
    """A plugin, as a collection of checks."""

    def collect(self) -> list[pytest.Item]:
        """A test for each check."""
        from llmopt_conformance.runner import checks_for, subject_named

        try:
            subject = subject_named(self.name, self.config.getoption("llmopt_samples") or "")
        except (Exception, SystemExit) as error:
            raise pytest.UsageError(f"--llmopt-conformance {self.name}: {error}") from error
        return [
            CheckItem.from_parent(self, name=check.id, check=check, subject=subject)
            for check in checks_for(subject)
        ]


class CheckItem(pytest.Item):
    """One check of one plugin."""

    def __init__(self, *, check: Check, subject: Subject, **values: Any) -> None:
        super().__init__(**values)
        self._check = check
        self._subject = subject

    def runtest(self) -> None:
        """Run it."""
        from llmopt_conformance.runner import run

        run(self._check, self._subject)

    def reportinfo(self) -> tuple[Path, None, str]:
        """What a failure is called."""
        return self.path, None, f"{self._subject.name}: {self.name}"
