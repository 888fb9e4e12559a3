"""The kit under pytest and as a command: the option, the three-line test file, and what loading it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

_PLUGIN = "llmopt_conformance.pytest_plugin"
# An environment where the kit is only on the path has no entry point for it.
_INSTALLED = {point.value for point in entry_points(group="pytest11")}
_LOAD = [] if _PLUGIN in _INSTALLED else ["-p", _PLUGIN]
_GOOD = """
from llmopt import BatchLimit, Profile, hookimpl

@hookimpl
def provider_profile() -> Profile:
    return Profile(base_url="https://api.some.example/v1", key_env=("SOME_API_KEY",))
"""
_BAD = """
@hookimpl
def batch_limit() -> BatchLimit:
    return 7
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run pytest in a folder, in a process of its own."""
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:hypothesispytest",
            *_LOAD,
            *arguments,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_installed_provider_is_checked_by_its_name(tmp_path: Path) -> None:
    """Test files in the folder are left alone: nobody named them."""
    (tmp_path / "test_other.py").write_text("def test_fails():\n    assert False\n")
    code, told = run(tmp_path, "--llmopt-conformance", "mistral", "-v", "-k", "secrets or own-errors")
    assert code == 0, told
    assert "llmopt/mistral::secrets.key-not-in-url PASSED" in told
    assert "llmopt/mistral::own-errors." in told
    assert "test_other" not in told


def test_a_module_is_checked_by_its_name_and_failures_speak(tmp_path: Path) -> None:
    """The check's own words, and no traceback through the kit."""
    (tmp_path / "some_plugin.py").write_text(_GOOD + _BAD)
    code, told = run(tmp_path, "--llmopt-conformance", "some_plugin", "-k", "limits.types")
    assert code == 1
    assert "plugin 'some-plugin' does not conform to limits.types" in told
    assert "hook batch_limit returned int; expected BatchLimit" in told
    assert "expected: batch_limit returns a BatchLimit" in told
    assert "Traceback" not in told
    assert "kit/check.py" not in told


def test_named_test_files_run_as_well(tmp_path: Path) -> None:
    """Both can be asked for."""
    (tmp_path / "test_other.py").write_text("def test_passes():\n    pass\n")
    code, told = run(
        tmp_path, "--llmopt-conformance", "mistral", "test_other.py", "-q", "-k", "passes or discovery"
    )
    assert code == 0, told
    assert "test_other.py::test_passes" in run(tmp_path, "--co", "-q", "test_other.py")[1]


def test_samples_are_given_by_name(tmp_path: Path) -> None:
    """For a provider with a format of its own."""
    (tmp_path / "some_plugin.py").write_text(_GOOD)
    (tmp_path / "some_samples.py").write_text(
        "from llmopt_conformance import Samples\nSAMPLES = Samples(without={'chat'})\n"
    )
    arguments = ("--llmopt-conformance", "some_plugin", "--llmopt-samples", "some_samples:SAMPLES")
    code, told = run(tmp_path, *arguments, "-rs", "-k", "request")
    assert code == 0, told
    assert "the samples say that the provider has no chat" in told


def test_an_unknown_provider_is_a_usage_error(tmp_path: Path) -> None:
    """It says what there is."""
    code, told = run(tmp_path, "--llmopt-conformance", "nowhere")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "no provider 'nowhere' is installed (there are" in told


def test_three_lines_are_a_test_file(tmp_path: Path) -> None:
    """As a function, and as a class."""
    (tmp_path / "some_plugin.py").write_text(_GOOD)
    (tmp_path / "test_function.py").write_text(
        "import some_plugin\nfrom llmopt_conformance import conformance\ntest_conformance = conformance(some_plugin)\n"
    )
    (tmp_path / "test_class.py").write_text(
        "import some_plugin\nfrom llmopt_conformance import Conformance\n"
        "class TestSome(Conformance):\n    plugin = some_plugin\n"
    )
    code, told = run(tmp_path, "-v", "-k", "purity")
    assert code == 0, told
    assert "test_function.py::test_conformance[purity.no-clock] PASSED" in told
    assert "test_class.py::TestSome::test_conformance[purity.no-clock] PASSED" in told


def test_loading_it_imports_next_to_nothing() -> None:
    """pytest loads the plugin in every project that has the kit: it imports nothing of llmopt but itself."""
    code = (
        f"import sys, pytest\nbefore = set(sys.modules)\nimport {_PLUGIN}\nprint(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"llmopt_conformance", _PLUGIN}


def test_without_pytest_the_kit_is_a_command(tmp_path: Path) -> None:
    """It lists what fails, and its exit code says whether anything did."""
    (tmp_path / "some_plugin.py").write_text(_GOOD + _BAD)
    command = [sys.executable, "-m", "llmopt_conformance"]
    bad = subprocess.run([*command, "some_plugin"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert bad.returncode == 1
    assert "FAILED  plugin 'some-plugin' does not conform to limits.types" in bad.stdout
    good = subprocess.run([*command, "mistral"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert good.returncode == 0, good.stdout
    assert " passed, 0 failed, " in good.stdout
    none = subprocess.run([*command, "nowhere"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert none.returncode == 2
    assert "no provider 'nowhere'" in none.stderr
