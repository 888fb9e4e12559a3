"""Limits that a server states, and the request that fetches them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

import llmopt
from llmopt import BatchLimit, EmbedCall, HttpRequest, HttpResponse, hookimpl
from llmopt.operations.embed_batches import merge_limits
from tests.support.emulators import TEIEmulator

FULL = BatchLimit(max_items=1, max_item_tokens=2, max_tokens=3, max_bytes=4)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (FULL, BatchLimit(), FULL),
        (BatchLimit(), FULL, FULL),
        (BatchLimit(max_items=32), BatchLimit(max_items=64), BatchLimit(max_items=32)),
        (
            BatchLimit(max_items=32, max_bytes=9),
            BatchLimit(max_items=8),
            BatchLimit(max_items=8, max_bytes=9),
        ),
        (
            BatchLimit(max_item_tokens=5),
            BatchLimit(truncates=True),
            BatchLimit(max_item_tokens=5, truncates=True),
        ),
    ],
)
def test_limits_are_merged_by_the_smaller_number(
    first: BatchLimit, second: BatchLimit, expected: BatchLimit
) -> None:
    """None means no limit."""
    assert merge_limits(first, second) == expected


def entry(server: TEIEmulator, **more: Any) -> dict[str, Any]:
    return {"providers": {"p": {"plugin": "local", "base_url": server.base_url, "flavour": "tei", **more}}}


async def test_a_cancelled_call_does_not_fail_the_waiting_ones() -> None:
    """A waiting call sends the request instead."""
    async with TEIEmulator(max_client_batch_size=8) as server, llmopt.AsyncClient(entry(server)) as client:
        server.latency = 0.0
        first = asyncio.create_task(client.embed("p/m", ["a"]))
        others = [asyncio.create_task(client.embed("p/m", [text])) for text in "bcd"]
        await asyncio.sleep(0)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        result = await asyncio.gather(*others)
        assert all(part.errors == {} for part in result)


def test_a_client_in_several_event_loops() -> None:
    """One after the other; the limits stay known."""
    with TEIEmulator().in_thread() as server:
        client = llmopt.AsyncClient(entry(server))

        async def several() -> None:
            await asyncio.gather(*(client.embed("p/m", [text]) for text in "abc"))

        asyncio.run(several())
        asyncio.run(several())
        asyncio.run(client.aclose())
        assert [request.path for request in server.requests].count("/info") == 1


async def test_every_endpoint_is_asked_and_the_smallest_limit_holds() -> None:
    """A batch may be sent to any endpoint."""
    async with TEIEmulator(max_client_batch_size=8) as one, TEIEmulator(max_client_batch_size=4) as two:
        endpoints = [{"base_url": one.base_url}, {"base_url": two.base_url}]
        config = {"providers": {"p": {"plugin": "local", "flavour": "tei", "endpoints": endpoints}}}
        async with llmopt.AsyncClient(config) as client:
            await client.embed("p/m", [f"text {number}" for number in range(40)])
        for server in (one, two):
            assert server.requests[0].path == "/info"
        batches = [
            request for server in (one, two) for request in server.requests if request.path == "/embed"
        ]
        assert max(len(request.json["inputs"]) for request in batches) == 4


async def test_no_limits_are_requested_without_texts_or_by_a_closed_client() -> None:
    async with TEIEmulator() as server:
        client = llmopt.AsyncClient(entry(server))
        assert (await client.embed("p/m", [])).vectors.shape == (0, 0)
        await client.aclose()
        with pytest.raises(llmopt.ClientClosed):
            await client.embed("p/m", ["a"])
        assert server.requests == []


async def test_the_request_for_limits_ends_at_the_deadline_of_the_call() -> None:
    async with TEIEmulator() as server, llmopt.AsyncClient(entry(server)) as client:

        async def never(_: object) -> Any:
            await asyncio.sleep(60)

        server.authorise = lambda received: None  # type: ignore[method-assign] # accept every key
        server._answered = lambda handler, received: never(received)  # type: ignore[method-assign] # nor answered
        with pytest.raises(llmopt.DeadlineExceeded):
            await asyncio.wait_for(client.embed("p/m", ["a"], deadline=0.3), 5)


async def test_an_exception_in_a_limits_hook_fails_no_call() -> None:

    class Wrapper:
        @hookimpl(tryfirst=True)
        def limits_request(self, call: EmbedCall) -> HttpRequest:
            return HttpRequest(method="GET", path="/info")

        @hookimpl(tryfirst=True)
        def parse_limits(self, response: HttpResponse) -> BatchLimit:
            raise KeyError("max_client_batch_size")

    async with (
        TEIEmulator() as server,
        llmopt.AsyncClient(entry(server), plugins=[Wrapper()]) as client,
    ):
        assert (await client.embed("p/m", ["a"])).errors == {}
