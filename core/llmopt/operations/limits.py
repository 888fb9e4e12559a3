"""Limits that a server tells of itself: asked for before the first batch, merged with what is known.

Asked once for each endpoint and model, with one attempt outside of all pacing: the question is
worth little and must cost little. Whatever goes wrong with it, the call goes on by the plugin's
`batch_limit`; only a failure that may pass is asked again at the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import reduce
from typing import Final

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.prepare import Prepared
from llmopt.errors import LLMOptError
from llmopt.policies.deadline import Deadline
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import EmbedCall
from llmopt.values.http import HttpResponse
from llmopt.values.limits import BatchLimit

_LONGEST_S: Final = 10.0
"""A question that takes longer than this delays the call by more than its answer is worth."""
_MOST_BYTES: Final = 4 << 20
_NUMBERS: Final = ("max_items", "max_item_tokens", "max_tokens", "max_bytes")
_PASSING: Final = (408, 425, 429)
_NOTHING: Final = BatchLimit()


def merged(first: BatchLimit, second: BatchLimit) -> BatchLimit:
    """The least of each number. A server that cuts long texts is believed, whichever of the two says so."""
    if second == _NOTHING:
        return first
    least = {name: _least(getattr(first, name), getattr(second, name)) for name in _NUMBERS}
    return BatchLimit(**least, truncates=first.truncates or second.truncates)


def numbers_of(limit: BatchLimit) -> list[tuple[str, int]]:
    """The limits that are known, by name."""
    known = ((name, getattr(limit, name)) for name in _NUMBERS)
    return [(name, value) for name, value in known if value is not None]


def _least(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return first or second
    return min(first, second)


async def told_limits(
    endpoints: Iterable[LiveEndpoint], hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> BatchLimit:
    """What the endpoints tell of their limits, as one: a batch may go to any of them.

    Args:
        endpoints: of one provider.
        hooks: of its plugin.
        call: the call's options, without texts.
        deadline: of the whole call.
    """
    endpoints = tuple(endpoints)
    unasked = [endpoint for endpoint in endpoints if call.model not in endpoint.told]
    if unasked:
        await asyncio.gather(*(_learn(endpoint, hooks, call, deadline) for endpoint in unasked))
    return reduce(merged, (endpoint.told.get(call.model, _NOTHING) for endpoint in endpoints))


async def _learn(endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall, deadline: Deadline) -> None:
    # A lock belongs to one event loop, and a client may be used in several, one after the other.
    key = (call.model, asyncio.get_running_loop())
    async with endpoint.asking.setdefault(key, asyncio.Lock()):
        if call.model in endpoint.told:
            return
        found = await _ask(endpoint, hooks, call, deadline)
        if found is not None:
            endpoint.told[call.model] = found
            endpoint.asking.pop(key, None)


async def _ask(
    endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> BatchLimit | None:
    """The answer; an empty one when there is none to be had, None when there may be one later."""
    try:
        question = await _question(endpoint, hooks, call)
        if question is None:
            return _NOTHING
        response = await _send(endpoint, question, deadline)
        if 200 <= response.status < 300:
            return hooks.parse_limits(call, response, endpoint.bare)
    except LLMOptError as error:
        return None if error.retryable else _NOTHING
    return None if response.status in _PASSING or response.status >= 500 else _NOTHING


async def _question(endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall) -> Prepared | None:
    # Asked without a credential first: a token provider is called for attempts alone.
    if hooks.limits_request(call, endpoint.bare) is None:
        return None
    settings = await endpoint.settings()
    request = hooks.limits_request(call, settings)
    return None if request is None else endpoint.prepare(request, settings)


async def _send(endpoint: LiveEndpoint, question: Prepared, deadline: Deadline) -> HttpResponse:
    from llmopt.wire.request import WireRequest

    timeouts = endpoint.config.timeouts
    return await endpoint.wire.send(
        WireRequest(
            method=question.method,
            url=question.url,
            headers=question.headers,
            body=question.body,
            connect_timeout=deadline.clamp(timeouts.connect),
            pool_timeout=deadline.clamp(timeouts.pool),
            timeout=deadline.clamp(min(timeouts.catalog, _LONGEST_S)),
            max_body=_MOST_BYTES,
        )
    )
