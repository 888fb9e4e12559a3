"""A warm client carried across forks. Release-blocking: a wrong vector here would be silent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.scale import scaled

ROOT = Path(__file__).parents[2]
CALLS = {"async": scaled(60, nightly=500), "sync": scaled(30, nightly=220)}
"""Calls of each process and turn, of which there are fourteen: 1,260 calls in all, at night 10,000."""

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@contextlib.contextmanager
def embedding_server() -> Iterator[str]:
    """A provider in a process of its own; gives its URL."""
    script = (
        "import asyncio\n"
        "from tests.support.faults import FaultServer\n"
        "async def main():\n"
        "    async with FaultServer() as server:\n"
        "        print(server.base_url, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


@pytest.mark.row("C09")
@pytest.mark.parametrize("kind", CALLS)
def test_forked_processes_get_their_own_vectors(kind: str) -> None:
    """A child alone, a child beside its parent, eight children beside it, and the parent afterwards."""
    with embedding_server() as url:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "tests.engine.fork_scenario", kind, url, str(CALLS[kind])],
            cwd=ROOT,
            capture_output=True,
            timeout=110,
            check=False,
        )
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["wrong"] for line in lines] == [0] * 11
    assert sum(line["calls"] for line in lines) == 14 * CALLS[kind]
