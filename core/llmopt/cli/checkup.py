"""One endpoint, asked for its list of models to see whether it is there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from attrs import evolve, frozen

from llmopt.cli.advice import advice_for
from llmopt.cli.exits import sentence_of
from llmopt.errors import LLMOptError

if TYPE_CHECKING:
    from llmopt.config.endpoint import Endpoint
    from llmopt.config.tree import Config
    from llmopt.providers.overview import ProviderOverview

CheckState = Literal["ok", "no key", "not asked", "failed", "cannot be used"]
_AT_ONCE: Final = 10


@frozen(kw_only=True)
class Check:
    """What was found out about one endpoint of a provider.

    Attributes:
        name: of the provider's entry.
        plugin: that serves it.
        endpoint: position among the endpoints of the entry.
        base_url: where requests go, "" for an engine inside the process.
        key: "present", "missing", "unusable" or "not needed"; "" where nobody can tell.
        key_source: where the key comes from, in words; "" if there is none.
        state: "ok" when it answered.
        models: number of models that it has, None when it did not say.
        latency_ms: time of its answer, None when there was none.
        error: what went wrong; "" if nothing did.
        advice: what to do about it.
        chosen: whether somebody configured it or asked for it by name.
        rated: models or deployments that ``rpm`` and ``tpm`` are set for by name.
        unlisted: those of them that its list of models does not have.
    """

    name: str
    plugin: str
    endpoint: int = 0
    base_url: str = ""
    key: str = ""
    key_source: str = ""
    state: CheckState = "not asked"
    models: int | None = None
    latency_ms: float | None = None
    error: str = ""
    advice: str = ""
    chosen: bool = False
    rated: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()


def check_all(
    found: Sequence[ProviderOverview], config: Config, *, offline: bool, seconds: float
) -> list[Check]:
    """Look at every endpoint of these providers, at most ten asked at once.

    Args:
        found: the providers.
        config: the configuration they come from.
        offline: whether none is asked.
        seconds: time for each.
    """
    known = [check for each in found for check in _known(each)]
    return known if offline else asyncio.run(_ask_all(known, config, seconds))


def _known(found: ProviderOverview) -> list[Check]:
    """What is known of a provider without asking anybody, for each endpoint."""
    blank = Check(name=found.name, plugin=found.plugin, chosen=found.chosen)
    if found.provider is None:
        error = found.problem.message if found.problem is not None else ""
        return [evolve(blank, state="cannot be used", error=error)]
    return [
        _with_key(evolve(blank, endpoint=each.index, base_url=each.base_url, rated=_rated(each)), each)
        for each in found.provider.endpoints
    ]


def _rated(endpoint: Endpoint) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*endpoint.rpm.by_name, *endpoint.tpm.by_name)))


def _with_key(check: Check, endpoint: Endpoint) -> Check:
    source, problem = endpoint.credential.describe(), endpoint.credential.problem
    none = source.startswith("none")
    if problem:
        check = evolve(check, key="missing" if none else "unusable", state="no key", error=problem)
    else:
        check = evolve(check, key="not needed" if none else "present")
    return check if source == "none" else evolve(check, key_source=source)


async def _ask_all(known: Sequence[Check], config: Config, seconds: float) -> list[Check]:
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(check: Check) -> Check:
        if check.state != "not asked":
            return check
        async with room:
            return await _ask(check, config, seconds)

    return list(await asyncio.gather(*map(one, known)))


async def _ask(check: Check, config: Config, seconds: float) -> Check:
    from llmopt.client.async_client import AsyncClient

    # A client of its own, that knows this endpoint alone and asks it once.
    async with AsyncClient(_alone(config, check), flags={"retry": False, "cache": False}) as client:
        started = time.monotonic()
        try:
            models = await client.list_models(check.name, deadline=seconds)
        except LLMOptError as error:
            advice = advice_for(error, check.key_source)
            return evolve(check, state="failed", error=error.message, advice=advice)
        except Exception as error:  # noqa: BLE001 - a plugin's fault is a finding as well
            return evolve(check, state="failed", error=sentence_of(error))
        passed = time.monotonic() - started
    listed = {name for model in models for name in (model.id, *model.aliases)}
    unlisted = tuple(name for name in check.rated if name not in listed)
    return evolve(
        check, state="ok", models=len(models), latency_ms=round(passed * 1000, 1), unlisted=unlisted
    )


def _alone(config: Config, check: Check) -> Config:
    entry = config.entry(check.name)
    if entry.endpoints:
        entry = evolve(entry, endpoints=(entry.endpoints[check.endpoint],))
    return evolve(config, providers={**config.providers, check.name: entry})
