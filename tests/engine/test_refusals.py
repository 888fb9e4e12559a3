"""What a refusal says of limits and waits, through the whole client: obeyed to the second, and told to the caller."""

from __future__ import annotations

import functools
import json

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, answer_openai

MODEL = "server/m"
config = functools.partial(provider_config, max_batch_size=1)


def refusal(body: object = None, **headers: str) -> bytes:
    content = json.dumps(body or {"error": {"message": "slow down"}}).encode()
    told = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return bytes(Answer(429, content, [("content-type", "application/json"), *told]))


WINDOW = {"x_ratelimit_limit_requests": "60", "x_ratelimit_remaining_requests": "0"}
BUCKET = {"x_ratelimit_limit_requests": "600", "x_ratelimit_remaining_requests": "0"}


@pytest.mark.row("H06")
@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        (refusal(**WINDOW, x_ratelimit_reset_requests="2s"), 2),
        (refusal(x_ratelimit_remaining="0", x_ratelimit_reset="3"), 3),
        (refusal({"error": {"message": "slow", "metadata": {"retry_after": 4}}}), 4),
        (refusal({"error": {"message": "Please try again in 1m5s."}}), 65),
        # The header is exact, and the words are for a reader.
        (refusal({"error": {"message": "Please try again in 9s."}}, retry_after_ms="2500"), 2.5),
    ],
    ids=["window", "unnamed limit", "field", "words", "header first"],
)
def test_the_wait_of_a_refusal_is_kept_to_the_second(answer: bytes, seconds: float) -> None:
    """Never earlier, and at most a tenth or half a second later."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            server.default(answer_openai)
            server.play(answer)
            started = clock.now()
            await client.embed(MODEL, ["text"])
            assert seconds <= clock.now() - started <= seconds * 1.1 + 0.5
            assert len(server.requests) == 2

    run_simulated(main)


def test_the_reset_of_a_bucket_is_no_wait() -> None:
    """It has room for the next request after a tenth of a second, long before it is full."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server), clock=clock) as client,
        ):
            server.default(answer_openai)
            server.play(refusal(**BUCKET, x_ratelimit_reset_requests="60s"))
            await client.embed(MODEL, ["text"])
            assert clock.now() < 6

    run_simulated(main)


@pytest.mark.parametrize(
    ("answer", "exceeded", "wait"),
    [
        (refusal({"error": {"message": "slow", "type": "tokens"}}), "tokens", None),
        (refusal(**WINDOW, x_ratelimit_reset_requests="2s"), "requests", 2.0),
        (refusal(x_ratelimit_remaining_requests="7", x_ratelimit_remaining_tokens="0"), "tokens", None),
        (refusal({"error": {"message": "8,000 output tokens per minute"}}), "output_tokens", None),
        (refusal(), None, None),
    ],
)
def test_the_error_says_which_limit_it_was(answer: bytes, exceeded: str | None, wait: float | None) -> None:
    """By its words, else by its headers; the error survives a copy with it."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, max_retries=0), clock=clock) as client,
        ):
            server.default(answer)
            with pytest.raises(llmopt.RateLimited) as caught:
                await client.embed(MODEL, ["text"])
            assert (caught.value.exceeded, caught.value.retry_after) == (exceeded, wait)
            assert caught.value.copy().exceeded == exceeded

    run_simulated(main)
