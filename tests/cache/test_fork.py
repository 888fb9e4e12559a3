"""The disk store in a process that forks while it is open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="looks at the locks of Linux")


def scenario(name: str, folder: Path) -> Any:
    done = subprocess.run(
        # That threads of the test's own may be running is what the later versions of Python warn of.
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore:This process:DeprecationWarning",
            "-m",
            "tests.cache.fork_scenario",
            name,
            str(folder),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return json.loads(done.stdout)


@pytest.mark.row("C09")
def test_eight_children_of_a_warm_store(tmp_path: Path) -> None:
    """Each reads, writes and holds locks of its own; nothing is lost, nothing is damaged."""
    found = scenario("many", tmp_path)
    # Two of SQLite's at least, as in any process that was never forked.
    assert [values for values, _ in found["children"]] == [[2, 2]] * 8
    assert min(held for _, held in found["children"]) >= 2
    assert found["parent"][0] == [2, 2]
    assert found["parent"][1] >= 2
    assert (found["integrity"], found["entries"], found["aside"]) == ("ok", 2 + 9 * 600, 0)


@pytest.mark.row("C09")
def test_what_was_to_be_written(tmp_path: Path) -> None:
    """The parent writes it; the child goes on with its own."""
    found = scenario("unwritten", tmp_path)
    assert found["children"][0][0] == [2, 2]
    assert (found["integrity"], found["entries"]) == ("ok", 5_000 + 600)


@pytest.mark.row("C09")
@pytest.mark.parametrize("name", ["untold", "stuck"])
def test_a_child_of_an_open_connection_goes_without(name: str, tmp_path: Path) -> None:
    """It touches nothing of its parent's; the parent is not disturbed."""
    found = scenario(name, tmp_path)
    assert found["children"] == [[[0, 0], 0]]
    assert found["parent"][0] == [2, 2]
    assert (found["integrity"], found["entries"], found["aside"]) == ("ok", 2 + 600, 0)


@pytest.mark.row("C09")
def test_a_store_in_memory(tmp_path: Path) -> None:
    """No child waits for a lock that a thread of its parent's held."""
    assert scenario("memory", tmp_path)["children"] == [1] * 20
