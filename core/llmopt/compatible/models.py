"""One entry of a list of models, as the common dialect and those who extend it write it.

The dialect itself says an id and a date. What is read beyond that are the extensions that several
providers share: ``context_length`` and its other names, ``architecture`` with modalities, ``pricing``
in decimal strings for one token, dates of deprecation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final, TypeVar, cast, get_args, get_origin

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.values.catalog import CatalogPage, LazyJsonObject, Model, ModelKind, Prices
from llmopt.values.http import HttpResponse

# The keys of an entry of a list of models that are looked at, read in one go or, if need be, one by one.


class ArchitectureKeys(msgspec.Struct, gc=False):
    """The key of that name."""

    modality: str | None = None
    input_modalities: tuple[str, ...] | None = None
    output_modalities: tuple[str, ...] | None = None


class PricingKeys(msgspec.Struct, gc=False):
    """The key of that name. What one token costs is text, if it is said so that it can be told what it is for."""

    prompt: Any = None
    input: Any = None
    completion: Any = None
    output: Any = None
    input_cache_read: Any = None
    input_cache_write: Any = None


class TopProviderKeys(msgspec.Struct, gc=False):
    """The key of that name."""

    max_completion_tokens: Any = None


class EntryKeys(msgspec.Struct, gc=False):
    """The keys that are looked at, as most lists write them; numbers and dates may be anything.

    What is of these types is read in one go, without a table for each brace. An entry that has something
    else in one of them is gone through key by key.
    """

    id: str | None = None
    model_id: str | None = None
    name: str | None = None
    key: str | None = None
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


_Loose: Final = msgspec.defstruct(
    "_Loose", [(key.name, Any, None) for key in msgspec.structs.fields(EntryKeys)]
)
"""The same keys, with anything in them."""
_decoder: Final = msgspec.json.Decoder(EntryKeys)
_loose_decoder: Final = msgspec.json.Decoder(_Loose)


def keys_of(raw: msgspec.Raw) -> EntryKeys | None:
    """The keys of a JSON object, None where it is none or one of them cannot be read."""
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError:
        return _keys_of_other_types(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _keys_of_other_types(raw: msgspec.Raw) -> EntryKeys | None:
    try:
        return keys_in(msgspec.structs.asdict(_loose_decoder.decode(raw)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def keys_in(table: Mapping[str, Any]) -> EntryKeys:
    """The keys of a table."""
    return _loosely(table, EntryKeys)


_Keys = TypeVar("_Keys", bound=msgspec.Struct)


def _loosely(table: Mapping[str, Any], kind: type[_Keys]) -> _Keys:
    """The keys of a kind, without what is of another type; of a list what is text."""
    found = kind()
    for name, fit in _fits(kind):
        value = table.get(name)
        if value is not None:
            setattr(found, name, fit(value))
    return found


@cache
def _fits(kind: type[msgspec.Struct]) -> Sequence[tuple[str, Callable[[Any], Any]]]:
    return [(key.name, _fit(key.type)) for key in msgspec.structs.fields(kind)]


def _fit(wanted: Any) -> Callable[[Any], Any]:
    if wanted is Any:
        return lambda value: value
    first = get_args(wanted)[0]
    if first is str:
        return lambda value: value if isinstance(value, str) else None
    if get_origin(first) is tuple:
        return _texts
    return lambda value: _loosely(value, first) if isinstance(value, Mapping) else None


def _texts(value: object) -> tuple[str, ...] | None:
    return (
        tuple([each for each in value if isinstance(each, str)]) if isinstance(value, list | tuple) else None
    )


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
"""Words for the type of a model, or for what it gives, by what such a model is for."""
_KINDS: Final[Mapping[str, ModelKind]] = {
    word: kind for kind, words in _WORDS.items() for word in words.split()
}
_BY_NAME: Final = re.compile(
    r"(?P<rerank>re-?rank)|(?P<embedding>embed)|(?P<moderation>moderation)"
    r"|(?P<audio>whisper|transcribe|(?<![a-z])tts(?![a-z]))|(?P<image>dall-e|gpt-image|stable-diffusion)"
)
"""Parts of an id that tell what a model is for where its list does not."""
_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}(?:[T ][0-9:.]+(?:Z|[+-][0-9:]+)?)?")
_LAST_SECOND: Final = 1 << 33
_DEAREST: Final = 100_000.0
"""More than anybody asks for a million tokens: such a number is meant in another unit."""
_LONGEST_PRICE: Final = 40


def model_from_raw(raw: msgspec.Raw, provider: str) -> Model | None:
    """The model that a JSON value describes, None when it has no usable id."""
    found = keys_of(raw)
    return None if found is None else _model(found, LazyJsonObject(raw), provider)


def model_from_table(entry: object, provider: str = "") -> Model | None:
    """The model that a table describes, None when it has no usable id."""
    if not isinstance(entry, Mapping):
        return None
    return _model(keys_in(entry), entry, provider)


def _model(found: EntryKeys, raw: Mapping[str, Any], provider: str) -> Model | None:
    # The common name of the id, then those of gateways and desktop servers.
    name = found.id or found.model_id or found.name or found.key
    if not name:
        return None
    shown = found.display_name or found.name or ""
    inputs, outputs = _modalities(found)
    kind = kind_of(found.type) or kind_of(outputs)
    guess = None if kind else _BY_NAME.search(name.lower())
    top = found.top_provider
    return Model(
        id=name,
        provider=provider,
        kind=kind or (cast("ModelKind", guess.lastgroup) if guess else "unknown"),
        name="" if shown == name else shown,
        context_length=whole(
            found.context_length,
            found.max_model_len,
            found.max_context_length,
            found.context_window,
            found.context_size,
            found.max_input_tokens,
        ),
        max_output_tokens=whole(
            found.max_output_tokens,
            found.max_completion_tokens,
            found.max_output_length,
            None if top is None else top.max_completion_tokens,
        ),
        inputs=inputs,
        outputs=outputs,
        prices=None if found.pricing is None else _prices(found.pricing),
        aliases=tuple(each for each in _words(found.aliases) if each != name) if found.aliases else (),
        created=whole(found.created, found.created_at),
        deprecated=iso_date(found.deprecation_date, found.deprecation, found.deprecated),
        shutdown=iso_date(found.shutdown_date, found.eol_date, found.expiration_date),
        replacement=found.replacement_model
        or found.deprecation_replacement_model
        or found.replaced_by
        or None,
        known=("kind",) if guess else (),
        raw=raw,
    )


def kind_of(words: object) -> ModelKind | None:
    """What a model is for, by a word or a list of words; one that gives text among others is for chats."""
    if isinstance(words, str):
        return _KINDS.get(words)
    if not words or not isinstance(words, (list, tuple)):
        return None
    if len(words) == 1 and isinstance(words[0], str):
        return _KINDS.get(words[0])
    found = [_KINDS[word] for word in words if isinstance(word, str) and word in _KINDS]
    return "chat" if "chat" in found else next(iter(found), None)


def _modalities(found: EntryKeys) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs, table = found.input_modalities, found.output_modalities, found.architecture
    if table is not None:
        inputs, outputs = inputs or table.input_modalities, outputs or table.output_modalities
        if table.modality and not (inputs and outputs):
            # Such as "text+image->text".
            before, _, after = table.modality.partition("->")
            inputs, outputs = inputs or (*before.split("+"),), outputs or (*after.split("+"),)
    return _words(inputs), _words(outputs)


def _words(found: tuple[str, ...] | None) -> tuple[str, ...]:
    if not found:
        return ()
    return tuple(filter(None, found)) if "" in found else found


def _prices(table: PricingKeys) -> Prices | None:
    sent = _for_a_million(table.input if table.prompt is None else table.prompt)
    given = _for_a_million(table.output if table.completion is None else table.completion)
    if sent is None and given is None:
        return None
    return Prices(
        input=sent,
        output=given,
        cached_input=_for_a_million(table.input_cache_read),
        cache_write=_for_a_million(table.input_cache_write),
    )


def _for_a_million(value: object) -> float | None:
    """A decimal string for one token, for a million; None for "-1", which means that it varies.

    Numbers are left alone: some mean a token by them and some a million.
    """
    if not isinstance(value, str) or len(value) > _LONGEST_PRICE:
        return None
    try:
        # Exact, which a multiplication is not.
        found = float(f"{value}e6")
    except ValueError:
        try:
            # With an exponent of its own; twelve digits are more than any price has.
            found = float(f"{float(value) * 1e6:.12g}")
        except ValueError:
            return None
    return found if 0.0 <= found <= _DEAREST else None


def whole(*values: object) -> int | None:
    """The first of these that is a whole number above 0."""
    for value in values:
        if value is not None and type(value) is int and value > 0:
            return value
    return None


def iso_date(*values: object) -> str | None:
    """The first of these that is a date: ISO 8601, or seconds since 1970."""
    for value in values:
        if value is None:
            continue
        if isinstance(value, str) and _DATE.fullmatch(value):
            return value
        if type(value) is int and 0 < value < _LAST_SECOND:
            return datetime.fromtimestamp(value, UTC).date().isoformat()
    return None


# Answers with a list of models: from bytes to entries, each by itself, so that a bad one spoils only itself.

_BRACKET: Final = b"["


class _Answer(msgspec.Struct):
    """What stands around the list. Its entries are only split from each other."""

    data: list[msgspec.Raw] | None = None
    models: list[msgspec.Raw] | None = None
    error: Any = None
    has_more: Any = None
    last_id: Any = None


_answer: Final = msgspec.json.Decoder(_Answer)
_entries: Final = msgspec.json.Decoder(list[msgspec.Raw])


def read_page(response: HttpResponse, provider: str) -> CatalogPage | None:
    """The models of ``{"data": [...]}``, ``{"models": [...]}`` or a bare list.

    Returns:
        The page; None when the object carries a true ``error``.

    Raises:
        InvalidResponse: the answer holds no list.
    """
    body = response.body
    try:
        if (body[:64].lstrip() or body.lstrip())[:1] == _BRACKET:
            return _page(_entries.decode(body), provider)
        answer = _answer.decode(body)
        if answer.error:
            return None
        listed = answer.models if answer.data is None else answer.data
        if listed is not None:
            return _page(listed, provider, _cursor(answer))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        # It raises if it is no JSON, and says in what way.
        value = response.json
        if isinstance(value, dict) and value.get("error"):
            return None
    raise InvalidResponse("the answer holds no list of models.", reason="json", sent="yes")


def _page(raws: list[msgspec.Raw], provider: str, cursor: str | None = None) -> CatalogPage:
    models = tuple([model for raw in raws if (model := model_from_raw(raw, provider)) is not None])
    return CatalogPage(models=models, next_cursor=cursor, dropped=len(raws) - len(models))


def _cursor(answer: _Answer) -> str | None:
    return answer.last_id if answer.has_more is True and isinstance(answer.last_id, str) else None
