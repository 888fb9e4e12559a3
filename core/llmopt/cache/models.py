"""Lists of models encoded as bytes, for the cache, and decoded model by model.

The encoding is a JSON list of objects with the fields of `Model` that are set, without the provider, and with ``raw``
as the provider sent it. A list of thousands of models is read quickly, because only the ends of its entries are found;
each model is decoded at the first access.

No I/O and no clock. Decoding takes no lock: two threads may both decode the same model, and then get equal but
different objects. Encoding reads the mapping that a plugin gave as ``raw``, for long lists in a worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, get_type_hints, overload

import msgspec
from attrs import NOTHING, AttrsInstance, fields

from llmopt.values.catalog import LazyJsonObject, Model, Prices

MODELS_FORMAT: Final = 1
"""Version of the encoding; cache keys contain it."""
_EMPTY_OBJECT: Final = msgspec.Raw(b"{}")


def _struct_fields(kind: type[AttrsInstance], *left_out: str) -> list[tuple[str, Any, Any]]:
    """The fields of an attrs class, for a struct: structs are decoded faster, and encoded without defaults."""
    types = get_type_hints(kind)
    return [
        (each.name, types[each.name], msgspec.NODEFAULT if each.default is NOTHING else each.default)
        for each in fields(kind)
        if each.name not in left_out
    ]


_Prices: Final = msgspec.defstruct("_Prices", _struct_fields(Prices), omit_defaults=True, gc=False)
_FIELDS: Final = [
    *_struct_fields(Model, "provider", "prices", "raw"),
    ("prices", _Prices | None, None),
]
_EncodedModel: Final = msgspec.defstruct(
    "_EncodedModel", [*_FIELDS, ("raw", Any, None)], omit_defaults=True, gc=False
)
_StoredModel: Final = msgspec.defstruct(
    "_StoredModel", [*_FIELDS, ("raw", msgspec.Raw, _EMPTY_OBJECT)], omit_defaults=True, gc=False
)
_encoder: Final = msgspec.json.Encoder()
_splitter: Final = msgspec.json.Decoder(list[msgspec.Raw])
_model_decoder: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(_StoredModel)
_PLAIN_FIELDS: Final = tuple(name for name, *_ in _FIELDS if name != "prices")


class StoredModels(Sequence[Model]):
    """A sequence of encoded models, each decoded at the first access.

    Args:
        data: the result of `encode_models`; it is not copied.
        provider: name of their provider entry.
        count: the number of models, if ``data`` was just encoded; then it is not checked, and not read before the first
            access.

    Raises:
        ValueError: ``data`` is not an encoded list of models.
    """

    __slots__ = ("_encoded", "_models", "data", "provider")

    def __init__(self, data: bytes | memoryview, provider: str, count: int | None = None) -> None:
        self.data: Final = data
        self.provider: Final = provider
        self._encoded: list[msgspec.Raw] | None = None
        self._models: Final[list[Model | None]] = [None] * (len(self._split()) if count is None else count)

    def _split(self) -> list[msgspec.Raw]:
        try:
            self._encoded = _splitter.decode(self.data)
            if self._encoded:
                # If the first entry has this form, so have the others: they were encoded together.
                _model_decoder.decode(self._encoded[0])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"not an encoded list of models: {error}") from None
        return self._encoded

    def __len__(self) -> int:
        return len(self._models)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        if isinstance(index, slice):
            return tuple(map(self._get, range(*index.indices(len(self)))))
        return self._get(index)

    def __iter__(self) -> Iterator[Model]:
        return map(self._get, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (StoredModels, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(left == right for left, right in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"StoredModels(<{len(self)}>, provider={self.provider!r})"

    def __reduce__(self) -> tuple[type[StoredModels], tuple[bytes, str]]:
        return StoredModels, (bytes(self.data), self.provider)

    def _get(self, index: int) -> Model:
        model = self._models[index]
        if model is None:
            model = self._models[index] = _model(self._decode(index), self.provider)
        return model

    def _decode(self, index: int) -> Any:
        encoded = (self._encoded or self._split())[index]
        try:
            return _model_decoder.decode(encoded)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Another program may have written to the store; a damaged entry does not affect the others.
            return _StoredModel(id=f"unreadable entry {index}")


def _model(stored: Any, provider: str) -> Model:
    prices = stored.prices
    return Model(
        provider=provider,
        prices=None if prices is None else Prices(**msgspec.structs.asdict(prices)),
        raw=LazyJsonObject(stored.raw),
        **{name: getattr(stored, name) for name in _PLAIN_FIELDS},
    )


def encode_models(models: Sequence[Model]) -> bytes | memoryview:
    """Encode a list of models as bytes, for `decode_models`.

    Args:
        models: the models of one provider, whose name is not encoded.

    Raises:
        ValueError: the value of a field has the wrong type.
    """
    if isinstance(models, StoredModels):
        return models.data
    try:
        return _encoder.encode([_to_encode(model) for model in models])
    except msgspec.ValidationError as error:
        raise ValueError(f"a model cannot be encoded: {error}") from None


def decode_models(data: bytes | memoryview, *, provider: str, count: int | None = None) -> StoredModels:
    """Decode the result of `encode_models`; the models are decoded when they are accessed, see `StoredModels`.

    Raises:
        ValueError: ``data`` is not an encoded list of models.
    """
    return StoredModels(data, provider, count)


def _to_encode(model: Model) -> object:
    # This checks the types, which plugins may have wrong. Decoding trusts them, so an error must show here.
    encoded: Any = msgspec.convert(model, _EncodedModel, from_attributes=True)
    encoded.raw = _raw(model.raw)
    return encoded


def _raw(raw: Mapping[str, Any]) -> msgspec.Raw:
    if isinstance(raw, LazyJsonObject):
        return raw.raw_json
    try:
        return msgspec.Raw(_encoder.encode(dict(raw)))
    except (TypeError, ValueError):
        # A plugin may have added values that JSON cannot express.
        return _EMPTY_OBJECT
