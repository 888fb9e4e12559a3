"""Lists of models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, overload

import msgspec
from attrs import field, frozen

from llmopt.values.secret import repr_size

# What a model costs.


@frozen(kw_only=True)
class Prices:
    """The prices of a model, without tiers, discounts and what is not counted in tokens.

    Attributes:
        input: for tokens sent, in ``currency`` per ``per`` tokens; None when not known, 0.0 when free.
        output: for tokens generated, likewise. Embeddings have none.
        cached_input: for tokens sent that the provider had in its cache.
        cache_write: for tokens sent that it puts there.
        currency: ISO 4217.
        per: number of tokens that the prices are for.
    """

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    cache_write: float | None = None
    currency: str = "USD"
    per: int = 1_000_000


ModelKind = Literal[
    "chat", "embedding", "rerank", "image", "audio", "moderation", "completion", "ocr", "other", "unknown"
]


@frozen(kw_only=True)
class Model:
    """One model of a provider.

    Attributes:
        id: as the provider names it, and as a request must.
        provider: name of the provider entry; filled in by the core.
        kind: what it is for; "unknown" when neither the provider nor its plugin knows.
        name: a name for people, or "".
        context_length: tokens of input and output together, as the provider counts; None when not known.
        max_output_tokens: most tokens of an answer, or None.
        dimensions: length of its vectors when none is asked for, or None.
        inputs: what it takes, such as "text" and "image"; empty when not known.
        outputs: what it gives, likewise.
        prices: what it costs, None when not known.
        aliases: other ids of the same model.
        created: seconds since the epoch, or None.
        deprecated: date of its deprecation, ISO 8601, or None.
        shutdown: date after which it does not answer, ISO 8601, or None.
        replacement: id of the model to use instead, when it is deprecated, or None.
        known: names of the fields above that the provider's list leaves out and its plugin knows.
        raw: the provider's own entry, a table that is decoded when it is looked into.
    """

    id: str
    provider: str = ""
    kind: ModelKind = "unknown"
    name: str = ""
    context_length: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    prices: Prices | None = None
    aliases: tuple[str, ...] = ()
    created: int | None = None
    deprecated: str | None = None
    shutdown: str | None = None
    replacement: str | None = None
    known: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(factory=dict, repr=False, eq=False)


@frozen(kw_only=True)
class CatalogPage:
    """One page of a list.

    Attributes:
        models: the models on it.
        next_cursor: what to ask the next page with, None on the last one.
        dropped: number of entries that could not be read and are left out.
    """

    models: tuple[Model, ...] = ()
    next_cursor: str | None = None
    dropped: int = 0


@frozen(kw_only=True)
class Catalog(Sequence[Model]):
    """The models of one provider: a sequence of `Model` in the provider's order.

    Attributes:
        provider: name of the provider entry.
        models: the models; out of a cache each becomes an object when it is looked at.
        age: seconds since the provider was asked.
        stale: whether it is older than it should be, because nobody newer could be had.
        dropped: number of entries of the provider's list that could not be read and are left out.
    """

    provider: str
    models: Sequence[Model] = field(default=(), repr=repr_size)
    age: float = 0.0
    stale: bool = False
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.models)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        found = self.models[index]
        return found if isinstance(found, (Model, tuple)) else tuple(found)


# A provider's own entry of a list: JSON that becomes a table when somebody looks into it.

_decoder: Final = msgspec.json.Decoder()


class LazyJsonObject(Mapping[str, Any]):
    """A JSON object as a mapping, decoded at the first look and kept.

    Args:
        text: the object, checked to be one; what it is a part of stays in memory with it.
    """

    __slots__ = ("_table", "_text")

    def __init__(self, text: bytes | msgspec.Raw) -> None:
        self._text: Final = text
        self._table: dict[str, Any] | None = None

    @property
    def text(self) -> bytes:
        """The JSON, as it came."""
        return bytes(self._text)

    @property
    def part(self) -> msgspec.Raw:
        """The same, not copied if it is a part of something."""
        return self._text if isinstance(self._text, msgspec.Raw) else msgspec.Raw(self._text)

    def _look(self) -> dict[str, Any]:
        if self._table is None:
            self._table = _decoded(self._text)
        return self._table

    def __getitem__(self, key: str) -> Any:
        return self._look()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._look())

    def __len__(self) -> int:
        return len(self._look())

    def __contains__(self, key: object) -> bool:
        return key in self._look()

    def __repr__(self) -> str:
        return f"LazyJsonObject(<{len(bytes(self._text))} bytes>)"

    def __reduce__(self) -> tuple[type[LazyJsonObject], tuple[bytes]]:
        return LazyJsonObject, (self.text,)


def _decoded(text: bytes | msgspec.Raw) -> dict[str, Any]:
    try:
        found = _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # Its syntax was checked when the list was split, but not every letter and number in it.
        found = json.loads(bytes(text).decode(errors="replace"))
    return found if isinstance(found, dict) else {}


# Lists of models as bytes, and back: out of a store each model becomes an object when it is looked at.
#
# The form is JSON: a list of objects that hold the fields of `Model` which are set, without the provider,
# and ``raw`` as the provider wrote it. `MODELS_FORMAT` is its version, which belongs into the key of whatever keeps it.

MODELS_FORMAT: Final = 1
"""The version of the form."""
_NOTHING: Final = msgspec.Raw(b"{}")


class _Prices(msgspec.Struct, omit_defaults=True, gc=False):
    """Prices in the store. The names are those of `Prices`."""

    input: float | None = None
    output: float | None = None
    cached_input: float | None = None
    cache_write: float | None = None
    currency: str = "USD"
    per: int = 1_000_000


class _Fields(msgspec.Struct, omit_defaults=True, gc=False):
    """What is stored of a model besides `raw`. The names are those of `Model`."""

    id: str
    kind: ModelKind = "unknown"
    name: str = ""
    context_length: int | None = None
    max_output_tokens: int | None = None
    dimensions: int | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    prices: _Prices | None = None
    aliases: tuple[str, ...] = ()
    created: int | None = None
    deprecated: str | None = None
    shutdown: str | None = None
    replacement: str | None = None
    known: tuple[str, ...] = ()


class _EncodedModel(_Fields, omit_defaults=True, gc=False):
    """A model on its way into the store."""

    raw: Any = None


class _StoredModel(_Fields, omit_defaults=True, gc=False):
    """A model in the store."""

    raw: msgspec.Raw = _NOTHING


_encoder: Final = msgspec.json.Encoder()
_split: Final = msgspec.json.Decoder(list[msgspec.Raw])
_one: Final = msgspec.json.Decoder(_StoredModel)
_PRICES: Final = tuple(each for each in _Prices.__struct_fields__)
_PLAIN: Final = tuple(each for each in _StoredModel.__struct_fields__ if each not in {"prices", "raw"})


class StoredModels(Sequence[Model]):
    """A sequence of models that were stored.

    Args:
        data: what `encode_models` gave, which is not copied.
        provider: name of the provider entry they are of.
        count: how many they are, where ``data`` was packed a moment ago: then it is not looked into
            before one of them is.

    Raises:
        ValueError: it is no such list.
    """

    __slots__ = ("_made", "_parts", "data", "provider")

    def __init__(self, data: bytes | memoryview, provider: str, count: int | None = None) -> None:
        self.data: Final = data
        self.provider: Final = provider
        self._parts: list[msgspec.Raw] | None = None
        self._made: Final[list[Model | None]] = [None] * (len(self._checked()) if count is None else count)

    def _checked(self) -> list[msgspec.Raw]:
        try:
            self._parts = _split.decode(self.data)
            if self._parts:
                # One of another form gives the whole away.
                _one.decode(self._parts[0])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no list of models: {error}") from None
        return self._parts

    def __len__(self) -> int:
        return len(self._made)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        if isinstance(index, slice):
            return tuple(map(self._look, range(*index.indices(len(self)))))
        return self._look(index)

    def __iter__(self) -> Iterator[Model]:
        return map(self._look, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (StoredModels, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"StoredModels(<{len(self)}>, provider={self.provider!r})"

    def __reduce__(self) -> tuple[type[StoredModels], tuple[bytes, str]]:
        return StoredModels, (bytes(self.data), self.provider)

    def _look(self, index: int) -> Model:
        found = self._made[index]
        if found is None:
            found = self._made[index] = _model(self._read(index), self.provider)
        return found

    def _read(self, index: int) -> _StoredModel:
        part = (self._parts or self._checked())[index]
        try:
            return _one.decode(part)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Of a store that somebody else wrote to: one entry spoils only itself.
            return _StoredModel(id=f"unreadable entry {index}")


def _model(stored: _StoredModel, provider: str) -> Model:
    costs = stored.prices
    return Model(
        provider=provider,
        prices=None if costs is None else Prices(**{name: getattr(costs, name) for name in _PRICES}),
        raw=LazyJsonObject(stored.raw),
        **{name: getattr(stored, name) for name in _PLAIN},
    )


def encode_models(models: Sequence[Model]) -> bytes | memoryview:
    """A list of models as bytes, for `decode_models`.

    Args:
        models: of one provider, whose name is left out.

    Raises:
        ValueError: a field holds something else than its annotation says.
    """
    if isinstance(models, StoredModels):
        return models.data
    try:
        return _encoder.encode([_to_encode(model) for model in models])
    except msgspec.ValidationError as error:
        raise ValueError(f"a list of models that cannot be stored: {error}") from None


def decode_models(data: bytes | memoryview, *, provider: str, count: int | None = None) -> StoredModels:
    """What `encode_models` packed; nothing but the ends of the entries is looked for yet, or not even they, see `StoredModels`.

    Raises:
        ValueError: it is no such list.
    """
    return StoredModels(data, provider, count)


def _to_encode(model: Model) -> _EncodedModel:
    # It looks at types too. Only what a plugin put into a field can be wrong, and it must show now: later nobody looks.
    found = msgspec.convert(model, _EncodedModel, from_attributes=True)
    found.raw = _raw(model.raw)
    return found


def _raw(raw: Mapping[str, Any]) -> msgspec.Raw:
    if isinstance(raw, LazyJsonObject):
        return raw.part
    try:
        return msgspec.Raw(_encoder.encode(dict(raw)))
    except (TypeError, ValueError):
        # A plugin may have put there what JSON has not.
        return _NOTHING
