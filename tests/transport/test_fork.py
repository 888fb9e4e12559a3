"""A pool carried across a fork. It must block a release: in httpx, processes get each other's responses here."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from llmopt.transport.pool import ConnectionPool
from tests.support.faults import serving
from tests.transport.fork_scenario import AT_ONCE, CALLS
from tests.transport.helpers import ROOT, count_vectors, echo_server, embed_request

MODES = {"child only": 1, "both": 1, "eight": 8, "thread": 1, "in flight": 1, "multiprocessing": 1}

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def reports(request: pytest.FixtureRequest) -> dict[str, list[dict[str, Any]]]:
    """The reports of every mode on one kind of event loop; the parent's report is the last of its mode."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    command = [sys.executable, "-W", "error", "-m", "tests.transport.fork_scenario", request.param]
    with echo_server() as port:
        done = subprocess.run(
            [*command, str(port), *MODES], cwd=ROOT, capture_output=True, timeout=100, check=False
        )
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {mode: [line for line in lines if line["mode"] == mode] for mode in MODES}


@pytest.mark.row("C09")
@pytest.mark.parametrize("mode", MODES)
def test_parent_and_children_get_their_own_responses(
    mode: str, reports: dict[str, list[dict[str, Any]]]
) -> None:
    """The children start without connections, and the parent keeps all of its own."""
    *children, parent = reports[mode]
    assert [line["wrong"] for line in children] == [0] * MODES[mode]
    assert all(line["created"] == AT_ONCE for line in children)
    assert parent["wrong"] == 0
    # None of the parent's connections was closed by a child: it has made no other.
    assert parent["created"] == AT_ONCE
    assert parent["reused"] >= CALLS


@pytest.mark.row("C09")
def test_a_child_does_not_hold_its_parents_connections_open() -> None:
    """When the parent closes, the server sees the end, however long the child lives."""
    with serving() as thread:
        pool = ConnectionPool()
        # A pipe ends the child, without a sleep.
        hold, release = os.pipe()

        async def use() -> int:
            await pool.send(embed_request(thread.server))
            pid = os.fork()
            if pid == 0:
                os.read(hold, 1)
                os._exit(0)
            await pool.aclose()
            return pid

        pid = asyncio.run(use())
        try:
            thread.run(thread.server.wait_all_closed())
        finally:
            os.write(release, b"x")
            os.waitpid(pid, 0)
            os.close(hold)
            os.close(release)


@pytest.mark.row("C09")
def test_a_fork_past_pythons_hooks_is_noticed_by_the_process_id() -> None:
    """At the next request."""
    with serving() as thread:
        pool = ConnectionPool()

        async def use() -> None:
            await pool.send(embed_request(thread.server))
            pool._pid -= 1
            assert count_vectors(await pool.send(embed_request(thread.server))) == 1
            assert (pool.stats().created, pool.stats().reused) == (1, 0)
            await pool.aclose()

        asyncio.run(use())
        # In a real child these belong to the parent, and are never finalized.
        pool._inherited = ()
        with pytest.warns(ResourceWarning):
            gc.collect()
