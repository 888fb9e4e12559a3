"""The pool with several event loops, one after the other and at the same time."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmopt.transport.pool import ConnectionPool, PoolStats
from tests.support.faults import (
    Answer,
    FaultServer,
    Script,
    Stall,
    can_make_certificates,
    good_certificate,
    serving,
)
from tests.support.scale import scaled
from tests.transport.helpers import count_vectors, embed_request

EACH = scaled(80, nightly=200)


@pytest.mark.row("C08")
def test_one_pool_in_two_runs() -> None:
    """Connections end with their run, and each run makes its own."""
    with serving() as thread:
        pool = ConnectionPool()

        async def use() -> str:
            for _ in range(3):
                assert count_vectors(await pool.send(embed_request(thread.server))) == 1
            return repr(pool)

        for _ in range(2):
            assert asyncio.run(use()) == "<ConnectionPool open: 0 in use, 1 idle, 0 waiting>"
            thread.run(thread.server.wait_all_closed())
        assert pool.stats() == PoolStats(created=2, reused=4, peak=1)
        gc.collect()


@pytest.mark.row("C08")
def test_sockets_of_a_closed_loop_are_dropped() -> None:
    """The loop could not close anything: the pool drops its sockets silently at its next use."""
    with serving() as thread:
        pool = ConnectionPool()

        async def use() -> None:
            await asyncio.gather(*(pool.send(embed_request(thread.server)) for _ in range(3)))

        for _ in range(2):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
            thread.run(thread.server.wait_for(lambda: thread.server.open_connections == 3))
        assert pool.stats() == PoolStats(created=6, idle=3, peak=3)
        asyncio.run(pool.aclose())
        thread.run(thread.server.wait_all_closed())
        gc.collect()


@pytest.mark.row("C08")
def test_a_loop_that_continues_after_shutdown_asyncgens() -> None:
    """The shutdown closes its connections; new ones are made."""
    with serving() as thread:
        pool = ConnectionPool()

        async def use() -> None:
            await pool.send(embed_request(thread.server))
            await asyncio.get_running_loop().shutdown_asyncgens()
            assert count_vectors(await pool.send(embed_request(thread.server))) == 1
            await pool.aclose()

        with pytest.warns(ResourceWarning, match="shutdown_asyncgens"):
            asyncio.run(use())
        assert pool.stats() == PoolStats(created=2, peak=1)


@pytest.mark.row("C08")
@pytest.mark.skipif(not can_make_certificates(), reason="neither trustme nor openssl is here")
def test_two_runs_over_tls() -> None:
    """A TLS connection of a closed loop ends without a closing handshake."""
    certificate = good_certificate()
    with serving(FaultServer(tls=certificate.server())) as thread:
        pool = ConnectionPool(tls=certificate.client())

        async def use() -> None:
            for _ in range(2):
                assert count_vectors(await pool.send(embed_request(thread.server))) == 1

        asyncio.run(use())
        asyncio.run(use())
        gc.collect()
        asyncio.run(pool.aclose())
        thread.run(thread.server.wait_all_closed())
        gc.collect()


@pytest.mark.row("C08")
def test_a_run_that_ends_during_requests() -> None:
    """The requests are cancelled with their loop; the next run starts clean."""
    with serving() as thread:
        pool = ConnectionPool()
        thread.server.play(*[Script([Stall()])] * 5)

        async def leave() -> None:
            for _ in range(5):
                asyncio.create_task(pool.send(embed_request(thread.server)))  # noqa: RUF006 - cancelled with the loop
            await asyncio.to_thread(thread.run, thread.server.wait_requests(5))

        async def use() -> None:
            assert count_vectors(await pool.send(embed_request(thread.server))) == 1
            await pool.aclose()

        asyncio.run(leave())
        asyncio.run(use())
        thread.run(thread.server.wait_all_closed())
        gc.collect()


@pytest.mark.row("C08")
def test_many_loops_at_once() -> None:
    """In threads, on one pool; every request gets its own response."""
    with serving() as thread:
        thread.server.default(lambda request: Answer(200, request.body))
        pool = ConnectionPool(pool_size=4)
        wrong: list[bytes] = []

        async def use(name: str) -> None:
            async def one(number: int) -> None:
                body = f"{name}-{number}".encode()
                answer = await pool.send(embed_request(thread.server, body=body, pool_timeout=None))
                if answer.body != body:
                    wrong.append(answer.body)

            await asyncio.gather(*(one(number) for number in range(EACH)))

        threads = [threading.Thread(target=lambda n=n: asyncio.run(use(f"t{n}"))) for n in range(6)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert wrong == []
        assert len(thread.server.requests) == 6 * EACH
        asyncio.run(pool.aclose())
        thread.run(thread.server.wait_all_closed())
        stats = pool.stats()
        assert stats.created + stats.reused == 6 * EACH
        gc.collect()


@pytest.mark.row("C06")
def test_aclose_from_another_loop() -> None:
    """The connections of a loop that runs in another thread are closed there."""
    with serving() as thread:
        pool = ConnectionPool()
        elsewhere = asyncio.new_event_loop()
        runner = threading.Thread(target=elsewhere.run_forever)
        runner.start()
        sent = asyncio.run_coroutine_threadsafe(pool.send(embed_request(thread.server)), elsewhere)
        assert count_vectors(sent.result(10)) == 1
        asyncio.run(pool.aclose())
        thread.run(thread.server.wait_all_closed())
        elsewhere.call_soon_threadsafe(elsewhere.stop)
        runner.join()
        elsewhere.close()
        assert pool.stats() == PoolStats(created=1, peak=1)
        gc.collect()


def test_loops_that_end_while_others_begin() -> None:
    """No other loop touches the sockets of a loop that is still closing them."""
    odd: list[dict[str, Any]] = []
    with serving() as thread:
        pool = ConnectionPool()

        async def some() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: odd.append(context))
            for _ in range(3):
                answers = await asyncio.gather(*(pool.send(embed_request(thread.server)) for _ in range(8)))
                assert [answer.status for answer in answers] == [200] * 8

        def run() -> None:
            for _ in range(scaled(3, nightly=6)):
                asyncio.run(some())

        with ThreadPoolExecutor(8) as threads:
            for done in [threads.submit(run) for _ in range(8)]:
                done.result()
        asyncio.run(pool.aclose())
        gc.collect()
    assert odd == []


@pytest.mark.row("C07")
def test_an_unclosed_pool_warns_and_closes() -> None:
    """With a `ResourceWarning`; the server sees the connections end."""
    with serving() as thread:
        loop = asyncio.new_event_loop()
        pools = [ConnectionPool()]
        loop.run_until_complete(pools[0].send(embed_request(thread.server)))
        loop.close()
        with pytest.warns(ResourceWarning, match=r"unclosed <ConnectionPool open: .* aclose"):
            pools.clear()
        thread.run(thread.server.wait_all_closed())


@pytest.mark.row("C07")
def test_an_unclosed_pool_closes_while_its_loop_runs() -> None:
    """Nothing is scheduled: the loop sees the connections end."""
    with serving() as thread:
        errors: list[object] = []

        async def use() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
            pools = [ConnectionPool()]
            await pools[0].send(embed_request(thread.server))
            with pytest.warns(ResourceWarning, match="unclosed"):
                pools.clear()
            await asyncio.to_thread(thread.run, thread.server.wait_all_closed())

        asyncio.run(use())
        gc.collect()
        assert errors == []


@pytest.mark.row("C07")
def test_an_unused_pool_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConnectionPool()
        gc.collect()


@pytest.mark.row("S05")
async def test_debug_mode_changes_nothing(server: FaultServer) -> None:
    asyncio.get_running_loop().set_debug(True)
    pool = ConnectionPool(pool_size=2)
    answers = await asyncio.gather(*(pool.send(embed_request(server)) for _ in range(10)))
    assert [count_vectors(answer) for answer in answers] == [1] * 10
    await pool.aclose()
