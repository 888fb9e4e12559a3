"""The synchronous client: threads, running event loops, forks, closing."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import llmopt

MODEL = "local/default"


def test_the_sync_client_embeds() -> None:
    """Rows are those of the texts, repeated ones too."""
    with llmopt.Client() as client:
        found = client.embed(MODEL, ["a cat", "the rain", "a cat"])
    assert found.vectors.shape == (3, 256)
    assert found.vectors.dtype == np.float32
    assert found.vectors.flags.c_contiguous
    np.testing.assert_array_equal(found.vectors[0], found.vectors[2])
    assert found.usage.requests == 1
    assert found.errors == {}


async def test_the_sync_client_works_inside_a_running_loop() -> None:
    """A notebook calls it so."""
    with llmopt.Client() as client:
        assert client.embed(MODEL, ["a"]).vectors.shape == (1, 256)


def test_eight_threads_share_one_client() -> None:
    """Each gets its own rows."""
    with llmopt.Client() as client, ThreadPoolExecutor(8) as threads:
        lists = [[f"thread {thread} text {text}" for text in range(50)] for thread in range(8)]
        found = list(threads.map(lambda texts: client.embed(MODEL, texts).vectors, lists * 4))
        alone = [client.embed(MODEL, texts).vectors for texts in lists]
    for rows, expected in zip(found, alone * 4, strict=True):
        np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_a_closed_client_raises() -> None:
    """Closing twice is fine."""
    client = llmopt.Client()
    client.embed(MODEL, ["a"])
    client.close()
    client.close()
    with pytest.raises(llmopt.ClientClosed):
        client.embed(MODEL, ["a"])


def test_the_iterable_is_read_in_the_callers_thread() -> None:
    """A database cursor belongs to the thread that made it."""
    readers: set[int] = set()

    def texts() -> Iterator[str]:
        for number in range(5_000):
            readers.add(threading.get_ident())
            yield f"text {number}"

    with llmopt.Client() as client:
        rows = sum(len(part) for part in client.embed_iter(MODEL, texts()))
        again = sum(len(part) for part in client.embed_iter(MODEL, texts(), order="completion"))
    assert rows == again == 5_000
    assert readers == {threading.get_ident()}


def test_an_endless_iterable_is_read_only_as_far_as_needed() -> None:
    """Leaving the loop stops the reading."""
    read = 0

    def texts() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield f"text {read}"

    with llmopt.Client() as client, client.embed_iter(MODEL, texts()) as parts:
        first = next(parts)
    assert first.start == 0
    assert read < 10 * len(first)


@pytest.mark.row("I04")
def test_an_iterable_that_raises_ends_the_call() -> None:
    """What came before it is embedded and given first; then its own exception comes."""

    def texts() -> Iterator[str]:
        for number in range(3_000):
            yield f"text {number}"
        raise LookupError("the cursor died")

    rows = 0
    with llmopt.Client() as client, pytest.raises(LookupError, match="the cursor died"):
        for part in client.embed_iter(MODEL, texts()):
            assert part.start == rows
            rows += len(part)
    assert rows == 3_000


def test_context_variables_are_passed_on() -> None:
    """A wrapper plugin sees the caller's context."""
    tenant = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    class Wrapper:
        @staticmethod
        @llmopt.hookimpl(wrapper=True)
        def build_request() -> Iterator[None]:
            seen.append(tenant.get())
            return (yield)

    tenant.set("acme")
    with llmopt.Client(plugins=[Wrapper()]) as client:
        client.embed(MODEL, ["a"])
    assert seen == ["acme"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_child_and_its_parent_both_work() -> None:
    """The child makes a loop and a model worker of its own."""
    with llmopt.Client() as client:
        before = client.embed(MODEL, ["a cat"]).vectors
        child = os.fork()
        if child == 0:
            code = 1
            try:
                same = np.array_equal(client.embed(MODEL, ["a cat"]).vectors, before)
                client.close()
                code = 0 if same else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        np.testing.assert_array_equal(client.embed(MODEL, ["a cat"]).vectors, before)


def run(code: str, timeout: float = 30) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "default", "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.row("C07")
def test_a_program_that_never_closes_its_client_ends() -> None:
    """Without a word about tasks or sessions that were left."""
    ended = run("import llmopt; c = llmopt.Client(); c.embed('local/default', ['a']); print('done')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "done\n", "")


@pytest.mark.row("C07")
def test_a_program_with_an_uncaught_exception_ends() -> None:
    """Its traceback is all there is."""
    ended = run(
        "import llmopt; c = llmopt.Client(); c.embed('local/default', ['a']); raise SystemError('mine')"
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == "SystemError: mine"


SLOW = """
import asyncio, llmopt, sys
import httpx
class Slow(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        print("asked", flush=True)
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            print("cancelled", flush=True)
            raise
config = {"providers": {"slow": {"plugin": "local", "base_url": "http://127.0.0.1:1/v1"}}}
client = llmopt.Client(config, transport=Slow())
try:
    client.embed("slow/x", ["a"])
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(client.embed("local/default", ["a"]).vectors.shape, flush=True)
"""


def test_ctrl_c_stops_the_work_and_the_client_stays_usable() -> None:
    """The request is cancelled before the exception reaches the caller."""
    process = subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        assert output.readline() == "asked\n"
        process.send_signal(signal.SIGINT)
        rest = output.read()
    assert process.wait(30) == 0
    assert rest.splitlines() == ["cancelled", "interrupted", "(1, 256)"]


@pytest.mark.row("C08")
def test_an_async_client_outlives_its_event_loop() -> None:
    """One asynchronous client outlives the loop it was first used on."""
    client = llmopt.AsyncClient()

    async def embed() -> tuple[int, ...]:
        return (await client.embed(MODEL, ["a"])).vectors.shape

    assert asyncio.run(embed()) == (1, 256)
    assert asyncio.run(embed()) == (1, 256)
    asyncio.run(client.aclose())


def test_a_listener_that_would_have_to_be_awaited_is_refused() -> None:
    """Its events would be lost, with a warning of Python's for each of them."""

    async def listen(_: object) -> None:
        """Never called."""

    with pytest.raises(
        llmopt.ConfigError, match="on_event must be a function that takes one event, not an async"
    ):
        llmopt.Client({}, on_event=listen)  # type: ignore[arg-type] # the wrong type is what is tested
