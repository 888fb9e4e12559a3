"""The limiter against a simulated provider that enforces its own limits.

600 requests and 100,000 tokens a minute, in buckets that hold one second of requests and five of tokens, or a minute of both;
two minutes of simulated time, every random number seeded. "Possible" is the throughput of a client that knows the
buckets and has no latency.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from llmopt.compatible.rate_limits import parse_rate_limits
from llmopt.policies.quota import Refusal
from llmopt.policies.rate_limiter import RateLimiter
from llmopt.policies.retry_after import parse_retry_after
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.scale import NIGHTLY

SECONDS = 120.0
RPM, TPM = 600.0, 100_000.0


@dataclass
class Answer:
    status: int
    headers: dict[str, str]


class Provider:
    """Two token buckets; a request takes from both or from neither."""

    def __init__(
        self,
        *,
        rpm: float = RPM,
        tpm: float = TPM,
        headers: bool = True,
        retry_after: str = "none",
        depths_s: tuple[float, float] = (1.0, 5.0),
    ) -> None:
        self.limits = (rpm, tpm)
        self.rates = (rpm / 60, tpm / 60)
        self.depths = (rpm / 60 * depths_s[0], tpm / 60 * depths_s[1])
        self.levels = list(self.depths)
        self.at = 0.0
        self.headers = headers
        self.retry_after = retry_after
        self.accepted = self.refused = 0
        self.tokens = 0

    def handle(self, now: float, tokens: int) -> Answer:
        costs = (1, tokens)
        for i in (0, 1):
            self.levels[i] = min(self.depths[i], self.levels[i] + (now - self.at) * self.rates[i])
        self.at = now
        if all(self.levels[i] >= costs[i] for i in (0, 1)):
            self.levels = [self.levels[i] - costs[i] for i in (0, 1)]
            self.accepted += 1
            self.tokens += tokens
            return Answer(200, self.headers_of_limits())
        self.refused += 1
        wait = max((costs[i] - self.levels[i]) / self.rates[i] for i in (0, 1))
        return Answer(429, self.headers_of_limits() | self.retry_headers(wait))

    def headers_of_limits(self) -> dict[str, str]:
        if not self.headers:
            return {}
        headers = {}
        for i, name in enumerate(("requests", "tokens")):
            headers[f"x-ratelimit-limit-{name}"] = f"{self.limits[i]:.0f}"
            headers[f"x-ratelimit-remaining-{name}"] = f"{math.floor(self.levels[i])}"
            reset = (self.depths[i] - self.levels[i]) / self.rates[i]
            headers[f"x-ratelimit-reset-{name}"] = f"{reset * 1000:.0f}ms" if reset < 1 else f"{reset:.3f}s"
        return headers

    def retry_headers(self, wait: float) -> dict[str, str]:
        if self.retry_after == "seconds":
            return {"retry-after": str(max(1, math.ceil(wait)))}
        if self.retry_after == "milliseconds":
            return {"retry-after-ms": str(max(1, math.ceil(wait * 1000)))}
        return {}

    def possible(self, sizes: Iterator[int]) -> float:
        """The share of the narrower bucket that the best possible client uses."""
        now, levels, requests, tokens = 0.0, list(self.depths), 0, 0
        for size in sizes:
            costs = (1, size)
            wait = max(0.0, *((costs[i] - levels[i]) / self.rates[i] for i in (0, 1)))
            if now + wait > SECONDS:
                return self.part(requests, tokens)
            now += wait
            for i in (0, 1):
                levels[i] = min(self.depths[i], levels[i] + wait * self.rates[i]) - costs[i]
            requests, tokens = requests + 1, tokens + size
        raise AssertionError("endless")

    def part(self, requests: float, tokens: float) -> float:
        whole = [self.depths[i] + self.rates[i] * SECONDS for i in (0, 1)]
        return max(requests / whole[0], tokens / whole[1])


class Client:
    """Workers that always have a text to send."""

    def __init__(
        self,
        clock: SimulatedClock,
        provider: Provider,
        *,
        seed: int,
        mean: float,
        workers: int,
        rpm: float | None,
        tpm: float | None,
    ) -> None:
        self.clock = clock
        self.provider = provider
        self.random = random.Random(seed)
        self.mean = mean
        self.workers = workers
        self.limiter = RateLimiter(clock=clock, rpm=rpm, tpm=tpm)
        self.done = 0

    async def run(self, begin: float) -> None:
        await self.clock.sleep(begin)
        async with asyncio.TaskGroup() as group:
            for _ in range(self.workers):
                group.create_task(self.work())

    async def work(self) -> None:
        while True:
            size = text_size(self.random, self.mean)
            estimate = max(1, round(size * self.random.lognormvariate(0, 0.15)))
            tries = 0
            while not await self.attempt(size, estimate, tries):
                tries += 1
            self.done += 1

    async def attempt(self, size: int, estimate: int, tries: int) -> bool:
        with await self.limiter.acquire(estimate) as lease:
            await self.clock.sleep(self.random.uniform(0.02, 0.06))
            answer = self.provider.handle(self.clock.now(), size)
            back = self.random.uniform(0.02, 0.06)
            if answer.status == 200:
                back += self.random.lognormvariate(math.log(0.3), 0.4)
            await self.clock.sleep(back)
            limits = parse_rate_limits(answer.headers, self.clock.wall())
            if answer.status == 200:
                lease.settle(size)
                self.limiter.observe(limits, lease)
                return True
            retry_after = parse_retry_after(answer.headers, self.clock.wall())
            self.limiter.throttled(lease, Refusal(retry_after, limits=limits))
        wait = 0.5 * 2 ** min(tries, 5) if retry_after is None else retry_after
        await self.clock.sleep(wait + self.random.uniform(0, 0.5))
        return False


def text_size(rng: random.Random, mean: float, sigma: float = 0.7) -> int:
    """Draw the tokens of a text: log-normal, at most what the provider ever accepts."""
    return max(1, min(int(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)), int(TPM / 60 * 3)))


@dataclass
class Outcome:
    throughput: float
    refused: float
    each: list[int]


def simulate(
    seed: int,
    mean: float,
    *,
    clients: int = 1,
    rpm: float | None = RPM,
    tpm: float | None = TPM,
    headers: bool = True,
    retry_after: str = "none",
    workers: int = 32,
    depths_s: tuple[float, float] = (1.0, 5.0),
    begins: Sequence[float] = (),
) -> Outcome:
    provider = Provider(headers=headers, retry_after=retry_after, depths_s=depths_s)

    async def main(clock: SimulatedClock) -> list[int]:
        all_clients = [
            Client(clock, provider, seed=100 * seed + i, mean=mean, workers=workers, rpm=rpm, tpm=tpm)
            for i in range(clients)
        ]
        try:
            async with asyncio.timeout(SECONDS):
                await asyncio.gather(
                    *(
                        client.run(begin)
                        for client, begin in itertools.zip_longest(all_clients, begins, fillvalue=0.0)
                    )
                )
        except TimeoutError:
            pass
        return [client.done for client in all_clients]

    each = run_simulated(main)
    rng = random.Random(seed)
    possible = provider.possible(iter(lambda: text_size(rng, mean), -1))
    total = provider.accepted + provider.refused
    return Outcome(
        throughput=provider.part(provider.accepted, provider.tokens) / possible,
        refused=provider.refused / total,
        each=each,
    )


HIGHER = (6_000.0, 1_000_000.0)
EQUAL = (RPM, TPM)
UNKNOWN = (None, None)
SIZES = (50, 160, 400)
SEEDS = (1, 2)


def cases(*axis: Any) -> list[tuple[Any, ...]]:
    """Seeds, sizes and the values of an axis: every combination at night, otherwise each value once."""
    if NIGHTLY:
        return list(itertools.product(SEEDS, SIZES, axis))
    return [(1, SIZES[number % len(SIZES)], value) for number, value in enumerate(axis)]


@pytest.mark.parametrize(("seed", "mean", "limits"), cases(EQUAL, HIGHER, UNKNOWN))
def test_one_client_with_correct_headers(
    seed: int, mean: float, limits: tuple[float | None, float | None]
) -> None:
    """At least 98 % of the possible throughput, at most 1 of 200 refused."""
    outcome = simulate(seed, mean, rpm=limits[0], tpm=limits[1])
    assert outcome.throughput >= 0.98, outcome
    assert outcome.refused <= 1 / 200, outcome


@pytest.mark.parametrize(("seed", "mean", "retry_after"), cases("none", "seconds", "milliseconds"))
def test_four_clients_without_coordination(seed: int, mean: float, retry_after: str) -> None:
    """At least 97 %, at most 1 of 50 refused, and the least gets seven tenths of its share."""
    outcome = simulate(seed, mean, clients=4, retry_after=retry_after)
    assert outcome.throughput >= 0.97, outcome
    assert outcome.refused <= 1 / 50, outcome
    assert min(outcome.each) >= 0.7 * sum(outcome.each) / 4, outcome


MINUTE = (60.0, 60.0)


@pytest.mark.parametrize(("seed", "mean", "clients"), cases(1, 4, 8))
def test_the_bank_of_a_minute_is_spent_by_all_and_overspent_by_none(
    seed: int, mean: float, clients: int
) -> None:
    """All begin at the same moment, and see the same full bucket."""
    outcome = simulate(seed, mean, clients=clients, depths_s=MINUTE)
    assert outcome.throughput >= 0.97, outcome
    assert outcome.refused <= clients / 200, outcome
    assert min(outcome.each) >= 0.6 * sum(outcome.each) / clients, outcome


@pytest.mark.parametrize(("seed", "mean", "depths_s"), cases((1.0, 5.0), (5.0, 5.0), MINUTE))
def test_a_newcomer_gets_its_share_of_a_client_that_was_alone(
    seed: int, mean: float, depths_s: tuple[float, float]
) -> None:
    """It begins after half of the time, when the bank is gone, so half of its share is a quarter of all since."""
    outcome = simulate(seed, mean, clients=2, depths_s=depths_s, begins=(0.0, SECONDS / 2))
    assert outcome.throughput >= 0.96, outcome
    assert outcome.refused <= 1 / 100, outcome
    whole = sum(outcome.each) * SECONDS / 2 / (SECONDS + depths_s[1])
    assert outcome.each[1] >= 0.3 * whole, outcome


@pytest.mark.parametrize(
    ("seed", "mean", "case"),
    cases(("none", HIGHER), ("seconds", HIGHER), ("none", UNKNOWN), ("seconds", UNKNOWN)),
)
def test_refusals_without_headers(
    seed: int, mean: float, case: tuple[str, tuple[float | None, float | None]]
) -> None:
    """At least 90 % and at most 1 of 20 refused, with the limit unknown or configured ten times too high."""
    retry_after, (rpm, tpm) = case
    outcome = simulate(seed, mean, rpm=rpm, tpm=tpm, headers=False, retry_after=retry_after, workers=16)
    assert outcome.throughput >= 0.90, outcome
    assert outcome.refused <= 1 / 20, outcome


@pytest.mark.parametrize("mean", SIZES if NIGHTLY else (160,))
def test_a_correct_configured_limit_needs_no_headers(mean: float) -> None:
    """A large text may still turn out larger than estimated."""
    outcome = simulate(3, mean, headers=False)
    assert outcome.throughput >= 0.98, outcome
    assert outcome.refused <= 1 / 200, outcome
