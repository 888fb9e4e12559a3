"""One entry of a list of models, as the common dialect and those who extend it write it.

The dialect itself says an id and a date. What is read beyond that are the extensions that several
providers share: ``context_length`` and its other names, ``architecture`` with modalities, ``pricing``
in decimal strings for one token, dates of deprecation.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec

from llmopt.values.catalog import Model, ModelKind
from llmopt.values.entry import Entry
from llmopt.values.prices import Prices


class _Fields(msgspec.Struct):
    """The keys that are looked at. Any of them may hold anything."""

    id: Any = None
    model_id: Any = None
    name: Any = None
    key: Any = None
    display_name: Any = None
    type: Any = None
    architecture: Any = None
    input_modalities: Any = None
    output_modalities: Any = None
    context_length: Any = None
    max_model_len: Any = None
    max_context_length: Any = None
    context_window: Any = None
    context_size: Any = None
    max_input_tokens: Any = None
    max_output_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_length: Any = None
    top_provider: Any = None
    pricing: Any = None
    aliases: Any = None
    created: Any = None
    created_at: Any = None
    deprecation_date: Any = None
    deprecation: Any = None
    deprecated: Any = None
    shutdown_date: Any = None
    eol_date: Any = None
    expiration_date: Any = None
    replacement_model: Any = None
    deprecation_replacement_model: Any = None
    replaced_by: Any = None


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

_decoder: Final = msgspec.json.Decoder(_Fields)


def model_from_raw(raw: msgspec.Raw, provider: str) -> Model | None:
    """The model that a JSON value describes, None when it has no usable id."""
    try:
        found = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return _model(found, Entry(raw), provider)


def model_from_table(entry: object, provider: str = "") -> Model | None:
    """The model that a table describes, None when it has no usable id."""
    if not isinstance(entry, Mapping):
        return None
    known = {key: entry[key] for key in _Fields.__struct_fields__ if key in entry}
    return _model(_Fields(**known), entry, provider)


def _model(found: _Fields, raw: Mapping[str, Any], provider: str) -> Model | None:
    # The common name of the id, then those of gateways and desktop servers.
    name = _text(found.id, found.model_id, found.name, found.key)
    if name is None:
        return None
    shown = _text(found.display_name, found.name) or ""
    inputs, outputs = _modalities(found)
    kind = kind_of(found.type) or kind_of(outputs)
    top = found.top_provider
    guess = None if kind else _BY_NAME.search(name.lower())
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
            top.get("max_completion_tokens") if isinstance(top, dict) else None,
        ),
        inputs=inputs,
        outputs=outputs,
        prices=_prices(found.pricing) if isinstance(found.pricing, dict) else None,
        aliases=tuple(each for each in _words(found.aliases) if each != name) if found.aliases else (),
        created=whole(found.created, found.created_at),
        deprecated=iso_date(found.deprecation_date, found.deprecation, found.deprecated),
        shutdown=iso_date(found.shutdown_date, found.eol_date, found.expiration_date),
        replacement=_text(found.replacement_model, found.deprecation_replacement_model, found.replaced_by),
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


def _modalities(found: _Fields) -> tuple[tuple[str, ...], tuple[str, ...]]:
    inputs, outputs = found.input_modalities, found.output_modalities
    table = found.architecture
    if isinstance(table, dict):
        inputs = inputs or table.get("input_modalities")
        outputs = outputs or table.get("output_modalities")
        modality = table.get("modality")
        if not (inputs and outputs) and isinstance(modality, str):
            # Such as "text+image->text".
            before, _, after = modality.partition("->")
            inputs, outputs = inputs or before.split("+"), outputs or (after.split("+") if after else None)
    return _words(inputs), _words(outputs)


def _words(value: object) -> tuple[str, ...]:
    if not value or not isinstance(value, (list, tuple)):
        return ()
    if len(value) == 1 and isinstance(value[0], str) and value[0]:
        return (value[0],)
    return tuple([each for each in value if isinstance(each, str) and each])


def _prices(table: Mapping[str, Any]) -> Prices | None:
    sent = _for_a_million(table.get("prompt", table.get("input")))
    given = _for_a_million(table.get("completion", table.get("output")))
    if sent is None and given is None:
        return None
    return Prices(
        input=sent,
        output=given,
        cached_input=_for_a_million(table.get("input_cache_read")),
        cache_write=_for_a_million(table.get("input_cache_write")),
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


def _text(*values: object) -> str | None:
    """The first of these that is text, and not empty."""
    for value in values:
        if value and isinstance(value, str):
            return value
    return None
