"""The kit imports public names of llmopt only, and its import observer reports every module."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import llmopt
import llmopt.testing
import llmopt_conformance
from llmopt_conformance.observe import import_in_fresh_interpreter

KIT = Path(llmopt_conformance.__file__).parent
TESTING = Path(llmopt.testing.__file__).parent
PUBLIC = ("llmopt.errors", "llmopt.values", "llmopt.testing", "llmopt.compatible")
"""Modules of llmopt that a conformance kit may name, besides the public names of ``llmopt`` itself."""


def imports_of(path: Path) -> set[tuple[str, str]]:
    """Module and name of each import in a file, inside functions too."""
    names: set[tuple[str, str]] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {(node.module or "", alias.name) for alias in node.names}
    return names


@pytest.mark.parametrize("path", sorted(KIT.rglob("*.py")), ids=lambda path: path.stem)
def test_the_kit_imports_public_names_only(path: Path) -> None:
    """They are in ``llmopt``, its errors, values and dialect, and the facade for kits in ``llmopt.testing``."""
    for module, name in imports_of(path):
        if module == "llmopt":
            assert name == "" or name in dir(llmopt)
        elif module.startswith("llmopt."):
            assert any(module == each or module.startswith(f"{each}.") for each in PUBLIC), (module, name)
            assert not name.startswith("_"), (module, name)


@pytest.mark.parametrize("path", sorted(TESTING.rglob("*.py")), ids=lambda path: path.stem)
def test_llmopt_testing_never_imports_the_kit(path: Path) -> None:
    """An application that uses FakeProvider does not need the kit."""
    assert not {module for module, _ in imports_of(path) if module.startswith("llmopt_conformance")}


def test_the_observer_loads_nothing_heavy_before_the_plugin() -> None:
    """A module that is loaded beforehand would not be counted as imported by the plugin."""
    code = (
        "import sys, json; from llmopt_conformance import observe; observe.import_public_modules(); "
        "print(json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    packages = {name.partition(".")[0] for name in loaded}
    assert not packages & {"asyncio", "concurrent", "http", "multiprocessing", "sqlite3", "unittest"}
    assert not packages & {"cattrs", "click", "httptools", "httpx", "numpy", "rich", "stamina", "structlog"}
    core = ("llmopt.transport", "llmopt.engine", "llmopt.client", "llmopt.operations", "llmopt.providers")
    assert not [name for name in loaded if name.startswith((*core, "llmopt.testing"))]


def test_the_observer_reports_what_an_import_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other packages, slow modules of the standard library, and private modules of the core."""
    (tmp_path / "kit_heavy_plugin.py").write_text("import asyncio, click\nimport llmopt.engine.request\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = import_in_fresh_interpreter("kit_heavy_plugin", [str(tmp_path / "kit_heavy_plugin.py")])
    assert {"asyncio", "click", "llmopt.engine.request", "kit_heavy_plugin"} <= set(report["modules"])
