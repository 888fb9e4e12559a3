"""A refused API key: when it is fetched again, and which requests are repeated."""

from __future__ import annotations

from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.faults import FaultServer, Request, answer_openai, error_answer
from tests.support.faults.script import Reply

MODEL = "server/m"


def only(*tokens: str) -> Any:
    """A server that takes these tokens alone."""
    good = {f"Bearer {token}" for token in tokens}

    def reply(request: Request) -> Reply:
        if request.header("authorization") in good:
            return answer_openai(request)
        return error_answer(401, "The token has expired.")

    return reply


def config(server: FaultServer, key: Any) -> dict[str, Any]:
    return {"providers": {"server": {"plugin": "local", "base_url": server.base_url, "api_key": key}}}


def tokens(server: FaultServer) -> list[str]:
    return [(request.header("authorization") or "").removeprefix("Bearer ") for request in server.requests]


async def test_a_new_token_is_tried_once_without_delay() -> None:
    """The old token expired in flight; the credential function returns a new one."""
    given = iter(["old-token", "new-token", "new-token", "new-token"])
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, lambda: next(given))) as client,
    ):
        server.default(only("new-token"))
        assert (await client.embed(MODEL, ["a"])).vectors.shape == (1, 4)
        assert tokens(server) == ["old-token", "new-token"]
        # The refusal of the old token does not block the new one.
        assert (await client.embed(MODEL, ["b"])).vectors.shape == (1, 4)


async def test_an_asynchronous_credential_function_is_called_again() -> None:
    """Such as azure-identity's."""
    given = iter(["old-token", "new-token", "new-token"])

    async def token() -> str:
        return next(given)

    async with FaultServer() as server, llmopt.AsyncClient(config(server, token)) as client:
        server.default(only("new-token"))
        assert (await client.embed(MODEL, ["a"])).vectors.shape == (1, 4)
    assert tokens(server) == ["old-token", "new-token"]


async def test_the_same_token_again_is_not_sent_again() -> None:
    """It would be refused again."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, lambda: "old-token")) as client:
        server.default(only("new-token"))
        with pytest.raises(llmopt.AuthError):
            await client.embed(MODEL, ["a"])
    assert tokens(server) == ["old-token"]


async def test_only_one_further_token_is_tried() -> None:
    """A provider that gives another one each time is no way to try for ever."""
    number = iter(range(100))
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, lambda: f"token-{next(number)}")) as client,
    ):
        server.default(only())
        with pytest.raises(llmopt.AuthError):
            await client.embed(MODEL, ["a"])
    assert len(server.requests) == 2


async def test_a_failing_credential_function_leaves_the_refusal() -> None:
    """The caller gets the refusal."""
    given = iter(["old-token"])

    def token() -> str:
        found = next(given, None)
        if found is None:
            raise OSError("no way to the identity service")
        return found

    async with FaultServer() as server, llmopt.AsyncClient(config(server, token)) as client:
        server.default(only("new-token"))
        with pytest.raises(llmopt.AuthError, match="expired"):
            await client.embed(MODEL, ["a"])
    assert len(server.requests) == 1


async def test_a_fixed_key_is_sent_once() -> None:
    """There is no other key to try."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, "old-token")) as client:
        server.default(only("new-token"))
        with pytest.raises(llmopt.AuthError):
            await client.embed(MODEL, ["a"])
    assert len(server.requests) == 1


def test_a_refused_key_is_remembered() -> None:
    """A minute for a fixed key, and five seconds for a function that may give another token any moment."""
    for fixed, seconds in ((True, 60), (False, 5)):

        async def main(clock: SimulatedClock, fixed: bool = fixed, seconds: int = seconds) -> None:
            key: Any = "old-token" if fixed else lambda: "old-token"
            async with (
                FaultServer(sleep=clock.sleep, clock=clock.now) as server,
                llmopt.AsyncClient(config(server, key), clock=clock) as client,
            ):
                server.default(only("new-token"))
                for _ in range(3):
                    with pytest.raises(llmopt.AuthError):
                        await client.embed(MODEL, ["a"])
                assert len(server.requests) == 1
                await clock.sleep(seconds + 0.1)
                with pytest.raises(llmopt.AuthError):
                    await client.embed(MODEL, ["a"])
                assert len(server.requests) == 2

        run_simulated(main)
