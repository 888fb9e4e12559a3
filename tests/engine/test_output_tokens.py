"""Providers that limit the tokens of replies apart from those of prompts, through the whole client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import llmopt
from llmopt import HttpResponse, RateLimit, RateLimits, RequestCost, hookimpl
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import Close, FaultServer, chat_payload, error_answer, json_answer
from tests.support.faults.quota import Bucket
from tests.support.faults.request import Request
from tests.support.faults.response import Answer
from tests.support.streams import event, stream_script

QUESTION = [{"role": "user", "content": "word " * 400}]
PER_MINUTE = 6_000


class ReadsOutputTokens:
    """The limit of replies is in headers of the provider's own."""

    @hookimpl
    def rate_limits(self, response: HttpResponse) -> RateLimits:
        remaining = response.headers.get("acme-output-remaining")
        if remaining is None:
            return RateLimits()
        return RateLimits(output_tokens=RateLimit(limit=PER_MINUTE, remaining=float(remaining)))


class Server:
    """It counts the tokens that each reply may have (``max_tokens``), and gives replies of half as many."""

    def __init__(self, clock: SimulatedClock, *, headers: bool) -> None:
        self.bucket = Bucket(PER_MINUTE, 60.0, clock.now())
        self.bucket.fill(0.1, clock.now())
        self.refused = 0
        self._clock = clock
        self._headers = headers

    def __call__(self, request: Request) -> Answer:
        now, cost = self._clock.now(), request.json()["max_tokens"] / 2
        if self.bucket.wait(cost, now) > 0:
            self.refused += 1
            answer = error_answer(
                429, "You exceeded the limit of 6,000 output tokens per minute", kind="rate_limit_error"
            )
        else:
            self.bucket.take(cost, now)
            usage = {"prompt_tokens": 400, "completion_tokens": int(cost), "total_tokens": 400 + int(cost)}
            choices = [
                {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
            ]
            answer = json_answer({"model": "m", "choices": choices, "usage": usage})
        if self._headers:
            return answer.plus(("acme-output-remaining", f"{max(0.0, self.bucket.level(now)):.0f}"))
        return answer


def ask(client: llmopt.AsyncClient, count: int) -> asyncio.Future[list[object]]:
    return asyncio.gather(*(client.chat("server/m", QUESTION, max_tokens=200) for _ in range(count)))


def run(main: Callable[[SimulatedClock, FaultServer], object]) -> None:
    async def inner(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            await main(clock, server)  # type: ignore[misc]

    run_simulated(inner)


@pytest.mark.parametrize(
    ("headers", "refused", "seconds"), [(True, 2, 64), (False, 80, 130)], ids=["stated", "named"]
)
def test_replies_are_limited_apart(headers: bool, refused: int, seconds: float) -> None:
    """60 replies of 100 tokens, at 100 a second with 600 at once: 54 s. No reply is lost."""

    async def main(clock: SimulatedClock, server: FaultServer) -> None:
        limits = Server(clock, headers=headers)
        server.default(limits)
        async with llmopt.AsyncClient(
            provider_config(server, max_retries=6), clock=clock, plugins=[ReadsOutputTokens()]
        ) as client:
            await client.chat("server/m", QUESTION, max_tokens=200)
            await ask(client, 59)
            print(f"{clock.now():.1f} s, {limits.refused} refused")
            assert clock.now() <= seconds
            assert limits.refused <= refused
            (endpoint,) = client.stats()["server"].values()
            # What was learned is about replies, and nothing about prompts.
            assert endpoint["limiters"]["m"]["tpm"] is None
            assert endpoint["reply_limiters"]["m"]["tpm"] is not None

    run(main)


def test_the_plugin_may_say_what_a_reply_counts() -> None:
    """Here half of ``max_tokens``, so that more go at once."""

    class CountsHalf:
        @hookimpl
        def request_cost(self, call: llmopt.Call) -> RequestCost:
            return RequestCost(output_tokens=(getattr(call, "max_tokens", None) or 0) / 2)

    times = []
    for plugins in ([ReadsOutputTokens()], [ReadsOutputTokens(), CountsHalf()]):

        async def main(clock: SimulatedClock, server: FaultServer, plugins: list[Any] = plugins) -> None:
            limits = Server(clock, headers=True)
            server.default(limits)
            async with llmopt.AsyncClient(provider_config(server), clock=clock, plugins=plugins) as client:
                await client.chat("server/m", QUESTION, max_tokens=200)
                await ask(client, 4)
                assert limits.refused == 0
                times.append(clock.now())

        run(main)
    print(times)
    assert times[1] < times[0]


def test_prompts_do_not_count() -> None:
    """Without the limit of replies, 600 tokens a second of both together would be too many for 6,000 a minute."""

    async def main(clock: SimulatedClock, server: FaultServer) -> None:
        server.default(Server(clock, headers=True))
        async with llmopt.AsyncClient(
            provider_config(server, tpm=30_000), clock=clock, plugins=[ReadsOutputTokens()]
        ) as client:
            await client.chat("server/m", QUESTION, max_tokens=200)
            await ask(client, 20)
            print(f"{clock.now():.1f} s")
            # 21 prompts of 400 tokens at 500 a second, and not of 600 with their replies.
            assert clock.now() <= 21

    run(main)


@pytest.mark.parametrize("reported", [False, True])
def test_a_broken_stream_counts_what_was_written(reported: bool) -> None:
    """Also where the usage of its first event has the prompt alone: 24,000 characters are 6,000 tokens."""

    async def main(clock: SimulatedClock, server: FaultServer) -> None:
        usage = {"usage": {"prompt_tokens": 25, "completion_tokens": 1}} if reported else {}
        words = [event(choices=[{"index": 0, "delta": {"content": "x" * 2_000}}]) for _ in range(12)]
        server.play(stream_script(event(choices=[], **usage), *words, end=(Close(),)))
        server.default(json_answer(chat_payload(["yes"])))
        async with llmopt.AsyncClient(provider_config(server, tpm=PER_MINUTE), clock=clock) as client:
            with pytest.raises(llmopt.StreamInterrupted):
                async with client.stream("server/m", QUESTION) as stream:
                    async for _ in stream:
                        pass
            assert len(stream.text) == 24_000
            started = clock.now()
            await client.chat("server/m", QUESTION)
            # What is overdrawn is bounded.
            assert clock.now() - started > 10

    run(main)
