"""Asking a provider for its models, page by page."""

from __future__ import annotations

from typing import Final

from attrs import evolve, frozen

from llmopt.engine.engine import Engine
from llmopt.engine.request import Request
from llmopt.errors import InvalidResponse
from llmopt.policies.deadline import Deadline
from llmopt.providers.provider import Provider
from llmopt.values.calls import CatalogCall
from llmopt.values.catalog import CatalogPage, Model
from llmopt.values.failure import Failure
from llmopt.values.http import HttpResponse
from llmopt.values.settings import Settings

_MOST_PAGES: Final = 1_000
_MOST_BYTES: Final = 64 << 20
_LONGEST_ETAG: Final = 256


@frozen(kw_only=True)
class Listing:
    """What a provider answered.

    Attributes:
        models: its models, None where they are those that were known.
        dropped: entries that could not be read.
        etag: what to ask with the next time, None where the provider gave none.
    """

    models: tuple[Model, ...] | None
    dropped: int = 0
    etag: str | None = None


@frozen(kw_only=True)
class _Answer:
    page: CatalogPage | None
    etag: str | None = None


async def all_pages(
    engine: Engine, provider: Provider, *, deadline: Deadline, etag: str | None = None
) -> Listing:
    """Every page, one after the other.

    Args:
        engine: sends the requests.
        provider: whom to ask.
        deadline: for all pages together.
        etag: of the list as it is known; what comes may be that it is the same.

    Raises:
        InvalidResponse: a page names a cursor that was there before, or there is no end of pages.
        LLMOptError: the provider could not be asked.
    """
    models: dict[str, Model] = {}
    dropped = 0
    seen: set[str] = set()
    call = CatalogCall(etag=etag)
    for _ in range(_MOST_PAGES):
        answer = await _ask(engine, provider, call, deadline)
        page = answer.page
        if page is None:
            return Listing(models=None, etag=answer.etag or etag)
        for model in page.models:
            # Most plugins pass the name on, so that no model is copied here.
            own = model if model.provider == provider.name else evolve(model, provider=provider.name)
            models.setdefault(model.id, own)
        dropped += page.dropped
        if page.next_cursor is None:
            # An etag speaks for one page, and for one server.
            alone = call.cursor is None and len(provider.endpoints) == 1
            return Listing(
                models=tuple(models.values()), dropped=dropped, etag=answer.etag if alone else None
            )
        if page.next_cursor in seen:
            raise _endless(provider, "a page names a cursor that was there before")
        seen.add(page.next_cursor)
        call = CatalogCall(cursor=page.next_cursor)
    raise _endless(provider, f"there are more than {_MOST_PAGES} pages")


def _endless(provider: Provider, why: str) -> InvalidResponse:
    return InvalidResponse(
        f"the list of models of {provider.name!r} has no end: {why}.",
        reason="pages",
        provider=provider.name,
        sent="yes",
    )


async def _ask(engine: Engine, provider: Provider, call: CatalogCall, deadline: Deadline) -> _Answer:
    def parse(response: HttpResponse, settings: Settings) -> _Answer | Failure:
        etag = _etag(response)
        if response.status == 304:
            return _Answer(page=None, etag=etag)
        found = provider.hooks.parse_catalog(response, settings)
        return found if isinstance(found, Failure) else _Answer(page=found, etag=etag)

    request = Request(call=call, parse=parse, deadline=deadline, max_body=_MOST_BYTES)
    return await engine.run(provider, request)


def _etag(response: HttpResponse) -> str | None:
    """The answer's etag, if it can be sent back as it is."""
    etag = response.headers.get("etag", "").strip()
    fit = etag.isascii() and etag.isprintable() and etag.endswith('"') and len(etag) <= _LONGEST_ETAG
    return etag if fit else None
