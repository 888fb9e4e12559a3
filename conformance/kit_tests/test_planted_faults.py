"""The conformance kit reports each fault of the planted plugins, in words that name the fault."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest

from kit_tests import chat_faults, faults
from kit_tests.planted import Fault, plugin, source_of
from llmopt_conformance.runner import CHECKS
from llmopt_conformance.subject import CheckFailed, NotApplicable, Subject
from tests.support.scale import scaled

FAULTS = (*faults.FAULTS, *chat_faults.FAULTS)
# In every run each fault meets its own check; only at night does each meet all other checks too.
AMONG_ALL = FAULTS[:: scaled(24, nightly=1)]

SLOW_CHECKS = (
    "errors.altered",
    "catalog.altered",
    "embeddings.altered",
    "chat.altered",
    "stream.altered",
    "import.",
)
"""These run only against the faults that they have to find."""


def failures(module: ModuleType, wanted: str = "") -> dict[str, str]:
    """Messages of the failed checks by their ids; with ``wanted``, the other slow checks do not run."""
    subject = Subject(module)
    messages: dict[str, str] = {}
    for check in CHECKS:
        if wanted and check.id.startswith(SLOW_CHECKS) and check.id != wanted:
            continue
        try:
            check.run(subject)
        except CheckFailed as error:
            messages[check.id] = str(error)
        except NotApplicable:
            pass
    return messages


def test_the_plugin_without_a_fault_conforms(tmp_path: Path) -> None:
    """Without this the tests of the faults would prove nothing."""
    with plugin(tmp_path, source_of(None)) as module:
        messages = failures(module)
    # The package that the test writes has no py.typed.
    assert set(messages) == {"package.typed"}


def test_there_are_at_least_ten_faults_with_unique_names() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 10


@pytest.mark.row("G03", "G04")
@pytest.mark.parametrize("fault", AMONG_ALL, ids=[fault.name.replace(" ", "-") for fault in AMONG_ALL])
def test_a_planted_fault_fails_the_kit_by_name(fault: Fault, tmp_path: Path) -> None:
    """The fault's check fails, and its message says what is wrong and what was expected."""
    with plugin(tmp_path, source_of(fault)) as module:
        messages = failures(module, fault.check)
    assert fault.check in messages, messages
    message = messages[fault.check]
    assert re.search(fault.says, " ".join(message.split())), message
    assert f"does not conform to {fault.check}" in message
    assert "expected: " in message


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_check_finds_its_fault_without_the_other_checks(fault: Fault, tmp_path: Path) -> None:
    """No check relies on one that ran before it, so ``pytest -k`` works."""
    (check,) = [each for each in CHECKS if each.id == fault.check]
    with plugin(tmp_path, source_of(fault)) as module, pytest.raises(CheckFailed) as caught:
        check.run(Subject(module))
    assert re.search(fault.says, " ".join(str(caught.value).split())), str(caught.value)


@pytest.mark.parametrize("name", ["a dictionary instead of a Profile", "a hook that is misspelled"])
def test_a_plugin_that_does_not_load_is_reported_once(name: str, tmp_path: Path) -> None:
    """Checks that need a loaded plugin are skipped, not failed."""
    (fault,) = [each for each in FAULTS if each.name == name]
    with plugin(tmp_path, source_of(fault)) as module:
        messages = failures(module, fault.check)
    assert set(messages) - {"package.typed"} <= {fault.check, "discovery.loads", "discovery.parameters"}
