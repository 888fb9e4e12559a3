"""Listing models: one provider page by page, many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import evolve

from llmopt.engine.engine import Engine
from llmopt.engine.request import Request
from llmopt.errors import DeadlineExceeded, InvalidResponse, LLMOptError, LocalRejection
from llmopt.policies.deadline import Deadline
from llmopt.providers.provider import Provider
from llmopt.values.calls import CatalogCall
from llmopt.values.catalog import Catalog, CatalogPage, Model

_MOST_PAGES: Final = 1_000
_MOST_BYTES: Final = 64 << 20
_AT_ONCE: Final = 10


async def list_models(engine: Engine, provider: Provider, *, deadline: Deadline) -> Catalog:
    """All models of one provider. Callers that ask at the same time share one answer.

    Raises:
        InvalidResponse: a page names a cursor that was there before, or there is no end of pages.
        LLMOptError: the provider could not be asked.
    """
    if not provider.endpoints[0].flags.coalesce:
        return await _all_pages(engine, provider, deadline=deadline)
    try:
        async with asyncio.timeout(deadline.remaining() if deadline.bounded else None):
            return await engine.flights.share(
                f"catalog of {provider.name}", lambda: _all_pages(engine, provider, deadline=deadline)
            )
    except TimeoutError:
        raise DeadlineExceeded(
            "the deadline passed while waiting for the answer.", phase="coalesce"
        ) from None
    except LocalRejection:
        # The one who asked first was turned away, or in more of a hurry.
        if deadline.expired():
            raise
        return await _all_pages(engine, provider, deadline=deadline)


async def _all_pages(engine: Engine, provider: Provider, *, deadline: Deadline) -> Catalog:
    """Every page, one after the other.

    Raises:
        InvalidResponse: a page names a cursor that was there before, or there is no end of pages.
        LLMOptError: the provider could not be asked.
    """
    models: dict[str, Model] = {}
    seen: set[str] = set()
    dropped = 0
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await _page(engine, provider, cursor, deadline)
        for model in page.models:
            # Most plugins pass the name on, so that no model is copied here.
            own = model if model.provider == provider.name else evolve(model, provider=provider.name)
            models.setdefault(model.id, own)
        dropped += page.dropped
        cursor = page.next_cursor
        if cursor is None:
            return Catalog(provider=provider.name, models=tuple(models.values()), dropped=dropped)
        if cursor in seen:
            raise _endless(provider, "a page names a cursor that was there before")
        seen.add(cursor)
    raise _endless(provider, f"there are more than {_MOST_PAGES} pages")


def _endless(provider: Provider, why: str) -> InvalidResponse:
    return InvalidResponse(
        f"the list of models of {provider.name!r} has no end: {why}.",
        reason="pages",
        provider=provider.name,
        sent="yes",
    )


async def _page(engine: Engine, provider: Provider, cursor: str | None, deadline: Deadline) -> CatalogPage:
    request = Request(
        call=CatalogCall(cursor=cursor),
        parse=provider.hooks.parse_catalog,
        deadline=deadline,
        max_body=_MOST_BYTES,
    )
    return await engine.run(provider, request)


async def batch_list_models(
    names: Iterable[str], find: Callable[[str], Provider], engine: Engine, *, deadline: Deadline
) -> Mapping[str, Catalog | LLMOptError]:
    """The models of many providers, at most ten asked at once.

    Returns:
        For each name its catalogue, or the error that is that provider's alone.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(name: str) -> Catalog | LLMOptError:
        async with room:
            try:
                return await list_models(engine, find(name), deadline=deadline)
            except LLMOptError as error:
                return error

    asked = list(dict.fromkeys(names))
    found = await asyncio.gather(*map(one, asked))
    return dict(zip(asked, found, strict=True))
