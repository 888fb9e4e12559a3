"""Rate limits through whole clients in simulated time: one emulated provider, several clients with one key.

`run` plays a `Scenario` and returns a `Report`. The provider keeps its own books (`tests.support.faults.quota`), and
every figure of a report is taken from them or from what callers got; nothing is asked of llmopt.

Each client stands for a process: it shares nothing with the others but the event loop and its clock. Requests reach the
provider in memory, after the time that they take to get there. The provider decides by the moment of that arrival, also
while the loop is blocked, as a server does that is not blocked with it.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final

import httpx
from attrs import field, frozen

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.faults import Answer, RateLimited, Request, inputs_of, json_answer, tokens_of
from tests.support.faults.quota import Headers, Hint

RPM, TPM = 1_200.0, 300_000.0
Options = Callable[[int, SimulatedClock], Mapping[str, Any]]


@frozen(kw_only=True)
class Latency:
    """Seconds to the provider, and seconds until its answer is back: log-normal, by median and spread."""

    there: float = 0.02
    median: float = 0.3
    spread: float = 0.3

    def draw(self, rng: random.Random) -> tuple[float, float]:
        """Seconds there, and from there on."""
        return self.there * rng.uniform(0.5, 1.5), self.median * rng.lognormvariate(0, self.spread)


@frozen(kw_only=True)
class Texts:
    """The texts of calls: how many a call has, and the tokens of a text, log-normal by mean and spread."""

    each: int = 1
    tokens: float = 100.0
    spread: float = 0.5
    most: int = 4_000

    def draw(self, rng: random.Random, number: int) -> list[str]:
        """The texts of one call; no two are the same."""
        return [self._text(f"{number} {index} ", rng) for index in range(self.each)]

    def _text(self, start: str, rng: random.Random) -> str:
        drawn = rng.lognormvariate(math.log(self.tokens) - self.spread**2 / 2, self.spread)
        size = 4 * max(4, min(round(drawn), self.most))
        return (start + "lorem ipsum dolor sit amet " * (size // 27 + 1))[:size]


@frozen(kw_only=True)
class Scenario:
    """One provider, and clients that want more than it allows.

    Attributes:
        name: for the table.
        rpm: requests per minute that the provider allows; None for no such limit.
        tpm: tokens per minute that it allows, likewise.
        burst: seconds of inflow that its full buckets hold.
        filled: how full the buckets are at the beginning.
        windowed: whether the buckets are filled once per window, instead of steadily.
        headers: what its responses state.
        hint: where its refusals state the wait.
        names_limit: whether a refusal says which limit was reached.
        refused_at_random: part of the requests that it refuses without a reason.
        items: whether its limit of requests counts texts.
        configured: the part of the provider's limits that clients have in their configuration; None for no limits.
        busy: clients that always have a call to make.
        idle: clients that make a call every ten seconds.
        workers: calls that a busy client makes at the same time.
        latency: of the provider.
        texts: of calls.
        seconds: how long it lasts.
        measured_from: when measuring begins.
        of_refill: whether what the buckets hold at that moment is left out of what is possible.
        stalls: moments when the clients' loop is blocked, and for how long.
        model: the reference of the model; the plugin of its provider is used.
        joins: seconds within which the clients start.
        entry: further keys of the provider's entry in the configuration.
        options: further arguments of the client with this number.
        seed: of everything random.
    """

    name: str = ""
    rpm: float | None = RPM
    tpm: float | None = TPM
    burst: float | Mapping[str, float] = 60.0
    filled: float = 1.0
    windowed: bool = False
    headers: Headers = "honest"
    hint: Hint = "headers"
    names_limit: bool = True
    refused_at_random: float = 0.0
    items: bool = False
    configured: float | None = None
    busy: int = 1
    idle: int = 0
    workers: int = 64
    latency: Latency = Latency()
    texts: Texts = Texts()
    seconds: float = 75.0
    measured_from: float = 0.0
    of_refill: bool = False
    stalls: Sequence[tuple[float, float]] = ()
    model: str = "openai/text-embedding-3-small"
    joins: float = 1.0
    entry: Mapping[str, Any] = field(factory=dict)
    options: Options = lambda _number, _clock: {}
    seed: int = 1


@frozen(kw_only=True)
class Report:
    """What a scenario came to, by the provider's books.

    Attributes:
        share_of_possible: what was admitted from ``measured_from`` on, as a part of what the narrower limit allows.
        refused: part of all requests that a limit refused; random refusals are not counted.
        lost: calls that failed.
        least_share: what the busy client with the fewest admitted requests got, as a part of an even share.
        seconds: until the end, or until all work was done.
        admitted: requests that were admitted, in all.
        errors: names of the errors that callers got, with their numbers.
    """

    share_of_possible: float
    refused: float
    lost: int
    least_share: float
    seconds: float
    admitted: int
    errors: Mapping[str, int] = field(factory=dict)


class _Received(Request):
    """A request whose body is parsed once."""

    @cached_property
    def _parsed(self) -> Any:
        return super().json()

    def json(self) -> Any:
        return self._parsed


_ROW: Final = {"object": "embedding", "embedding": "AACAPwAAAAA="}


def _answer(request: Request) -> Answer:
    """Answer with the same vector for every text: making one for each would take half of the time."""
    inputs = inputs_of(request)
    if request.path.endswith(":batchEmbedContents"):
        return json_answer({"embeddings": [{"values": [1.0, 0.0]}] * len(inputs)})
    tokens = sum(map(tokens_of, inputs))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    data = [{**_ROW, "index": index} for index in range(len(inputs))]
    return json_answer({"object": "list", "data": data, "model": request.json()["model"], "usage": usage})


class Provider:
    """The emulated provider: decides in the order of arrival, and counts what the judge needs.

    Attributes:
        books: its buckets, grants and refusals.
        admitted: admitted requests by client.
    """

    def __init__(self, scenario: Scenario, clock: SimulatedClock) -> None:
        self._arrival = clock.now()
        self.books = RateLimited(
            _answer,
            rpm=scenario.rpm,
            tpm=scenario.tpm,
            burst=scenario.burst,
            windowed=scenario.windowed,
            clock=lambda: self._arrival,
            headers=scenario.headers,
            hint=scenario.hint,
            names_limit=scenario.names_limit,
            refused_at_random=scenario.refused_at_random,
            items=scenario.items,
            seed=scenario.seed,
        )
        for bucket in self.books.buckets.values():
            bucket.fill(scenario.filled, clock.now())
        self._latency = scenario.latency
        self._clock = clock
        self.admitted: dict[int, int] = {}

    def transport(self, client: int, rng: random.Random) -> httpx.AsyncBaseTransport:
        """The transport of one client."""

        async def handle(request: httpx.Request) -> httpx.Response:
            body = await request.aread()
            there, back = self._latency.draw(rng)
            arrival = self._clock.now() + there
            await self._clock.sleep(there)
            answer = self._answer(request, body, arrival, client)
            if answer.status == 429:
                back = there
            await self._clock.sleep(max(0.0, arrival + back - self._clock.now()))
            headers = [(str(name), str(value)) for name, value in answer.headers]
            return httpx.Response(answer.status, headers=headers, content=answer.body)

        return httpx.MockTransport(handle)

    def _answer(self, request: httpx.Request, body: bytes, arrival: float, client: int) -> Answer:
        self._arrival = max(self._arrival, arrival)
        received = _Received(
            request.method,
            request.url.raw_path.decode(),
            tuple(request.headers.items()),
            body,
            connection=1,
            nth=1,
            time=arrival,
        )
        answer = self.books(received)
        assert isinstance(answer, Answer)
        if answer.status == 200:
            self.admitted[client] = self.admitted.get(client, 0) + 1
        return answer

    def levels(self) -> dict[str, float]:
        """What the buckets hold now."""
        self._arrival = max(self._arrival, self._clock.now())
        return self.books.levels()


class _Users:
    """The callers of all clients, and what they got."""

    def __init__(self, scenario: Scenario, clock: SimulatedClock, provider: Provider) -> None:
        self._scenario = scenario
        self._clock = clock
        self._numbers = itertools.count()
        self.errors: dict[str, int] = {}
        self.clients = [self._client(number, provider) for number in range(scenario.busy + scenario.idle)]

    def _client(self, number: int, provider: Provider) -> llmopt.AsyncClient:
        scenario = self._scenario
        entry: dict[str, Any] = {
            "base_url": "https://provider.example/v1",
            "api_key": "sk-simulated",
            "max_concurrency": scenario.workers,
            "pool_size": scenario.workers,
        }
        if scenario.configured is not None:
            limits = {"rpm": scenario.rpm, "tpm": scenario.tpm}
            entry |= {
                name: limit * scenario.configured for name, limit in limits.items() if limit is not None
            }
        config = {"providers": {scenario.model.partition("/")[0]: entry | dict(scenario.entry)}}
        transport = provider.transport(number, random.Random(f"{scenario.seed} transport {number}"))
        options = {"cache": "off", **scenario.options(number, self._clock)}
        return llmopt.AsyncClient(config, transport=transport, clock=self._clock, **options)

    async def run(self, number: int, rng: random.Random) -> None:
        """The callers of one client: they stop when they are cancelled."""
        await self._clock.sleep(self._scenario.joins * rng.random())
        if number < self._scenario.busy:
            await asyncio.gather(*(self._work(number, rng) for _ in range(self._scenario.workers)))
        while True:
            await self.call(number, self._scenario.texts, rng)
            await self._clock.sleep(10.0)

    async def _work(self, number: int, rng: random.Random) -> None:
        while True:
            await self.call(number, self._scenario.texts, rng)

    async def call(self, number: int, texts: Texts, rng: random.Random) -> None:
        """One call; it counts an error."""
        try:
            await self.clients[number].embed(self._scenario.model, texts.draw(rng, next(self._numbers)))
        except (
            llmopt.ProviderError,
            llmopt.TransportError,
            llmopt.LocalRejection,
            llmopt.PartialFailure,
        ) as error:
            name = type(error).__name__
            self.errors[name] = self.errors.get(name, 0) + 1
            # A caller that fails at once must not loop without any time passing.
            await self._clock.sleep(0.01)

    async def aclose(self) -> None:
        """Close all clients."""
        for client in self.clients:
            await client.aclose()


def run(scenario: Scenario) -> Report:
    """Play a scenario."""

    async def main(clock: SimulatedClock) -> Report:
        provider = Provider(scenario, clock)
        users = _Users(scenario, clock, provider)
        tasks = [
            asyncio.create_task(users.run(number, random.Random(f"{scenario.seed} calls {number}")))
            for number in range(len(users.clients))
        ]
        for at, seconds in scenario.stalls:
            asyncio.get_running_loop().call_at(clock.now() + at, clock.advance, seconds)
        began = clock.now()
        await clock.sleep(scenario.measured_from)
        since = clock.now()
        levels = dict.fromkeys(provider.levels(), 0.0) if scenario.of_refill else provider.levels()
        await clock.sleep(began + scenario.seconds - clock.now())
        until = clock.now()
        await _cancel(tasks)
        share = provider.books.share_of_possible(since, until, levels)
        report = _report(scenario, provider, users, share, until - began)
        await users.aclose()
        return report

    return run_simulated(main, limit=100_000.0)


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome


def _report(scenario: Scenario, provider: Provider, users: _Users, share: float, seconds: float) -> Report:
    books = provider.books
    admitted = [provider.admitted.get(number, 0) for number in range(scenario.busy)]
    asked = len(books.grants) + len(books.refusals)
    return Report(
        share_of_possible=share,
        refused=len(books.refusals) / max(1, asked),
        lost=sum(users.errors.values()),
        least_share=min(admitted) / max(1.0, sum(admitted) / len(admitted)),
        seconds=seconds,
        admitted=len(books.grants),
        errors=users.errors,
    )


def run_phases(scenario: Scenario, phases: Sequence[Sequence[Texts]]) -> Report:
    """Play calls that all start at once, then the next ones when these are done, with the first client.

    The report's ``seconds`` are those of the last phase.
    """

    async def main(clock: SimulatedClock) -> Report:
        provider = Provider(scenario, clock)
        users = _Users(scenario, clock, provider)
        rng = random.Random(f"{scenario.seed} calls")
        began = levels = None
        for calls in phases:
            began, levels = clock.now(), provider.levels()
            await asyncio.gather(*(users.call(0, texts, rng) for texts in calls))
        assert began is not None
        assert levels is not None
        share = provider.books.share_of_possible(began, clock.now(), levels)
        report = _report(scenario, provider, users, share, clock.now() - began)
        await users.aclose()
        return report

    return run_simulated(main, limit=100_000.0)
