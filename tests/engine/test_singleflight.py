"""Single flight: identical texts in flight are sent once, and each caller can be cancelled alone."""

from __future__ import annotations

import asyncio
import functools
import gc

import numpy as np
import pytest

import llmopt
from llmopt.engine.singleflight import Group, SingleFlight
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, Respond, Script, Wait, answer_openai, vector_for

MODEL = "server/m"


config = functools.partial(provider_config, retry_delay=0.001)


def held(gate: asyncio.Event) -> Script:
    return Script([Wait(gate), Respond(answer_openai)])


def row(text: str) -> list[float]:
    return [float(value) for value in vector_for(text, 4)]


@pytest.mark.row("C13")
async def test_a_thousand_callers_of_one_text_send_one_request() -> None:
    """Each gets the vector."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        calls = [asyncio.create_task(client.embed(MODEL, ["same"])) for _ in range(1_000)]
        await server.wait_requests(1)
        gate.set()
        found = await asyncio.gather(*calls)
    assert len(server.requests) == 1
    assert all(each.vectors[0].tolist() == row("same") for each in found)
    # One request, and it stands on one account.
    assert sum(each.usage.requests for each in found) == 1


@pytest.mark.row("C13")
async def test_overlapping_lists_send_only_new_texts() -> None:
    """Texts of both are in order in both."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        first = asyncio.create_task(client.embed(MODEL, ["a", "b", "c"]))
        await server.wait_requests(1)
        second = asyncio.create_task(client.embed(MODEL, ["x", "c", "y", "a"]))
        await server.wait_requests(2)
        gate.set()
        one, two = await asyncio.gather(first, second)
    assert [request.json()["input"] for request in server.requests] == [["a", "b", "c"], ["x", "y"]]
    np.testing.assert_array_equal(one.vectors, np.array([row(text) for text in "abc"], dtype=np.float32))
    np.testing.assert_array_equal(two.vectors, np.array([row(text) for text in "xcya"], dtype=np.float32))


@pytest.mark.row("C13")
async def test_calls_with_different_options_are_not_shared() -> None:
    """Another length is another request."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        first = asyncio.create_task(client.embed(MODEL, ["a"]))
        await server.wait_requests(1)
        await client.embed(MODEL, ["a"], extra={"user": "x"})
        gate.set()
        await first
    assert len(server.requests) == 2


@pytest.mark.row("C13")
async def test_cancelling_the_first_caller_keeps_the_shared_call_running() -> None:
    """From the same request."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        leader = asyncio.create_task(client.embed(MODEL, ["a"]))
        await server.wait_requests(1)
        follower = asyncio.create_task(client.embed(MODEL, ["a"]))
        for _ in range(10):
            await asyncio.sleep(0)
        leader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leader
        gate.set()
        assert (await follower).vectors[0].tolist() == row("a")
    assert len(server.requests) == 1


@pytest.mark.row("C13")
async def test_cancelling_all_callers_cancels_the_request() -> None:
    """The connection is given up; the next call asks afresh."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        calls = [asyncio.create_task(client.embed(MODEL, ["a"])) for _ in range(5)]
        await server.wait_requests(1)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await server.wait_all_closed()
        assert (await client.embed(MODEL, ["a"])).vectors[0].tolist() == row("a")
    assert len(server.requests) == 2


@pytest.mark.row("C13")
async def test_a_shared_failure_reaches_every_caller_and_is_not_stored() -> None:
    """Each caller gets its own exception; the request is retried once for all."""
    gate = asyncio.Event()
    refusal = Script([Wait(gate), Respond(lambda _: b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(refusal)
        calls = [asyncio.create_task(client.embed(MODEL, ["a"])) for _ in range(5)]
        await server.wait_requests(1)
        gate.set()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, llmopt.NotFound) for error in errors)
        assert len({id(error) for error in errors}) == 5
        assert (await client.embed(MODEL, ["a"])).vectors.shape == (1, 4)
    assert len(server.requests) == 2


@pytest.mark.row("C13")
async def test_a_later_caller_with_a_shorter_deadline_fails_alone() -> None:
    """The leader goes on."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        leader = asyncio.create_task(client.embed(MODEL, ["a"]))
        await server.wait_requests(1)
        with pytest.raises(llmopt.DeadlineExceeded):
            await client.embed(MODEL, ["a"], deadline=0.01)
        gate.set()
        assert (await leader).vectors.shape == (1, 4)


@pytest.mark.row("C13")
async def test_each_caller_gets_its_own_array_in_its_own_order() -> None:
    """The same texts the other way round are not sent, and are not given back the first way round."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        texts = ["a", "b", "c"]
        orders = [texts, texts[::-1], ["c", "a"], texts]
        calls = [asyncio.create_task(client.embed(MODEL, order)) for order in orders]
        await server.wait_requests(1)
        await asyncio.sleep(0)
        gate.set()
        found = await asyncio.gather(*calls)
    assert len(server.requests) == 1
    for order, each in zip(orders, found, strict=True):
        assert each.vectors.tolist() == [row(text) for text in order]
    found[0].vectors[:] = 0
    assert found[3].vectors.any()


@pytest.mark.row("C13")
async def test_writing_to_one_result_does_not_change_another() -> None:
    """Even the first caller, which goes on before the others do."""
    gate = asyncio.Event()

    async def embed_and_clear(client: llmopt.AsyncClient) -> None:
        found = await client.embed(MODEL, ["a"])
        found.vectors[:] = 0

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        first = asyncio.create_task(embed_and_clear(client))
        await server.wait_requests(1)
        others = [asyncio.create_task(client.embed(MODEL, ["a"])) for _ in range(3)]
        await asyncio.sleep(0)
        gate.set()
        await first
        found = await asyncio.gather(*others)
    assert len(server.requests) == 1
    assert [each.vectors[0].tolist() for each in found] == [row("a")] * 3


@pytest.mark.row("C13")
async def test_a_later_caller_with_a_longer_deadline_sends_its_own_request() -> None:
    """What ended was the leader's time, not the follower's."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        # The first request of a process imports the connection pool, which may take longer than the leader's deadline.
        await client.embed(MODEL, ["warm"])
        server.play(held(gate))
        leader = asyncio.create_task(client.embed(MODEL, ["a"], deadline=0.3))
        await server.wait_requests(2)
        follower = asyncio.create_task(client.embed(MODEL, ["a"]))
        with pytest.raises(llmopt.DeadlineExceeded):
            await leader
        assert (await follower).vectors[0].tolist() == row("a")
        gate.set()
    assert len(server.requests) == 3


@pytest.mark.row("C13")
async def test_closing_the_client_fails_waiting_callers() -> None:
    """ClientClosed, never a cancellation that the caller did not request."""
    gate = asyncio.Event()
    async with FaultServer() as server:
        client = llmopt.AsyncClient(config(server))
        server.default(answer_openai)
        server.play(held(gate))
        calls = [asyncio.create_task(client.embed(MODEL, ["a"])) for _ in range(3)]
        await server.wait_requests(1)
        await client.aclose()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        gate.set()
    assert [type(error) for error in errors] == [llmopt.ClientClosed] * 3, errors


@pytest.mark.row("C13")
async def test_lists_of_models_are_shared() -> None:
    """Ten callers, one request."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        server.play(held(gate))
        calls = [asyncio.create_task(client.list_models("server")) for _ in range(10)]
        await server.wait_requests(1)
        gate.set()
        lists = await asyncio.gather(*calls)
    assert len(server.requests) == 1
    assert len({len(models) for models in lists}) == 1


@pytest.mark.row("C13")
async def test_without_singleflight_every_caller_sends_a_request() -> None:
    """The flag alone decides."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), flags={"coalesce": False}) as client,
    ):
        server.default(answer_openai)
        await asyncio.gather(*(client.embed(MODEL, ["a"]) for _ in range(3)))
    assert len(server.requests) == 3


async def test_a_cancelled_call_is_not_joined() -> None:
    """A caller that comes in the instant in which the last one is cancelled starts afresh."""
    gate = asyncio.Event()
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server), flags={"cache": False}) as client,
    ):
        server.default(answer_openai)
        server.play(held(gate))
        first = asyncio.create_task(client.list_models("server"))
        await server.wait_requests(1)
        first.cancel()
        # One turn of the loop: it has left, and the request that nobody waits for has not ended yet.
        await asyncio.sleep(0)
        assert len(await client.list_models("server")) == 1
        assert len(server.requests) == 2
        await asyncio.gather(first, return_exceptions=True)


async def test_a_call_cancelled_before_it_started() -> None:
    """Its coroutine is not left behind unawaited."""
    flights = SingleFlight()

    async def work() -> None:
        raise AssertionError("it never begins")

    flights.group("kind").start(("name",)).run(work())
    await flights.aclose()


async def test_finished_calls_leave_nothing_behind() -> None:
    """There may be one for each user of a program, by `extra`."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        gc.collect()
        before = sum(isinstance(each, Group) for each in gc.get_objects())
        for user in range(20):
            await client.embed(MODEL, ["a"], extra={"user": f"user {user}"})
        assert sum(isinstance(each, Group) for each in gc.get_objects()) == before
