"""The pytest plugin of llmopt: its fixture, and the cost of loading it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

_PLUGIN = "llmopt.testing.pytest_plugin"
# An environment where llmopt is only on the path has no entry point for it.
_INSTALLED = {point.value for point in entry_points(group="pytest11")}
# Importing these would take most of the time of the run.
_NOT_NEEDED = ("cacheprovider", "hypothesispytest", "asyncio", "anyio", "respx", "xdist", "xdist.looponfail")
_LOAD = [] if _PLUGIN in _INSTALLED else ["-p", _PLUGIN]


def test_the_fixture_gives_a_provider(tmp_path: Path) -> None:
    (tmp_path / "test_app.py").write_text(
        "import llmopt\n"
        "def test_app(llmopt_fake):\n"
        "    with llmopt.Client(llmopt_fake.config, transport=llmopt_fake.transport) as client:\n"
        "        assert client.embed('fake/any', ['one']).vectors.shape == (1, 8)\n"
        "    assert llmopt_fake.texts == ['one']\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", *(f"-pno:{name}" for name in _NOT_NEEDED)]
    done = subprocess.run([*command, *_LOAD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_loading_the_plugin_imports_nothing_slow() -> None:
    """Of llmopt only the plugin itself and the packages that it is in."""
    code = (
        f"import sys, pytest\nbefore = set(sys.modules)\nimport {_PLUGIN}\nprint(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"llmopt", "llmopt.testing", _PLUGIN}
    assert "llmopt.testing" in done.stdout.split()
