"""Cached lists of models: in memory, and in a store that outlives the client; and how a list is fetched, page by page.

A store keeps what the provider sent, byte by byte: nothing is encoded, and the plugin reads it as it reads a response.

Network access goes through the engine, and files through the cache store, which may be the user's; both are awaited,
and so is the function that gives the maker of cache keys, which may read a file. All calls of a client share the
lists in memory without a lock, although `LRUCache` is not thread-safe and `peek` may be called from any thread. Both
clocks, monotonic and wall, are the engine's. Pages are read by the plugin's hook `parse_catalog`, cache keys call its
hook `build_request`, and a long list from a store is read in a worker thread.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, get_type_hints

import msgspec
from attrs import define, evolve, field, frozen

from llmopt.cache.freshness import CacheLifetime, FreshnessRules
from llmopt.cache.store import CacheItem, LRUCache, Record, SafeStore, read_record, write_record
from llmopt.compatible.models import ListedModels
from llmopt.engine.attempt import CallScope
from llmopt.engine.engine import Engine
from llmopt.engine.request import Request
from llmopt.engine.telemetry import current_scope
from llmopt.errors import InvalidResponse, LLMOptError, PluginContractError
from llmopt.operations.cache_keys import CacheKeys
from llmopt.policies.clock import Clock, Deadline
from llmopt.policies.tasks import run_in_thread
from llmopt.providers.registry import Provider
from llmopt.values.calls import CatalogCall, Settings
from llmopt.values.catalog import Catalog, CatalogPage, Model, Prices
from llmopt.values.http import Failure, HttpResponse
from llmopt.values.redaction import is_plain, redact, secrets_of

_MAX_BYTES: Final = 64 << 20
"""Of all lists in memory together, and of one page."""
_MAX_PAGES: Final = 1_000
_ETAG: Final = re.compile(r'[\x20-\x7e]{0,255}"')
_RECORD_KIND: Final = b"LOM2"
"""The second format of a stored list. One in the first format, which held encoded models, is fetched anew."""
_GROUP_PREFIX: Final = "catalog/"
_READ_IN_THREAD_BYTES: Final = 256 << 10
"""A stored list of more bytes is read in a thread, because it would block the event loop for milliseconds."""
_RULES: Final = FreshnessRules()


@define(eq=False, kw_only=True)
class CachedList:
    """The cached list of one provider, and the state of fetching it.

    Attributes:
        provider: name of the provider entry.
        key: in the store; None if the list is in memory only.
        life: age of the list, and which caller refreshes it.
        rules: how long the list is fresh and usable.
        catalog: the list, None if there is none.
        etag: entity tag for the next request, None if there is none.
        pages: the responses that hold the list.
        failure: the error of the last request and the monotonic time of it; None if it succeeded.
    """

    provider: str
    key: bytes | None = field(repr=False)
    life: CacheLifetime = field(repr=False)
    rules: FreshnessRules = field(repr=False)
    catalog: Catalog | None = None
    etag: str | None = None
    pages: Sequence[HttpResponse] = field(default=(), repr=False)
    failure: tuple[LLMOptError, float] | None = None


class _StoredHead(msgspec.Struct):
    """What is stored of a list apart from the bodies of its pages: for each its headers and its size."""

    pages: list[tuple[Mapping[str, str], int]]
    etag: str | None = None


class ModelListCache:
    """The cached lists of one client, by provider.

    Args:
        keys: gives the maker of cache keys; awaited when the first key is needed.
        store: gives the store of a provider's list, None for memory only.
        clock: source of time.
    """

    def __init__(
        self,
        keys: Callable[[], Awaitable[CacheKeys]],
        store: Callable[[Provider], SafeStore | None],
        clock: Clock,
    ) -> None:
        self._keys: Final = keys
        self._store_of: Final = store
        self._clock: Final = clock
        self._entries: Final = LRUCache[str, CachedList](
            _MAX_BYTES, lambda entry: sum(len(page.body) for page in entry.pages)
        )

    def peek(self, provider: Provider) -> CachedList | None:
        """The entry in memory, None if there is none."""
        return self._entries.get(provider.name)

    async def load(self, provider: Provider) -> CachedList:
        """The entry in memory, else from the store, else a new one without a list."""
        entry = self._entries.get(provider.name)
        if entry is not None:
            return entry
        entry = await self._read_store(provider)
        # Another call may have loaded it during the wait; both must use the same entry.
        return self._entries.get(provider.name) or self._put(entry)

    def _put(self, entry: CachedList) -> CachedList:
        self._entries.put(entry.provider, entry)
        return entry

    async def _read_store(self, provider: Provider) -> CachedList:
        key = await self._key(provider)
        ttl = provider.endpoints[0].cache_ttl
        rules = _RULES if ttl is None else evolve(_RULES, ttl_s=ttl)
        life = CacheLifetime(key or provider.name.encode(), rules, self._clock.now, self._clock.wall)
        entry = CachedList(provider=provider.name, key=key, life=life, rules=rules)
        store = self._store_of(provider)
        if key is not None and store is not None:
            (data,) = await store.get([key])
            if data is not None and not await self._read_record(provider, entry, key, data):
                await store.remove([key])
        return entry

    async def _key(self, provider: Provider) -> bytes | None:
        if self._store_of(provider) is None:
            return None
        keys = await self._keys()
        try:
            return keys.model_list(provider) if keys.stable(provider) else None
        except Exception:  # noqa: BLE001 - a plugin's hook may fail in any way; then the list is in memory only
            return None

    async def _read_record(self, provider: Provider, entry: CachedList, key: bytes, data: bytes) -> bool:
        """Fill an entry from a stored record; False if the record is damaged, too old or in another format."""
        record = read_record(_RECORD_KIND, key, data)
        if record is None or not entry.life.stored(record.created):
            return False
        try:
            head = msgspec.json.decode(record.head, type=_StoredHead)
            entry.pages = _stored_pages(head, record)
            read = partial(_read_pages, provider, entry.pages)
            entry.catalog = await run_in_thread(read) if len(data) >= _READ_IN_THREAD_BYTES else read()
        except (msgspec.MsgspecError, ValueError, LLMOptError):
            entry.life.reset()
            return False
        entry.etag = head.etag
        return True

    async def store(self, provider: Provider, entry: CachedList, fetched: FetchedList) -> Catalog:
        """Store what a provider returned, in memory and in the store.

        Returns:
            The list, with age 0.
        """
        # 304, "not modified": the cached list is as good as new (RFC 9110, 15.4.5).
        if fetched.catalog is not None or entry.catalog is None:
            catalog = fetched.catalog or Catalog(provider=entry.provider)
            _check_types(catalog)
            entry.catalog, entry.pages = catalog, fetched.pages
        entry.etag, entry.failure = fetched.etag, None
        entry.life.stored()
        catalog = entry.catalog
        self._put(entry)
        await self._write_store(provider, entry)
        return catalog

    async def _write_store(self, provider: Provider, entry: CachedList) -> None:
        store = self._store_of(provider)
        if store is None or entry.key is None:
            return
        created = self._clock.wall()
        pages = [(page.headers, len(page.body)) for page in entry.pages]
        head = msgspec.json.encode(_StoredHead(pages, entry.etag))
        body = b"".join([page.body for page in entry.pages])
        value = write_record(_RECORD_KIND, entry.key, created, head, body)
        expires_at = created + entry.rules.max_age_s
        await store.put(
            [CacheItem(key=entry.key, group=_group(provider.name), value=value, expires_at=expires_at)]
        )

    async def drop(self, provider: Provider, entry: CachedList) -> None:
        """Delete a list that may not be served any more; the entry and its ``failure`` stay."""
        had_list = entry.catalog is not None
        entry.catalog, entry.etag, entry.pages = None, None, ()
        self._put(entry)
        store = self._store_of(provider)
        if had_list and store is not None and entry.key is not None:
            await store.remove([entry.key])

    async def invalidate(self, name: str | None, stores: Iterable[SafeStore]) -> None:
        """Delete the lists of a provider under all keys and credentials, or all lists."""
        for each in [each for each, _ in self._entries.items() if name in (None, each)]:
            entry = self._entries.remove(each)
            if entry is not None:
                # A caller may be fetching for this entry at the moment.
                entry.life.reset()
                entry.catalog = entry.etag = entry.failure = None
                entry.pages = ()
        for store in stores:
            # The store is shared with the vectors, whose groups must stay.
            groups = [_group(name)] if name is not None else (await store.size()).groups
            for group in groups:
                if group.startswith(_GROUP_PREFIX):
                    await store.clear(group)


def _group(provider: str) -> str:
    return _GROUP_PREFIX + provider


def _stored_pages(head: _StoredHead, record: Record) -> list[HttpResponse]:
    pages, at = [], 0
    for headers, size in head.pages:
        body = bytes(record.body[at : at + size])
        pages.append(HttpResponse(status=200, headers=headers, body=body, received=record.created))
        at += size
    return pages


def _read_pages(provider: Provider, pages: Sequence[HttpResponse]) -> Catalog:
    """The list in stored responses.

    Raises:
        LLMOptError, ValueError: the plugin cannot read it any more.
    """
    # A response is read without the credential.
    settings = provider.endpoints[0].settings(None)
    parsed = [provider.hooks.parse_catalog(page, settings) for page in pages]
    read = [page for page in parsed if isinstance(page, CatalogPage)]
    if len(read) < len(pages):
        raise ValueError("a stored page is an error")
    return _merged(provider, read)


def _merged(provider: Provider, pages: Sequence[CatalogPage]) -> Catalog:
    """The models of all pages, each id once."""
    name, first = provider.name, pages[0].models if len(pages) == 1 else ()
    models: Sequence[Model] = first
    if not (isinstance(first, ListedModels) and first.provider == name and first.distinct):
        found: dict[str, Model] = {}
        for model in chain.from_iterable(page.models for page in pages):
            # Most plugins set the provider's name themselves, so that no model is copied here.
            own = model if model.provider == name else evolve(model, provider=name)
            # The first one wins: pages can overlap while the provider adds models.
            found.setdefault(model.id, own)
        models = tuple(found.values())
    return Catalog(provider=name, models=models, dropped=sum(page.dropped for page in pages))


_PricesTypes: Final = msgspec.defstruct("_PricesTypes", get_type_hints(Prices).items())
_model_types: Final = get_type_hints(Model) | {"prices": _PricesTypes | None, "raw": Any}
_MODELS: Final[Any] = list[msgspec.defstruct("_ModelTypes", _model_types.items())]  # type: ignore[misc]


def _check_types(catalog: Catalog) -> None:
    """Refuse a model of a plugin with a field of another type, which users would find far from its cause."""
    try:
        if not isinstance(catalog.models, ListedModels):
            msgspec.convert(catalog.models, _MODELS, from_attributes=True)
    except msgspec.ValidationError as error:
        text = f"the plugin of {catalog.provider!r} returned a model with an invalid field: {error}."
        raise PluginContractError(text, provider=catalog.provider) from None


# Fetching a list from the provider, page by page.


class ListScope(CallScope):
    """What the events about a provider's list have in common. It is a part of the call that runs, if there is one.

    Args:
        engine: of the client.
        provider: whose list it is.
    """

    def __init__(self, engine: Engine, provider: Provider) -> None:
        super().__init__(engine.telemetry, "catalog", "", provider.endpoints[0])
        call = current_scope.get()
        self._call: Final = call if isinstance(call, CallScope) and call.telemetry is self.telemetry else None

    @property
    def ids(self) -> tuple[str, Iterator[int]]:
        """Those of the call."""
        return super().ids if self._call is None else self._call.ids

    def count_request(self) -> None:
        """As a request of the call, too."""
        super().count_request()
        if self._call is not None:
            self._call.count_request()


@frozen(kw_only=True)
class FetchedList:
    """A list as a provider returned it.

    Attributes:
        catalog: the list; None for "not modified" (HTTP status 304).
        pages: the responses that hold it.
        etag: entity tag for the next request, None if there is none.
    """

    catalog: Catalog | None
    pages: Sequence[HttpResponse] = ()
    etag: str | None = None


async def fetch_model_list(
    engine: Engine,
    provider: Provider,
    *,
    deadline: Deadline,
    etag: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> FetchedList:
    """Fetch all pages of a provider's list, one after the other.

    Args:
        engine: sends the requests.
        provider: the provider.
        deadline: for all pages together.
        etag: entity tag of the cached list; the provider may then answer "not modified".
        headers: of the call.

    Raises:
        InvalidResponse: a page repeats a cursor, or there are more than 1,000 pages.
        LLMOptError: a request failed.
    """
    pages: list[CatalogPage] = []
    responses: list[HttpResponse] = []
    cursors: set[str] = set()
    call = CatalogCall(etag=etag, headers=headers)
    for _ in range(_MAX_PAGES):
        page, response = await _fetch_page(engine, provider, call, deadline)
        found = _usable_etag(response)
        if page is None:
            return FetchedList(catalog=None, etag=found or etag)
        pages.append(page)
        responses.append(response)
        if page.next_cursor is None:
            # An entity tag is valid for one page of one server only.
            single = call.cursor is None and len(provider.endpoints) == 1
            catalog = _merged(provider, pages)
            return FetchedList(catalog=catalog, pages=responses, etag=found if single else None)
        # A server that ignores the cursor returns its first page for ever.
        if page.next_cursor in cursors:
            raise _endless(provider, "a page repeats a cursor")
        cursors.add(page.next_cursor)
        call = CatalogCall(cursor=page.next_cursor, headers=headers)
    raise _endless(provider, f"there are more than {_MAX_PAGES} pages")


def _endless(provider: Provider, reason: str) -> InvalidResponse:
    return InvalidResponse(
        f"the list of models of {provider.name!r} has no end: {reason}.",
        reason="pages",
        provider=provider.name,
        sent="yes",
    )


async def _fetch_page(
    engine: Engine, provider: Provider, call: CatalogCall, deadline: Deadline
) -> tuple[CatalogPage | None, HttpResponse]:
    def parse(
        response: HttpResponse, settings: Settings
    ) -> tuple[CatalogPage | None, HttpResponse] | Failure:
        if response.status == 304:
            return None, response
        page = provider.hooks.parse_catalog(response, settings)
        if isinstance(page, Failure):
            return page
        # What is stored has no key that the server repeats, and no cookie, which may be a session of the user's.
        secrets, body = secrets_of(settings), response.body
        told = ((name, value) for name, value in response.headers.items() if name != "set-cookie")
        headers = {name: redact(value, secrets=secrets) for name, value in told}
        for secret in (each.rpartition(" ")[2] for each in secrets):
            body = body if is_plain(secret) else body.replace(secret.encode(), b"***")
        return page, evolve(response, headers=headers, body=body)

    scope = ListScope(engine, provider)
    request = Request(call=call, parse=parse, deadline=deadline, max_body=_MAX_BYTES, scope=scope)
    return await engine.run(provider, request)


def _usable_etag(response: HttpResponse) -> str | None:
    """The response's entity tag, if it can be sent back unchanged (RFC 9110, section 8.8.3)."""
    etag = response.headers.get("etag", "").strip()
    # The tag goes into a request header: other characters would be refused there, or split the header.
    return etag if _ETAG.fullmatch(etag) else None
