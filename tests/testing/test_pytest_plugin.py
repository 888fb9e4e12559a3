"""llmopt's own pytest plugin: the fixture, and what it costs those who do not use it."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

_PLUGIN = "llmopt.testing.pytest_plugin"
# A checkout that was installed before there was an entry point has none.
_INSTALLED = {point.value for point in entry_points(group="pytest11")}
_LOAD = [] if _PLUGIN in _INSTALLED else ["-p", _PLUGIN]


def test_the_fixture_gives_a_provider(tmp_path: Path) -> None:
    """Ready for a client, in every project that has llmopt."""
    (tmp_path / "test_app.py").write_text(
        "import llmopt\n"
        "def test_app(llmopt_fake):\n"
        "    with llmopt.Client(llmopt_fake.config, transport=llmopt_fake.transport) as client:\n"
        "        assert client.embed('fake/any', ['one']).vectors.shape == (1, 8)\n"
        "    assert llmopt_fake.texts == ['one']\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run([*command, *_LOAD], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_costs_next_to_nothing() -> None:
    """Loading the pytest plugin imports nothing of llmopt's but itself, and nothing slow."""
    code = (
        f"import sys, pytest\nbefore = set(sys.modules)\nimport {_PLUGIN}\nprint(*set(sys.modules) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"llmopt", "llmopt._exports", "llmopt.testing", _PLUGIN}
    assert "llmopt.testing" in done.stdout.split()
