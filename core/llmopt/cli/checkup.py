"""One endpoint, asked for its list of models to see whether it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, frozen

from llmopt.cli.advice import advice_for
from llmopt.cli.exits import sentence_of
from llmopt.errors import LLMOptError

if TYPE_CHECKING:
    from llmopt.config.endpoint import Endpoint
    from llmopt.providers.overview import ProviderOverview
    from llmopt.providers.provider import Provider

CheckState = Literal["ok", "no key", "not asked", "failed", "cannot be used"]
_AT_ONCE: Final = 10


@frozen(kw_only=True)
class Check:
    """What was found out about one endpoint of a provider.

    Attributes:
        name: of the provider's entry.
        plugin: that serves it.
        base_url: where requests go, "" for an engine inside the process.
        key: "present", "missing", "unusable" or "not needed"; "" where nobody can tell.
        key_source: where the key comes from, in words; "" if there is none.
        state: "ok" when it answered.
        models: number of models that it has, None when it did not say.
        latency_ms: time of its answer, None when there was none.
        error: what went wrong; "" if nothing did.
        advice: what to do about it.
        chosen: whether somebody configured it or asked for it by name.
    """

    name: str
    plugin: str
    base_url: str = ""
    key: str = ""
    key_source: str = ""
    state: CheckState = "not asked"
    models: int | None = None
    latency_ms: float | None = None
    error: str = ""
    advice: str = ""
    chosen: bool = False


def check_all(found: Sequence[ProviderOverview], *, offline: bool, seconds: float) -> list[Check]:
    """Look at every endpoint of these providers, at most ten asked at once.

    Args:
        found: the providers.
        offline: whether none is asked.
        seconds: time for each.
    """
    return asyncio.run(_all(found, offline=offline, seconds=seconds))


async def _all(found: Sequence[ProviderOverview], *, offline: bool, seconds: float) -> list[Check]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(provider: Provider, endpoint: Endpoint, known: Check) -> Check:
        if known.state != "not asked" or offline:
            return known
        async with room:
            return await _ask(provider, endpoint, known, seconds)

    pending: list[asyncio.Future[Check]] = []
    for each in found:
        if each.provider is None:
            pending.append(_done(_unusable(each)))
            continue
        for endpoint in each.provider.endpoints:
            known = _known(each, endpoint)
            pending.append(asyncio.ensure_future(one(each.provider, endpoint, known)))
    return list(await asyncio.gather(*pending))


def _done(check: Check) -> asyncio.Future[Check]:
    future: asyncio.Future[Check] = asyncio.get_running_loop().create_future()
    future.set_result(check)
    return future


def _unusable(found: ProviderOverview) -> Check:
    error = found.problem.message if found.problem is not None else ""
    return Check(
        name=found.name, plugin=found.plugin, state="cannot be used", error=error, chosen=found.chosen
    )


def _known(found: ProviderOverview, endpoint: Endpoint) -> Check:
    """What is known without asking anybody."""
    credential = endpoint.credential
    source = credential.describe()
    if credential.problem:
        key = "missing" if source.startswith("none") else "unusable"
    else:
        key = "not needed" if source.startswith("none") else "present"
    return Check(
        name=found.name,
        plugin=found.plugin,
        base_url=endpoint.base_url,
        key=key,
        key_source="" if source == "none" else source,
        state="no key" if credential.problem else "not asked",
        error=credential.problem,
        chosen=found.chosen,
    )


async def _ask(provider: Provider, endpoint: Endpoint, known: Check, seconds: float) -> Check:
    from llmopt.engine.engine import Engine
    from llmopt.operations.catalog import list_models
    from llmopt.providers.provider import Provider as Alone

    # Its own engine and a provider with this endpoint alone, so that each one is asked and not the first.
    engine = Engine()
    alone = Alone(provider.name, provider.plugin, provider.hooks, (endpoint,))
    passed = _stopwatch()
    try:
        models = await list_models(engine, alone, deadline=engine.deadline(seconds))
    except LLMOptError as error:
        advice = advice_for(error, known.key_source)
        return evolve(known, state="failed", error=error.message, advice=advice)
    except Exception as error:  # noqa: BLE001 - a plugin's fault is a finding as well
        return evolve(known, state="failed", error=sentence_of(error))
    finally:
        await engine.aclose()
    return evolve(known, state="ok", models=len(models), latency_ms=round(passed() * 1000, 1))


def _stopwatch() -> Callable[[], float]:
    started = time.monotonic()
    return lambda: time.monotonic() - started
