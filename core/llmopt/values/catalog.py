"""Models, their prices, and lists of models.

No I/O and no clock. A model keeps the JSON text of its entry and decodes it at the first access, without a lock: two
threads may both decode the same text, and then get equal but different objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, overload

import msgspec
from attrs import field, frozen

from llmopt.values.secret import repr_size


@frozen(kw_only=True)
class Prices:
    """The prices of a model per number of tokens. Tiers, discounts and other units are not covered.

    Attributes:
        input: price of ``per`` prompt tokens in ``currency``; None if unknown, 0.0 if free.
        output: price of ``per`` generated tokens; None for embedding models.
        cached_input: price of ``per`` prompt tokens that the provider reads from its cache.
        cache_write: price of ``per`` prompt tokens that the provider writes to its cache.
        currency: ISO 4217 code.
        per: the number of tokens that a price is for.
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
        id: the name that requests must use.
        provider: name of the provider entry; set by the core.
        kind: what it is for; "unknown" if neither the provider nor its plugin says.
        name: a display name, or "".
        context_length: maximum number of prompt and generated tokens together, None if unknown.
        max_output_tokens: maximum number of generated tokens, None if unknown.
        dimensions: default length of its vectors, None if unknown.
        inputs: kinds of input, such as "text" and "image"; empty if unknown.
        outputs: kinds of output; empty if unknown.
        prices: what it costs, None if unknown.
        aliases: other ids of the same model.
        created: seconds since 1970, or None.
        deprecated: date of its deprecation, ISO 8601, or None.
        shutdown: date after which it is unavailable, ISO 8601, or None.
        replacement: id of the model to use instead of a deprecated one, or None.
        known: names of the fields above whose values come from the plugin, because the provider's list lacks them.
        raw: the provider's JSON for the model, as a mapping that is decoded at the first access.
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
    """One page of a list of models.

    Attributes:
        models: the models: a tuple, or a sequence that makes each model when it is looked at.
        next_cursor: cursor of the next page, None on the last page.
        dropped: number of entries that could not be parsed and are missing.
    """

    models: Sequence[Model] = ()
    next_cursor: str | None = None
    dropped: int = 0


@frozen(kw_only=True)
class Catalog(Sequence[Model]):
    """The models of one provider: a sequence of `Model` in the provider's order.

    Attributes:
        provider: name of the provider entry.
        models: the models. Most lists create each object at the first access.
        age: seconds since the list was fetched from the provider.
        stale: whether it is past its time to live, and was returned because a newer one is not available yet.
        dropped: number of entries of the provider's list that could not be parsed and are missing.
        known: whether the provider has no list, so that these are the models that its plugin knows.
    """

    provider: str
    models: Sequence[Model] = field(default=(), repr=repr_size)
    age: float = 0.0
    stale: bool = False
    dropped: int = 0
    known: bool = False

    def __len__(self) -> int:
        return len(self.models)

    @overload
    def __getitem__(self, index: int) -> Model: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Model, ...]: ...
    def __getitem__(self, index: int | slice) -> Model | tuple[Model, ...]:
        models = self.models[index]
        return models if isinstance(models, (Model, tuple)) else tuple(models)


# The provider's JSON for a model, decoded at the first access: most applications never read it.

_decoder: Final = msgspec.json.Decoder()


class LazyJsonObject(Mapping[str, Any]):
    """A JSON object as a mapping, decoded at the first access.

    Args:
        text: the JSON text of an object. A `msgspec.Raw` keeps the whole text that it is a part of in memory.
    """

    __slots__ = ("_decoded", "_text")

    def __init__(self, text: bytes | msgspec.Raw) -> None:
        self._text: Final = text
        self._decoded: dict[str, Any] | None = None

    @property
    def text(self) -> bytes:
        """The JSON text."""
        return bytes(self._text)

    @property
    def raw_json(self) -> msgspec.Raw:
        """The JSON text, for embedding into other JSON without a copy."""
        return self._text if isinstance(self._text, msgspec.Raw) else msgspec.Raw(self._text)

    def _fields(self) -> dict[str, Any]:
        if self._decoded is None:
            try:
                value = _decoder.decode(self._text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                # Splitting the list checked the syntax only. msgspec refuses some invalid strings that json accepts.
                value = json.loads(self.text.decode(errors="replace"))
            self._decoded = value if isinstance(value, dict) else {}
        return self._decoded

    def __getitem__(self, key: str) -> Any:
        return self._fields()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields())

    def __len__(self) -> int:
        return len(self._fields())

    def __repr__(self) -> str:
        return f"LazyJsonObject(<{len(bytes(self._text))} bytes>)"

    def __reduce__(self) -> tuple[type[LazyJsonObject], tuple[bytes]]:
        return LazyJsonObject, (self.text,)
