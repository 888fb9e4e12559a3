"""Helpers of the transport tests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import pickle
import socket
import subprocess
import sys
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from llmopt.errors import LLMOptError
from llmopt.transport.httpx_transport import HttpxSender
from llmopt.transport.pool import ConnectionPool
from llmopt.transport.request import TransportRequest
from llmopt.transport.stream import ResponseStream
from llmopt.values.http import HttpResponse
from tests.support.faults import FaultServer

T = TypeVar("T")
E = TypeVar("E", bound=LLMOptError)
Sender = ConnectionPool | HttpxSender

KEY = "sk-canary-key-0123456789"
PROMPT = "canary prompt"
HEADERS = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
TIMEOUT_S = 20.0  # only a broken test waits that long
ROOT = Path(__file__).parents[2]


@contextlib.asynccontextmanager
async def open_stream(sender: Sender, request: TransportRequest) -> AsyncIterator[ResponseStream]:
    """The response as a stream, which leaving the block closes."""
    stream = await sender.open(request)
    try:
        yield stream
    finally:
        await stream.aclose()


async def chunks(stream: ResponseStream) -> AsyncIterator[bytes]:
    """The body, chunk by chunk."""
    while chunk := await stream.read():
        yield chunk


def embed_request_to(url: str, *texts: str, **options: Any) -> TransportRequest:
    """An embeddings request to a base URL."""
    body = json.dumps({"model": "m", "input": list(texts or (PROMPT,))}).encode()
    defaults: dict[str, Any] = {"method": "POST", "headers": HEADERS, "body": body, "timeout": TIMEOUT_S}
    return TransportRequest(url=f"{url}/v1/embeddings?secret={KEY}", **(defaults | options))


def embed_request(server: FaultServer, *texts: str, **options: Any) -> TransportRequest:
    """An embeddings request to a server."""
    return embed_request_to(server.base_url, *texts, **options)


async def expect_error(sender: Sender, request: TransportRequest, kind: type[E]) -> E:
    """Send a request that must fail; return the error, which must hold no secret."""
    try:
        response = await sender.send(request)
    except kind as error:
        assert_no_secrets(error)
        return error
    raise AssertionError(f"{response} instead of {kind.__name__}")


def assert_no_secrets(error: BaseException) -> None:
    """Neither key nor prompt nor path is in an error, its causes, or its pickle."""
    seen: BaseException | None = error
    while seen is not None:
        for text in (str(seen), repr(seen), repr(vars(seen)), repr(getattr(seen, "object", ""))):
            assert KEY not in text
            assert PROMPT not in text
            assert "/v1/" not in text
        seen = seen.__cause__ or seen.__context__
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert KEY.encode() not in pickle.dumps(error)
    assert str(again) == str(error)


def count_vectors(response: HttpResponse) -> int:
    """Count the vectors of a successful response."""
    assert response.status == 200
    return len(response.json["data"])


@contextlib.asynccontextmanager
async def open_pool(**options: Any) -> AsyncIterator[ConnectionPool]:
    """A pool that is closed at the end and is empty then: no request in use or waiting, only idle sockets."""
    pool = ConnectionPool(**options)
    try:
        yield pool
        assert (pool.stats().in_use, pool.stats().waiting) == (0, 0)
        if "tls" not in options:
            for _ in range(3):
                await asyncio.sleep(0)  # the loop closes a socket in the turn after it was dropped
            assert len(open_sockets(pool)) == pool.stats().idle
    finally:
        await pool.aclose()


def open_sockets(pool: ConnectionPool) -> list[socket.socket]:
    """The open sockets of a pool, also those that the pool has forgotten."""
    opened = [each for connector in pool._connectors.values() for each in connector._sockets._sockets]
    return [each for each in opened if each.fileno() >= 0]


def other_tasks() -> set[asyncio.Task[Any]]:
    """The tasks of this loop except the test's own."""
    return asyncio.all_tasks() - {asyncio.current_task()}


class CancelAtSuspension:
    """Runs a coroutine and cancels its task at the n-th suspension; ``reached`` is True if there was an n-th one."""

    def __init__(self, number: int) -> None:
        self.reached = False
        self._number = number

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run the coroutine in a task, which is finished or cancelled afterwards."""

        async def counted() -> T:
            return await self._run(work)

        return asyncio.create_task(counted())

    @types.coroutine
    def _run(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        passed = 0
        step: Callable[[], Any] = functools.partial(work.send, None)
        while True:
            try:
                awaited = step()
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            passed += 1
            if passed == self._number:
                self.reached = True
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            try:
                yield awaited
                step = functools.partial(work.send, None)
            except BaseException as error:
                step = functools.partial(work.throw, error)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """An echo server in another process, for tests that fork; gives its port.

    It answers a request with its body, and a GET with the number of connections it has accepted.
    """
    script = (
        "import asyncio\n"
        "from tests.support.faults import Answer, FaultServer\n"
        "async def main():\n"
        "    async with FaultServer() as server:\n"
        "        server.default(lambda request: Answer(200, request.body or str(server.connections).encode()))\n"
        "        print(server.port, flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()
