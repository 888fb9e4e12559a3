"""Lists of models in the OpenAI-compatible dialect, with the extensions that several providers share.

The dialect itself has an id and a date. The extensions are ``context_length`` and its other names, ``architecture``
with modalities, ``pricing`` in decimal strings for one token, and deprecation dates. One typed decode reads a whole list,
and each model is made when it is looked at: 5,000 models take a fifth of the time. A list with an entry of another form
is read entry by entry, so that a broken one does not spoil the others.

No I/O and no clock: dates are converted, not compared. A module-level cache keeps how to convert the few tables that
are defined here; the module keeps nothing of a response. The pipeline calls this in a worker thread for large lists.
The models of a list are made without a lock: two threads may both make the same one, and then get equal but different
objects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final, Generic, TypeVar, cast, get_args, get_origin

import msgspec
from attrs import evolve

from llmopt.reading import invalid
from llmopt.values.catalog import CatalogPage, LazyJsonObject, Model, ModelKind, Prices
from llmopt.values.error_shape import is_error
from llmopt.values.http import Failure, HttpResponse
from llmopt.values.lenient_json import decode_json

_LIST_START: Final = b"["
_QUOTE: Final = 0x22


_Entry = TypeVar("_Entry")


class _Response(msgspec.Struct, Generic[_Entry]):
    """The keys around the list."""

    data: list[_Entry] | msgspec.UnsetType | None = msgspec.UNSET
    models: list[_Entry] | msgspec.UnsetType | None = msgspec.UNSET
    error: Any = None
    has_more: Any = None
    last_id: Any = None


_Decoders = tuple[msgspec.json.Decoder[_Response[_Entry]], msgspec.json.Decoder[list[_Entry]]]


def parse_catalog(response: HttpResponse, provider: str = "") -> CatalogPage | Failure:
    """Read the models of ``{"data": [...]}``, ``{"models": [...]}`` or a bare list.

    An entry that cannot be read is left out and counted, see `CatalogPage.dropped`; a list of which no entry can be
    read is none.

    Args:
        response: the response.
        provider: name of the provider entry (``settings.provider``). Without it the core sets the name later,
            which copies every model.

    Returns:
        The page; a `Failure` if the body holds an error.

    Raises:
        InvalidResponse: the body holds no list.
    """
    if (listed := _listed(response.body, provider)) is not None:
        return listed
    try:
        decoded = decode_json(response.body, _decode_raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        decoded = _Response()
    if decoded.error:
        return Failure.from_response(response, operation="catalog")
    page = _page(decoded.data or decoded.models or [], provider, _cursor(decoded))
    if page.models or page.next_cursor is not None:
        return page
    if page.dropped:
        raise invalid(f"none of the {page.dropped} entries of the list of models can be read.", "json")
    # Raises an InvalidResponse of its own if the body is not JSON.
    if is_error(response.json):
        return Failure.from_response(response, operation="catalog")
    # Some servers write null for no models.
    if decoded.data is msgspec.UNSET and decoded.models is msgspec.UNSET:
        raise invalid("the response holds no list of models.", "json")
    return page


def _decode(body: bytes, decoders: _Decoders[_Entry]) -> _Response[_Entry]:
    # Not `body.lstrip()` alone: that copies a body of megabytes.
    if (body[:64].lstrip() or body.lstrip())[:1] == _LIST_START:
        return _Response(data=decoders[1].decode(body))
    return decoders[0].decode(body)


def _decode_raw(body: bytes) -> _Response[msgspec.Raw]:
    return _decode(body, _RAW)


def _listed(body: bytes, provider: str) -> CatalogPage | None:
    """The page whose models are made when they are looked at; None if an entry needs a closer look, or there is none."""
    try:
        decoded = _decode(body, _TYPED)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    entries = decoded.data or decoded.models or []
    names = set(map(_name, entries))
    if decoded.error or not entries or not all(names):
        return None
    models = ListedModels(body, entries, provider, distinct=len(names) == len(entries))
    return CatalogPage(models=models, next_cursor=_cursor(decoded))


class ListedModels(Sequence[Model]):
    """The models of one response, each made when it is looked at. Like a tuple, it can be compared and added to one.

    Args:
        body: the response, which holds the text of each entry.
        entries: what was decoded of each. Each has a name.
        provider: name of the provider entry.
        distinct: whether no id occurs twice.
        changes: functions that each model goes through.
    """

    __slots__ = ("_body", "_changes", "_entries", "_models", "_raws", "distinct", "provider")

    def __init__(
        self,
        body: bytes,
        entries: Sequence[EntryKeys],
        provider: str,
        *,
        distinct: bool,
        changes: tuple[Callable[[Model], Model], ...] = (),
    ) -> None:
        self._body: Final = body
        self._entries: Final = entries
        self.distinct: Final = distinct
        self.provider: Final = provider
        self._changes: Final = changes
        self._raws: list[msgspec.Raw] | None = None
        self._models: Final[list[Model | None]] = [None] * len(entries)

    def changed(self, change: Callable[[Model], Model]) -> ListedModels:
        """The same models, each changed when it is looked at, by a function that keeps its id and provider."""
        own, changes = self.provider, (*self._changes, change)
        return ListedModels(self._body, self._entries, own, distinct=self.distinct, changes=changes)

    def __len__(self) -> int:
        return len(self._models)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return tuple(map(self._get, range(*index.indices(len(self)))))
        return self._get(index)

    def __iter__(self) -> Iterator[Model]:
        return map(self._get, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, (ListedModels, tuple)) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: tuple[Model, ...]) -> tuple[Model, ...]:
        return (*self, *other)

    def __radd__(self, other: tuple[Model, ...]) -> tuple[Model, ...]:
        return (*other, *self)

    def __repr__(self) -> str:
        return f"ListedModels(<{len(self)}>, provider={self.provider!r})"

    def __reduce__(self) -> tuple[type[tuple[Model, ...]], tuple[list[Model]]]:
        return tuple, (list(self),)

    def _get(self, index: int) -> Model:
        model = self._models[index]
        if model is None:
            if self._raws is None:
                decoded = _decode_raw(self._body)
                self._raws = decoded.data or decoded.models or []
            entry = LazyJsonObject(self._raws[index])
            model = cast("Model", _model(self._entries[index], entry, self.provider))
            for change in self._changes:
                model = change(model)
            self._models[index] = model
        return model


def map_models(page: CatalogPage, change: Callable[[Model], Model]) -> CatalogPage:
    """A page with a change of each model, which is made when the model is looked at if the page allows that.

    Args:
        page: what `parse_catalog` returned.
        change: keeps the id and the provider of a model.
    """
    models = page.models
    own = models.changed(change) if isinstance(models, ListedModels) else tuple(map(change, models))
    return evolve(page, models=own)


def _page(raws: list[msgspec.Raw], provider: str, cursor: str | None = None) -> CatalogPage:
    if raws and all(memoryview(raw)[0] == _QUOTE for raw in raws):
        # A list of names alone.
        raws = [msgspec.Raw(b'{"id":%b}' % bytes(raw)) for raw in raws]
    models = tuple([model for raw in raws if (model := _model_from_raw(raw, provider)) is not None])
    return CatalogPage(models=models, next_cursor=cursor, dropped=len(raws) - len(models))


def _cursor(decoded: _Response[Any]) -> str | None:
    # OpenAI's other lists have pages with these keys and ``after``; its list of models has no pages.
    return decoded.last_id if decoded.has_more is True and isinstance(decoded.last_id, str) else None


def model_from_entry(entry: object, provider: str = "") -> Model | None:
    """Read one decoded entry of a list, for lists in another format.

    Args:
        entry: a mapping with the keys of the dialect and its usual extensions.
        provider: name of the provider entry, ``settings.provider``.

    Returns:
        The model; None if the entry has no usable id.
    """
    if not isinstance(entry, Mapping):
        return None
    return _model(_lenient(entry, EntryKeys), entry, provider)


def _model_from_raw(raw: msgspec.Raw, provider: str) -> Model | None:
    keys = _decode_keys(raw)
    return None if keys is None else _model(keys, LazyJsonObject(raw), provider)


# The keys of one entry: decoded together, or one by one if any has an unexpected type.


# ``gc=False``: thousands of short-lived objects without cycles would only make the garbage collector run.
class ArchitectureKeys(msgspec.Struct, gc=False):
    """The value of ``architecture``."""

    modality: str | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None


class PricingKeys(msgspec.Struct, gc=False):
    """The value of ``pricing``: the price of one token as a decimal string."""

    prompt: Any = None
    input: Any = None
    completion: Any = None
    output: Any = None
    input_cache_read: Any = None
    input_cache_write: Any = None


class TopProviderKeys(msgspec.Struct, gc=False):
    """The value of ``top_provider``."""

    max_completion_tokens: Any = None


class EntryKeys(msgspec.Struct, gc=False):
    """The keys that are read, with the types that most lists give them; numbers and dates may have any type.

    A typed decode builds no dictionary for an entry. An entry with another type in one of these keys is read
    key by key.
    """

    id: str | None = None
    model_id: str | None = None
    name: str | None = None
    key: str | None = None
    slug: str | None = None
    model: str | None = None
    display_name: str | None = None
    type: Any = None
    architecture: ArchitectureKeys | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None
    context_length: Any = None
    max_model_len: Any = None
    max_context_length: Any = None
    context_window: Any = None
    context_size: Any = None
    max_input_tokens: Any = None
    max_output_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_length: Any = None
    top_provider: TopProviderKeys | None = None
    pricing: PricingKeys | None = None
    aliases: tuple[str, ...] | None = None
    created: Any = None
    created_at: Any = None
    deprecation_date: Any = None
    deprecation: Any = None
    deprecated: Any = None
    shutdown_date: Any = None
    eol_date: Any = None
    expiration_date: Any = None
    replacement_model: str | None = None
    deprecation_replacement_model: str | None = None
    replaced_by: str | None = None


_keys_decoder: Final = msgspec.json.Decoder(EntryKeys)
_TYPED: Final = msgspec.json.Decoder(_Response[EntryKeys]), msgspec.json.Decoder(list[EntryKeys])
_RAW: Final = msgspec.json.Decoder(_Response[msgspec.Raw]), msgspec.json.Decoder(list[msgspec.Raw])


def _decode_keys(raw: msgspec.Raw) -> EntryKeys | None:
    """The keys of a JSON object; None if the value is not an object or cannot be read."""
    try:
        try:
            return _keys_decoder.decode(raw)
        except msgspec.ValidationError:
            # One key of an unexpected type must not cost the whole entry.
            entry = msgspec.json.decode(raw)
            return _lenient(entry, EntryKeys) if isinstance(entry, dict) else None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


_Keys = TypeVar("_Keys", bound=msgspec.Struct)


def _lenient(table: Mapping[str, Any], kind: type[_Keys]) -> _Keys:
    """The keys of a table, without the values of a wrong type."""
    keys = kind()
    for name, convert in _converters(kind):
        value = table.get(name)
        if value is not None:
            setattr(keys, name, convert(value))
    return keys


@cache
def _converters(kind: type[msgspec.Struct]) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    return [(key.name, _converter(key.type)) for key in msgspec.structs.fields(kind)]


def _converter(wanted: Any) -> Callable[[Any], Any]:
    """A function that returns a value of the wanted type, or None."""
    if wanted is Any:
        return lambda value: value
    first = get_args(wanted)[0]
    if first is str:
        return lambda value: value if isinstance(value, str) else None
    if get_origin(first) is tuple:
        return _texts
    return lambda value: _lenient(value, first) if isinstance(value, Mapping) else None


def _texts(value: object) -> tuple[str, ...] | None:
    return (
        tuple([each for each in value if isinstance(each, str)]) if isinstance(value, list | tuple) else None
    )


# From the keys to a `Model`.

_WORDS: Final[Mapping[ModelKind, str]] = {
    "chat": "chat language llm vlm text text-generation text-to-text",
    "embedding": "embedding embeddings embed text-to-embedding",
    "rerank": "rerank reranker reranking text-to-score",
    "image": "image text-to-image",
    "audio": "audio speech transcription transcribe text-to-speech automatic-speech-recognition",
    "completion": "completion code",
    "moderation": "moderation",
    "ocr": "ocr",
    "other": "video text-to-video",
}
"""Words that lists use for the type of a model, or for its output, by the kind of model that they mean."""
_KINDS: Final[Mapping[str, ModelKind]] = {
    word: kind for kind, words in _WORDS.items() for word in words.split()
}
_BY_NAME: Final = re.compile(
    r"(?P<rerank>re-?rank)|(?P<embedding>embed)|(?P<moderation>moderation)"
    r"|(?P<audio>whisper|transcribe|(?<![a-z])tts(?![a-z]))|(?P<image>dall-e|gpt-image|stable-diffusion)"
)
"""Parts of an id that suggest the kind of a model whose list does not state it."""
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]+(?:Z|[+-][0-9:]+)?)?")
_MAX_TIMESTAMP: Final = 1 << 33
"""Seconds since 1970, in the year 2242: a larger number is in milliseconds."""
_MAX_PRICE: Final = 100_000.0
"""For a million tokens. No model costs as much: a higher number is in another unit."""
_MAX_PRICE_LENGTH: Final = 40


def _name(keys: EntryKeys) -> str | None:
    # `id` is the dialect's key; gateways and desktop servers use the others.
    return keys.id or keys.model_id or keys.slug or keys.name or keys.key or keys.model


def _model(keys: EntryKeys, raw: Mapping[str, Any], provider: str) -> Model | None:
    name = _name(keys)
    if not name:
        return None
    shown = keys.display_name or keys.name or ""
    inputs, outputs = _modalities(keys)
    kind = _kind(keys.type) or _kind(outputs)
    # The list's own statement goes before a guess by the name.
    guess = None if kind else _BY_NAME.search(name.lower())
    top = keys.top_provider
    return Model(
        id=name,
        provider=provider,
        kind=kind or (cast("ModelKind", guess.lastgroup) if guess else "unknown"),
        name="" if shown == name else shown,
        context_length=_first_count(
            keys.context_length,
            keys.max_model_len,
            keys.max_context_length,
            keys.context_window,
            keys.context_size,
            keys.max_input_tokens,
        ),
        max_output_tokens=_first_count(
            keys.max_output_tokens,
            keys.max_completion_tokens,
            keys.max_output_length,
            None if top is None else top.max_completion_tokens,
        ),
        inputs=inputs,
        outputs=outputs,
        prices=None if keys.pricing is None else _prices(keys.pricing),
        aliases=tuple(each for each in _non_empty(keys.aliases) if each != name) if keys.aliases else (),
        created=_first_count(keys.created, keys.created_at),
        deprecated=_first_date(keys.deprecation_date, keys.deprecation, keys.deprecated),
        shutdown=_first_date(keys.shutdown_date, keys.eol_date, keys.expiration_date),
        replacement=keys.replacement_model or keys.deprecation_replacement_model or keys.replaced_by or None,
        known=("kind",) if guess else (),
        raw=raw,
    )


def _kind(words: object) -> ModelKind | None:
    """The kind of a model by a word or a list of words; a model with text among its outputs is a chat model."""
    if isinstance(words, str):
        return _KINDS.get(words)
    if not words or not isinstance(words, (list, tuple)):
        return None
    if len(words) == 1 and isinstance(words[0], str):
        return _KINDS.get(words[0])
    kinds = [_KINDS[word] for word in words if isinstance(word, str) and word in _KINDS]
    # A model that writes text and images is used for chats.
    return "chat" if "chat" in kinds else next(iter(kinds), None)


def _modalities(keys: EntryKeys) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs, table = keys.input_modalities, keys.output_modalities, keys.architecture
    if table is not None:
        inputs, outputs = inputs or table.input_modalities, outputs or table.output_modalities
        if table.modality and not (inputs and outputs):
            # Such as "text+image->text".
            before, _, after = table.modality.partition("->")
            inputs, outputs = inputs or (*before.split("+"),), outputs or (*after.split("+"),)
    return _non_empty(inputs), _non_empty(outputs)


def _non_empty(words: tuple[str, ...] | None) -> tuple[str, ...]:
    if not words:
        return ()
    return tuple(filter(None, words)) if "" in words else words


def _prices(table: PricingKeys) -> Prices | None:
    input_price = _per_million(table.input if table.prompt is None else table.prompt)
    output_price = _per_million(table.output if table.completion is None else table.completion)
    if input_price is None and output_price is None:
        return None
    return Prices(
        input=input_price,
        output=output_price,
        cached_input=_per_million(table.input_cache_read),
        cache_write=_per_million(table.input_cache_write),
    )


def _per_million(value: object) -> float | None:
    """The price of a million tokens from a decimal string for one token; None for "-1", a price that varies.

    JSON numbers are ignored: some lists mean the price of one token, others that of a million.
    """
    if not isinstance(value, str) or len(value) > _MAX_PRICE_LENGTH:
        return None
    try:
        # Exact, unlike a multiplication by 1e6.
        price = float(f"{value}e6")
    except ValueError:
        try:
            # The text has an exponent already; no price has more than twelve digits.
            price = float(f"{float(value) * 1e6:.12g}")
        except ValueError:
            return None
    # OpenRouter's "-1" means that the price varies.
    return price if 0.0 <= price <= _MAX_PRICE else None


def _first_count(*values: object) -> int | None:
    """The first value that is a whole number above 0."""
    for value in values:
        if value is not None and type(value) is int and value > 0:
            return value
    return None


def _first_date(*values: object) -> str | None:
    """The first value that is a date: ISO 8601, or seconds since 1970 (converted to ISO 8601)."""
    for value in values:
        if value is None:
            continue
        if isinstance(value, str) and _DATE.fullmatch(value):
            return value
        if type(value) is int and 0 < value < _MAX_TIMESTAMP:
            return datetime.fromtimestamp(value, UTC).date().isoformat()
    return None
