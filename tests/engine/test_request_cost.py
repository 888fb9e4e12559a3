"""The hook `request_cost`: providers that count texts instead of requests, through the whole client."""

from __future__ import annotations

import pytest

import llmopt
from llmopt import CostNeverFits, EmbedCall, PluginContractError, RequestCost, hookimpl
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, RateLimited
from tests.support.faults.quota import Hint

TEXTS = [f"text {number}" for number in range(1_000)]


class CountsTexts:
    """Of embeddings, each text is one request."""

    @hookimpl
    def request_cost(self, call: llmopt.Call) -> RequestCost | None:
        return RequestCost(requests=len(call.texts)) if isinstance(call, EmbedCall) else None


class CountsTokens:
    """Each request counts a thousand tokens, whatever its texts are."""

    @hookimpl
    def request_cost(self) -> RequestCost:
        return RequestCost(tokens=1_000)


class CountsWrongly:
    """It returns a number."""

    @hookimpl
    def request_cost(self) -> RequestCost:
        return 3  # type: ignore[return-value] # the point of the test


def embed_all(limits: RateLimited | None, plugin: object, clock: SimulatedClock, **options: object) -> object:
    async def run() -> tuple[float, int]:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(provider_config(server, **options), clock=clock, plugins=[plugin]) as client,
        ):
            if limits is not None:
                server.default(limits)
            started = clock.now()
            result = await client.embed("server/m", TEXTS)
            assert not result.errors
            return clock.now() - started, len(server.requests)

    return run()


@pytest.mark.parametrize(
    ("limits", "hint", "seconds", "refused"),
    [({"rpm": 3_000}, "none", 22, 0), ({}, "text", 40, 12)],
    ids=["configured", "learned"],
)
def test_a_provider_that_counts_texts_loses_none(
    limits: dict[str, float], hint: Hint, seconds: float, refused: int
) -> None:
    """150 texts in 3 s, which is 17 s for the texts that do not fit into the first window; no headers."""

    async def main(clock: SimulatedClock) -> None:
        server = RateLimited(
            rpm=3_000, burst=3.0, items=True, headers=False, hint=hint, names_limit=False, clock=clock.now
        )
        took, _ = await embed_all(server, CountsTexts(), clock, max_batch_size=100, **limits)  # type: ignore[misc]
        print(f"{took:.1f} s, {len(server.refusals)} refused")
        assert took <= seconds
        assert len(server.refusals) <= refused

    run_simulated(main)


def test_a_batch_is_cut_to_what_the_limit_of_requests_grants_at_once() -> None:
    """Without the hook it would be one request of 100 texts, which this server never takes."""

    async def main(clock: SimulatedClock) -> None:
        server = RateLimited(rpm=600, burst=6.0, items=True, headers=False, clock=clock.now)
        took, requests = await embed_all(server, CountsTexts(), clock, max_batch_size=100, rpm=600)  # type: ignore[misc]
        assert requests == 20
        assert 90 <= took <= 110
        assert not server.refusals

    run_simulated(main)


def test_the_cost_in_tokens_replaces_the_estimate() -> None:
    """Ten requests of a thousand tokens each, at six thousand a minute."""

    async def main(clock: SimulatedClock) -> None:
        took, requests = await embed_all(None, CountsTokens(), clock, max_batch_size=100, tpm=6_000)  # type: ignore[misc]
        assert requests == 10
        assert 85 <= took <= 110

    run_simulated(main)


def test_a_request_above_the_limit_is_one_clear_error() -> None:
    """A single text cannot be cut."""

    class Expensive:
        @hookimpl
        def request_cost(self) -> RequestCost:
            return RequestCost(requests=50)

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(provider_config(server, rpm=40), clock=clock, plugins=[Expensive()]) as client,
        ):
            # What the bucket holds at first may be enough; nothing waits in vain afterwards.
            with pytest.raises(CostNeverFits, match=r"counts as 50 requests.*raise rpm"):
                for _ in range(3):
                    await client.embed("server/m", ["text"])

    run_simulated(main)


def test_a_wrong_cost_names_plugin_and_hook() -> None:
    async def main(clock: SimulatedClock) -> None:
        with pytest.raises(
            PluginContractError, match="request_cost returned int; expected RequestCost or None"
        ):
            await embed_all(None, CountsWrongly(), clock)  # type: ignore[misc]

    run_simulated(main)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_a_cost_is_no_negative_number(wrong: float) -> None:
    with pytest.raises(ValueError, match="requests"):
        RequestCost(requests=wrong)
