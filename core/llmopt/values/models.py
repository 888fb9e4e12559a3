"""Lists of models as bytes, and back: out of a store each model becomes an object when it is looked at.

The form is JSON: a list of objects that hold the fields of `Model` which are set, without the provider,
and ``raw`` as the provider wrote it. `FORMAT` is its version, which belongs into the key of whatever keeps it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, overload

import msgspec

from llmopt.values.catalog import Model, ModelKind
from llmopt.values.entry import Entry
from llmopt.values.prices import Prices

FORMAT: Final = 1
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


class _Packed(_Fields, omit_defaults=True, gc=False):
    """A model on its way into the store."""

    raw: Any = None


class _Stored(_Fields, omit_defaults=True, gc=False):
    """A model in the store."""

    raw: msgspec.Raw = _NOTHING


_encoder: Final = msgspec.json.Encoder()
_split: Final = msgspec.json.Decoder(list[msgspec.Raw])
_one: Final = msgspec.json.Decoder(_Stored)
_PRICES: Final = tuple(each for each in _Prices.__struct_fields__)
_PLAIN: Final = tuple(each for each in _Stored.__struct_fields__ if each not in {"prices", "raw"})


class Models(Sequence[Model]):
    """A sequence of models that were stored.

    Args:
        data: what `pack_models` gave, which is not copied.
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
        if not isinstance(other, (Models, tuple, list)):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Models(<{len(self)}>, provider={self.provider!r})"

    def __reduce__(self) -> tuple[type[Models], tuple[bytes, str]]:
        return Models, (bytes(self.data), self.provider)

    def _look(self, index: int) -> Model:
        found = self._made[index]
        if found is None:
            found = self._made[index] = _model(self._read(index), self.provider)
        return found

    def _read(self, index: int) -> _Stored:
        part = (self._parts or self._checked())[index]
        try:
            return _one.decode(part)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            # Of a store that somebody else wrote to: one entry spoils only itself.
            return _Stored(id=f"unreadable entry {index}")


def _model(stored: _Stored, provider: str) -> Model:
    costs = stored.prices
    return Model(
        provider=provider,
        prices=None if costs is None else Prices(**{name: getattr(costs, name) for name in _PRICES}),
        raw=Entry(stored.raw),
        **{name: getattr(stored, name) for name in _PLAIN},
    )


def pack_models(models: Sequence[Model]) -> bytes | memoryview:
    """A list of models as bytes, for `unpack_models`.

    Args:
        models: of one provider, whose name is left out.

    Raises:
        ValueError: a field holds something else than its annotation says.
    """
    if isinstance(models, Models):
        return models.data
    try:
        return _encoder.encode([_packed(model) for model in models])
    except msgspec.ValidationError as error:
        raise ValueError(f"a list of models that cannot be stored: {error}") from None


def unpack_models(data: bytes | memoryview, *, provider: str, count: int | None = None) -> Models:
    """What `pack_models` packed; nothing but the ends of the entries is looked for yet, or not even they, see `Models`.

    Raises:
        ValueError: it is no such list.
    """
    return Models(data, provider, count)


def _packed(model: Model) -> _Packed:
    # It looks at types too. Only what a plugin put into a field can be wrong, and it must show now: later nobody looks.
    found = msgspec.convert(model, _Packed, from_attributes=True)
    found.raw = _raw(model.raw)
    return found


def _raw(raw: Mapping[str, Any]) -> msgspec.Raw:
    if isinstance(raw, Entry):
        return raw.part
    try:
        return msgspec.Raw(_encoder.encode(dict(raw)))
    except (TypeError, ValueError):
        # A plugin may have put there what JSON has not.
        return _NOTHING
