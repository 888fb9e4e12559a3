"""The conformance kit finds each planted fault, and its message names the fault."""

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
# Each fault meets its own check in every run, and all other checks at night.
AMONG_ALL = FAULTS[:: scaled(6, nightly=1)]

_LONG = (
    "errors.altered",
    "catalog.altered",
    "embeddings.altered",
    "chat.altered",
    "stream.altered",
    "import.",
)
"""Checks that take long; asked only where a fault is theirs."""


def failures(module: ModuleType, wanted: str = "") -> dict[str, str]:
    """Every check that fails, and what it says; with ``wanted``, of the long ones only that."""
    subject = Subject(module)
    found: dict[str, str] = {}
    for check in CHECKS:
        if wanted and check.id.startswith(_LONG) and check.id != wanted:
            continue
        try:
            check.run(subject)
        except CheckFailed as error:
            found[check.id] = str(error)
        except NotApplicable:
            pass
    return found


def test_the_plugin_without_a_fault_conforms(tmp_path: Path) -> None:
    """Otherwise the others would prove nothing."""
    with plugin(tmp_path, source_of(None)) as module:
        found = failures(module)
    # A package that is put down in a folder has no py.typed; that is all there is to say.
    assert set(found) == {"package.typed"}


def test_there_are_ten_faults_and_more() -> None:
    """Each stands here once."""
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names) >= 10


@pytest.mark.row("G03", "G04")
@pytest.mark.parametrize("fault", AMONG_ALL, ids=[fault.name.replace(" ", "-") for fault in AMONG_ALL])
def test_a_planted_fault_fails_the_kit_by_name(fault: Fault, tmp_path: Path) -> None:
    """The check that it belongs to fails, and its message says what is wrong and what was expected."""
    with plugin(tmp_path, source_of(fault)) as module:
        found = failures(module, fault.check)
    assert fault.check in found, found
    message = found[fault.check]
    assert re.search(fault.says, " ".join(message.split())), message
    assert f"does not conform to {fault.check}" in message
    assert "expected: " in message


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name.replace(" ", "-") for fault in FAULTS])
def test_a_check_finds_its_fault_alone(fault: Fault, tmp_path: Path) -> None:
    """As with ``pytest -k``: no check relies on another that ran before it."""
    (check,) = [each for each in CHECKS if each.id == fault.check]
    with plugin(tmp_path, source_of(fault)) as module, pytest.raises(CheckFailed) as caught:
        check.run(Subject(module))
    assert re.search(fault.says, " ".join(str(caught.value).split())), str(caught.value)


@pytest.mark.parametrize("name", ["a dictionary instead of a Profile", "a hook that is misspelled"])
def test_what_everything_rests_on_is_reported_once(name: str, tmp_path: Path) -> None:
    """Not by every check that could not even begin."""
    (fault,) = [each for each in FAULTS if each.name == name]
    with plugin(tmp_path, source_of(fault)) as module:
        found = failures(module, fault.check)
    assert set(found) - {"package.typed"} <= {fault.check, "discovery.loads", "discovery.parameters"}
