"""Retries leave standard output and the user's stamina hooks alone."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.run import json_of, llmopt
from tests.support.faults import Answer, ServerThread, serving, vector_for

TEXTS = ["one", "two", "three"]
UNAVAILABLE = Answer(503, b'{"error": {"message": "overloaded"}}', [("content-type", "application/json")])


@pytest.fixture
def failing() -> Iterator[ServerThread]:
    """A server that answers 503 twice, configured as "near"."""
    with serving() as thread:
        thread.server.play(UNAVAILABLE, UNAVAILABLE)
        Path("llmopt.toml").write_text(
            f'[providers.near]\nplugin = "local"\nbase_url = "{thread.server.base_url}"\n'
            "retry_delay = 0.01\nmax_retries = 3\n"
        )
        Path("in.txt").write_text("\n".join(TEXTS) + "\n")
        yield thread


def test_a_retry_leaves_standard_output_clean(failing: ServerThread) -> None:
    """With structlog installed, stamina's default hook prints every retry there."""
    done = llmopt("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    table = json_of(done)
    assert (table["texts"], table["failed"]) == (3, 0)
    np.testing.assert_array_equal(np.load("out.npy"), [vector_for(text) for text in TEXTS])
    assert len(failing.server.requests) == 3


PROGRAM = """
    import json, stamina, structlog
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks
    import llmopt

    causes = []

    def mine(details):
        causes.append(type(details.caused_by).__name__)

    {hooks}
    before = {current}

    @stamina.retry(on=OSError, wait_initial=0, wait_jitter=0)
    def users(calls=iter([OSError("no"), None])):
        if (error := next(calls)) is not None:
            raise error

    with llmopt.Client() as client:
        rows = client.embed("near/small", {texts}).vectors.shape
    same = {current} == before
    users()
    print(json.dumps({{"rows": rows, "same": same, "causes": causes}}))
"""


def run(**code: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(PROGRAM).format(texts=TEXTS, **code)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_users_hooks_stay_in_place(failing: ServerThread) -> None:
    """They are the same objects after llmopt's retries, and were called for the user's retry only."""
    done = run(hooks="set_on_retry_hooks([mine])", current="get_on_retry_hooks()")
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"rows": [3, 4], "same": True, "causes": ["OSError"]}
    assert len(failing.server.requests) == 3


def test_staminas_default_hooks_print_the_users_retry_only(failing: ServerThread) -> None:
    """One line of structlog for the user's retry, none for llmopt's."""
    done = run(hooks="", current="None")
    assert done.stderr == ""
    first, last = done.stdout.splitlines()
    assert "stamina.retry_scheduled" in first
    assert "OSError" in first
    assert json.loads(last) == {"rows": [3, 4], "same": True, "causes": []}
    assert len(failing.server.requests) == 3
