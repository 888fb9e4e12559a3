"""How often a request is sent, counted at the server."""

from __future__ import annotations

import json
from typing import Any

import pytest

import llmopt
from tests.support.faults import Answer, FaultServer, answer_openai

QUICK = {"retry_delay": 0.001, "timeouts": {"connect": 0.5, "read": 0.5, "pool": 0.5}}


def config(server: FaultServer, **more: Any) -> dict[str, Any]:
    entry = {"plugin": "local", "base_url": server.base_url, **QUICK, **more}
    return {"providers": {"server": entry}}


def error(status: int, code: str | None = None, **headers: str) -> Answer:
    body = json.dumps({"error": {"message": "no", "type": "t", "param": None, "code": code}}).encode()
    pairs = [("content-type", "application/json"), *((k.replace("_", "-"), v) for k, v in headers.items())]
    return Answer(status, body, pairs)


async def test_h08_three_retries_are_four_requests() -> None:
    """503 for ever; the error tells of all four."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=3)) as client:
        server.default(bytes(error(503)))
        with pytest.raises(llmopt.Overloaded) as caught:
            await client.embed("server/m", ["a"])
    assert len(server.requests) == 4
    assert [attempt.outcome for attempt in caught.value.attempts] == ["Overloaded"] * 4


async def test_a_failure_that_passes_is_not_seen() -> None:
    """One retry is enough."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(bytes(error(500)))
        server.default(answer_openai)
        found = await client.embed("server/m", ["a"])
    assert found.vectors.shape == (1, 4)
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (error(429, "insufficient_quota"), llmopt.QuotaExhausted),
        (error(402), llmopt.QuotaExhausted),
        (error(401), llmopt.AuthError),
        (error(403), llmopt.PermissionDenied),
        (error(404), llmopt.NotFound),
        (error(501), llmopt.BadRequest),
        (error(505), llmopt.BadRequest),
        (error(600), llmopt.UnexpectedStatus),
        (error(503, x_should_retry="false"), llmopt.Overloaded),
        (error(429, "insufficient_quota", x_should_retry="true"), llmopt.QuotaExhausted),
        (error(429, retry_after="121"), llmopt.RateLimited),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
async def test_h07_h08_h11_h12_what_cannot_help_is_sent_once(answer: Answer, kind: type[Exception]) -> None:
    """Money, keys, permissions, vetoes, and waits that are too long."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=3)) as client:
        server.default(bytes(answer))
        with pytest.raises(kind):
            await client.embed("server/m", ["a"])
    assert len(server.requests) == 1


async def test_h03_a_wait_that_is_too_long_is_told() -> None:
    """The caller learns how long."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(bytes(error(429, retry_after="1000000000")))
        with pytest.raises(llmopt.RateLimited) as caught:
            await client.embed("server/m", ["a"])
    assert caught.value.retry_after == 1e9


async def test_a_wait_that_does_not_fit_the_deadline_fails_at_once() -> None:
    """And says so."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(bytes(error(429, retry_after="90")))
        with pytest.raises(llmopt.DeadlineExceeded, match="90"):
            await client.embed("server/m", ["a"], deadline=30)
    assert len(server.requests) == 1


async def test_quota_is_not_asked_for_again_by_the_next_call() -> None:
    """The refusal stands for a while; nothing is sent."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, api_key="test-key")) as client:
        server.default(bytes(error(429, "insufficient_quota")))
        for _ in range(3):
            with pytest.raises(llmopt.QuotaExhausted):
                await client.embed("server/m", ["a"])
    assert len(server.requests) == 1


async def test_retry_off_sends_once() -> None:
    """The flag switches it off alone."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), flags={"retry": False}) as client:
        server.default(bytes(error(503)))
        with pytest.raises(llmopt.Overloaded):
            await client.embed("server/m", ["a"])
    assert len(server.requests) == 1
