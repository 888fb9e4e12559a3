"""The lists of models that one client has at hand: in memory, above a store that outlives it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from attrs import define, evolve, field, frozen

from llmopt.cache.freshness import CacheLifetime, FreshnessRules
from llmopt.cache.store import CacheItem, LRUCache, Record, SafeStore, read_record, write_record
from llmopt.engine.engine import Engine
from llmopt.engine.request import Request
from llmopt.errors import InvalidResponse, LLMOptError, PluginContractError
from llmopt.operations.cache_keys import CacheKeys
from llmopt.policies.clock import Clock, Deadline
from llmopt.providers.registry import Provider
from llmopt.values.calls import CatalogCall, Settings
from llmopt.values.catalog import Catalog, CatalogPage, Model, decode_models, encode_models
from llmopt.values.http import Failure, HttpResponse

# Asking a provider for its models, page by page.

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


async def fetch_model_list(
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


_KIND: Final = b"LOM1"
_GROUP: Final = "catalog/"
_MANY: Final = 2_000
"""So many models take long enough to be packed that the event loop should not wait for it."""
_RULES: Final = FreshnessRules()


class _Head(msgspec.Struct):
    """What is kept of a list besides its models."""

    etag: str | None = None
    dropped: int = 0


@define(eq=False, kw_only=True)
class CachedList:
    """A provider's list, and what is known of asking for it.

    Attributes:
        provider: name of the entry.
        key: in the store; None where it is kept in memory alone.
        life: its age, and who asks for the next one.
        rules: by which it ages.
        catalog: the list as it came, None where there is none.
        etag: what to ask for a newer one with.
        size: bytes of it.
        failure: what asking failed of last, and when; None when it did not.
    """

    provider: str
    key: bytes | None = field(repr=False)
    life: CacheLifetime = field(repr=False)
    rules: FreshnessRules = field(repr=False)
    catalog: Catalog | None = None
    etag: str | None = None
    size: int = 0
    failure: tuple[LLMOptError, float] | None = None


class ModelListCache:
    """Lists of models by provider.

    Args:
        keys: gives the maker of keys; awaited once, when the first is needed.
        store: where a provider's list is kept beyond memory, None for nowhere.
        clock: the time.
    """

    def __init__(
        self,
        keys: Callable[[], Awaitable[CacheKeys]],
        store: Callable[[Provider], SafeStore | None],
        clock: Clock,
    ) -> None:
        self._keys: Final = keys
        self._store: Final = store
        self._clock: Final = clock
        self._kept: Final = LRUCache[str, CachedList](_MOST_BYTES, lambda kept: kept.size)

    def look(self, provider: Provider) -> CachedList | None:
        """What is in memory."""
        return self._kept.get(provider.name)

    async def find(self, provider: Provider) -> CachedList:
        """What is in memory or in the store; something to keep a list in where there is none."""
        kept = self._kept.get(provider.name)
        if kept is not None:
            return kept
        kept = await self._fetched(provider)
        # Another call may have been faster.
        return self._kept.get(provider.name) or self._place(kept)

    def _place(self, kept: CachedList) -> CachedList:
        self._kept.put(kept.provider, kept)
        return kept

    async def _fetched(self, provider: Provider) -> CachedList:
        key = await self._key(provider)
        ttl = provider.endpoints[0].cache_ttl
        rules = _RULES if ttl is None else evolve(_RULES, ttl_s=ttl)
        life = CacheLifetime(key or provider.name.encode(), rules, self._clock.now, self._clock.wall)
        kept = CachedList(provider=provider.name, key=key, life=life, rules=rules)
        store = self._store(provider)
        if key is not None and store is not None:
            (data,) = await store.get([key])
            if data is not None and not self._read(kept, key, data):
                await store.remove([key])
        return kept

    async def _key(self, provider: Provider) -> bytes | None:
        if self._store(provider) is None:
            return None
        keys = await self._keys()
        try:
            return keys.model_list(provider) if keys.stable(provider) else None
        except Exception:  # noqa: BLE001 - what no key can be made for is kept in memory alone
            return None

    def _read(self, kept: CachedList, key: bytes, data: bytes) -> bool:
        """Take in what was stored; False when it is not what was put there, or of no use."""
        record = read_record(_KIND, key, data)
        if record is None or not kept.life.stored(record.created):
            return False
        try:
            head, models = _record_parts(record, kept.provider)
        except (msgspec.MsgspecError, ValueError):
            kept.life.reset()
            return False
        kept.catalog = Catalog(provider=kept.provider, models=models, dropped=head.dropped)
        kept.etag, kept.size = head.etag, len(data)
        return True

    async def keep(self, provider: Provider, kept: CachedList, listing: Listing) -> Catalog:
        """Take in what a provider answered.

        Returns:
            The list, new.
        """
        if listing.models is None and kept.catalog is not None:
            given = kept.catalog
        else:
            given = Catalog(provider=kept.provider, models=listing.models or (), dropped=listing.dropped)
        await self._pack(kept, given)
        kept.etag, kept.failure = listing.etag, None
        kept.life.stored()
        self._place(kept)
        await self._store_it(provider, kept)
        return given

    async def _pack(self, kept: CachedList, given: Catalog) -> None:
        try:
            if len(given) > _MANY:
                data = await asyncio.to_thread(encode_models, given.models)
            else:
                data = encode_models(given.models)
        except ValueError as error:
            text = f"the plugin of {kept.provider!r} filled a model with what does not belong there: {error}."
            raise PluginContractError(text, provider=kept.provider) from None
        # As it will come out of the store: what nobody looks at takes no objects.
        models = decode_models(data, provider=kept.provider, count=len(given))
        kept.catalog = Catalog(provider=kept.provider, models=models, dropped=given.dropped)
        kept.size = len(data)

    async def _store_it(self, provider: Provider, kept: CachedList) -> None:
        store = self._store(provider)
        if store is None or kept.key is None or kept.catalog is None:
            return
        created = self._clock.wall()
        head = msgspec.json.encode(_Head(etag=kept.etag, dropped=kept.catalog.dropped))
        value = write_record(_KIND, kept.key, created, head, encode_models(kept.catalog.models))
        expires_at = created + kept.rules.max_age_s
        await store.put(
            [CacheItem(key=kept.key, group=_group_of(provider.name), value=value, expires_at=expires_at)]
        )

    async def drop(self, provider: Provider, kept: CachedList) -> None:
        """Let a list go that is not ours to give any more; how its asking failed is kept."""
        had = kept.catalog is not None
        kept.catalog, kept.etag, kept.size = None, None, 0
        self._place(kept)
        store = self._store(provider)
        if had and store is not None and kept.key is not None:
            await store.remove([kept.key])

    async def invalidate(self, name: str | None, stores: Iterable[SafeStore]) -> None:
        """Let a provider's list go, whoever's it is, or all of them."""
        for each in [each for each, _ in self._kept.items() if name in (None, each)]:
            kept = self._kept.remove(each)
            if kept is not None:
                # Somebody may be asking at this moment.
                kept.life.reset()
                kept.catalog = kept.etag = kept.failure = None
        for store in stores:
            groups = [_group_of(name)] if name is not None else (await store.size()).groups
            for group in groups:
                if group.startswith(_GROUP):
                    await store.clear(group)


def _group_of(provider: str) -> str:
    return _GROUP + provider


def _record_parts(record: Record, provider: str) -> tuple[_Head, Any]:
    head = msgspec.json.decode(record.head, type=_Head)
    return head, decode_models(record.body, provider=provider)
