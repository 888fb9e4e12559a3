"""The kit under pytest and as a command: the option, the three-line test file, and the cost of loading it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from llmopt_conformance import runner

_PLUGIN = "llmopt_conformance.pytest_plugin"
# An environment that only has the kit on its path has no entry point for it.
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


def run_pytest(folder: Path, *arguments: str, every_plugin: bool = False) -> tuple[int, str]:
    """Run pytest in a folder, in a process of its own.

    Args:
        folder: the current directory of the run.
        arguments: of the command line.
        every_plugin: load all installed pytest plugins, as a user's run does; else the kit's alone, which is faster.

    Returns:
        The exit code, and what the run printed.
    """
    (folder / "pytest.ini").write_text("[pytest]\n")
    load = [*_LOAD, "-p", "no:hypothesispytest"] if every_plugin else ["-p", _PLUGIN]
    environment = {**os.environ, **({} if every_plugin else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *load, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_an_installed_provider_is_checked_by_its_name(tmp_path: Path) -> None:
    """Test files in the folder do not run: the command line does not name them."""
    (tmp_path / "test_other.py").write_text("def test_fails():\n    assert False\n")
    arguments = ("--llmopt-conformance", "mistral", "-v", "-k", "secrets or own-errors")
    code, output = run_pytest(tmp_path, *arguments, every_plugin=True)
    assert code == 0, output
    assert "llmopt/mistral::secrets.key-not-in-url PASSED" in output
    assert "llmopt/mistral::own-errors." in output
    assert "test_other" not in output


def test_a_module_is_checked_by_its_name_and_a_failure_explains_itself(tmp_path: Path) -> None:
    """The report is the check's message, without a traceback through the kit."""
    (tmp_path / "some_plugin.py").write_text(_GOOD + _BAD)
    code, output = run_pytest(tmp_path, "--llmopt-conformance", "some_plugin", "-k", "limits.types")
    assert code == 1
    assert "plugin 'some-plugin' does not conform to limits.types" in output
    assert "hook batch_limit returned int; expected BatchLimit" in output
    assert "expected: batch_limit returns a BatchLimit" in output
    assert "Traceback" not in output
    assert "kit/check.py" not in output


def test_named_test_files_run_as_well(tmp_path: Path) -> None:
    """One run can have the checks of a provider and test files."""
    (tmp_path / "test_other.py").write_text("def test_passes():\n    pass\n")
    arguments = ("--llmopt-conformance", "mistral", "test_other.py", "-v", "-k", "passes or discovery")
    code, output = run_pytest(tmp_path, *arguments)
    assert code == 0, output
    assert "test_other.py::test_passes PASSED" in output
    assert "llmopt/mistral::discovery.loads PASSED" in output


def test_samples_are_given_by_name(tmp_path: Path) -> None:
    """For a provider with a wire format of its own."""
    (tmp_path / "some_plugin.py").write_text(_GOOD)
    (tmp_path / "some_samples.py").write_text(
        "from llmopt_conformance import Samples\nSAMPLES = Samples(without={'chat'})\n"
    )
    arguments = ("--llmopt-conformance", "some_plugin", "--llmopt-samples", "some_samples:SAMPLES")
    code, output = run_pytest(tmp_path, *arguments, "-rs", "-k", "request")
    assert code == 0, output
    assert "the samples say that the provider has no chat" in output


def test_an_unknown_provider_is_a_usage_error(tmp_path: Path) -> None:
    """The message lists the installed providers."""
    code, output = run_pytest(tmp_path, "--llmopt-conformance", "nowhere")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "no provider 'nowhere' is installed (there are" in output


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
    code, output = run_pytest(tmp_path, "-v", "-k", "purity")
    assert code == 0, output
    assert "test_function.py::test_conformance[purity.no-clock] PASSED" in output
    assert "test_class.py::TestSome::test_conformance[purity.no-clock] PASSED" in output


def test_loading_the_pytest_plugin_imports_nothing_of_llmopt() -> None:
    """pytest loads it in every project that has the kit installed."""
    code = (
        f"import sys, pytest\nbefore = set(sys.modules)\nimport {_PLUGIN}\nprint(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"llmopt_conformance", _PLUGIN}


def test_without_pytest_the_kit_is_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command lists the failed checks; it exits with 1 if there are any, 0 if none, 2 for an unknown name."""
    # Some checks are enough: test_our_plugins.py has them all, tests/test_third_party.py in a process of its own.
    some = [check for check in runner.CHECKS if check.id.startswith(("secrets.", "limits."))]
    monkeypatch.setattr(runner, "CHECKS", some)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "some_plugin.py").write_text(_GOOD + _BAD)
    assert runner.main(["some_plugin"]) == 1
    assert "FAILED  plugin 'some-plugin' does not conform to limits.types" in capsys.readouterr().out
    assert runner.main(["mistral"]) == 0
    assert " passed, 0 failed, " in capsys.readouterr().out
    assert runner.main(["nowhere"]) == 2
    assert "no provider 'nowhere'" in capsys.readouterr().err
