"""Stores in a process that forks while they are open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cache.fork_scenario import MEMORY_FORKS

pytestmark = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="reads /proc/locks of Linux")


def scenario(name: str, folder: Path) -> Any:
    done = subprocess.run(
        # Python 3.12 and later warn of a fork while threads run; these tests do that on purpose.
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
def test_eight_children_use_an_open_store(tmp_path: Path) -> None:
    """Each reads, writes and holds locks of its own; no entry is lost or damaged."""
    result = scenario("many", tmp_path)
    # SQLite holds at least two locks, as in a process that never forked.
    assert [values for values, _ in result["children"]] == [[2, 2]] * 8
    assert min(held for _, held in result["children"]) >= 2
    assert result["parent"][0] == [2, 2]
    assert result["parent"][1] >= 2
    assert (result["integrity"], result["entries"], result["quarantined"]) == ("ok", 2 + 9 * 600, 0)


@pytest.mark.row("C09")
def test_the_parent_writes_the_buffered_entries(tmp_path: Path) -> None:
    """The child writes only its own."""
    result = scenario("unwritten", tmp_path)
    assert result["children"][0][0] == [2, 2]
    assert (result["integrity"], result["entries"]) == ("ok", 5_000 + 600)


@pytest.mark.row("C09")
@pytest.mark.parametrize("name", ["fork_in_c", "busy_worker"])
def test_a_child_with_an_open_connection_has_no_store(name: str, tmp_path: Path) -> None:
    """It does not touch its parent's connection, and the parent goes on."""
    result = scenario(name, tmp_path)
    assert result["children"] == [[[0, 0], 0]]
    assert result["parent"][0] == [2, 2]
    assert (result["integrity"], result["entries"], result["quarantined"]) == ("ok", 2 + 600, 0)


@pytest.mark.row("C09")
def test_a_child_can_use_a_memory_store(tmp_path: Path) -> None:
    """It does not wait for a lock that a thread of the parent held at the fork."""
    assert scenario("memory", tmp_path)["children"] == [1] * MEMORY_FORKS
