"""Retries in a process as users run it: standard output is theirs alone, and so are stamina's hooks."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.cli.run import found, llmopt
from tests.support.faults import Answer, ServerThread, serving, vector_for

TEXTS = ["one", "two", "three"]
UNAVAILABLE = Answer(503, b'{"error": {"message": "overloaded"}}', [("content-type", "application/json")])


@pytest.fixture
def failing() -> Iterator[ServerThread]:
    """A server that is overloaded twice, and configured as "near"."""
    with serving() as thread:
        thread.server.play(UNAVAILABLE, UNAVAILABLE)
        Path("llmopt.toml").write_text(
            f'[providers.near]\nplugin = "local"\nbase_url = "{thread.server.base_url}"\n'
            "retry_delay = 0.01\nmax_retries = 3\n"
        )
        Path("in.txt").write_text("\n".join(TEXTS) + "\n")
        yield thread


def test_a_retry_leaves_standard_output_clean(failing: ServerThread) -> None:
    """structlog is installed, with which stamina by itself prints every retry there."""
    done = llmopt("embed", "in.txt", "--model", "near/small", "--out", "out.npy", "--json")
    assert (done.returncode, done.stderr) == (0, b"")
    table = found(done)
    assert (table["texts"], table["failed"]) == (3, 0)
    np.testing.assert_array_equal(np.load("out.npy"), [vector_for(text) for text in TEXTS])
    assert len(failing.server.requests) == 3


PROGRAM = """
    import json, stamina, structlog
    from stamina.instrumentation import get_on_retry_hooks, set_on_retry_hooks
    import llmopt

    heard = []

    def mine(details):
        heard.append(type(details.caused_by).__name__)

    {hooks}
    before = {present}

    @stamina.retry(on=OSError, wait_initial=0, wait_jitter=0)
    def users(calls=iter([OSError("no"), None])):
        if (error := next(calls)) is not None:
            raise error

    with llmopt.Client() as client:
        rows = client.embed("near/small", {texts}).vectors.shape
    same = {present} == before
    users()
    print(json.dumps({{"rows": rows, "same": same, "heard": heard}}))
"""


def run(**parts: str) -> subprocess.CompletedProcess[str]:
    program = textwrap.dedent(PROGRAM).format(texts=TEXTS, **parts)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_users_own_hooks_are_untouched(failing: ServerThread) -> None:
    """The very same objects are there after our retries, and heard of the user's retry alone."""
    done = run(hooks="set_on_retry_hooks([mine])", present="get_on_retry_hooks()")
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"rows": [3, 4], "same": True, "heard": ["OSError"]}
    assert len(failing.server.requests) == 3


def test_staminas_default_hooks_print_the_users_retry_alone(failing: ServerThread) -> None:
    """One line of structlog's for the user's own retry, none for ours."""
    done = run(hooks="", present="None")
    assert done.stderr == ""
    first, last = done.stdout.splitlines()
    assert "stamina.retry_scheduled" in first
    assert "OSError" in first
    assert json.loads(last) == {"rows": [3, 4], "same": True, "heard": []}
    assert len(failing.server.requests) == 3
