"""Lists of models by their shape: the common one with what each server adds, Ollama's, and TEI's ``/info``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import CatalogPage, Failure, HttpResponse, Model, Settings, compatible
from llmopt.values.catalog import ModelKind
from llmopt_plugin_local._flavours import flavour_of
from llmopt_plugin_local._limits import MODELS
from llmopt_plugin_local._requests import LISTS

_KINDS: Final[Mapping[str, ModelKind]] = {
    "embed": "embedding",
    "embedding": "embedding",
    "embeddings": "embedding",
    "rerank": "rerank",
    "reranker": "rerank",
    "classifier": "other",
    "classify": "other",
    "completion": "chat",
    "llm": "chat",
    "vlm": "chat",
}
"""Types (TEI, LM Studio) and capabilities (Ollama, Infinity), and what a model of these is for."""
_ORDER: Final[tuple[ModelKind, ...]] = ("embedding", "chat", "rerank", "other")
"""Of several capabilities the first of these counts."""


def page_of(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """The models that a server has.

    Raises:
        InvalidResponse: the response has no list.
    """
    value = response.json
    if isinstance(value, dict) and isinstance(value.get("model_id"), str):
        return CatalogPage(models=(_of_info(value),))
    page = compatible.parse_catalog(response, settings.provider)
    if isinstance(page, Failure):
        return page
    # Native lists have one page, even if they name a next one: there is no request for it.
    cursor = None if flavour_of(settings) in LISTS else page.next_cursor
    return compatible.map_models(evolve(page, next_cursor=cursor), _described)


def _of_info(info: Mapping[str, Any]) -> Model:
    served, model = info.get("served_model_name"), str(info["model_id"])
    kinds = info.get("model_type")
    stated = Model(
        id=served if isinstance(served, str) and served else model,
        name=model,
        kind=_kind(list(kinds) if isinstance(kinds, Mapping) else [kinds]) or "unknown",
        context_length=_whole(info.get("max_input_length")),
        raw=info,
    )
    return MODELS.described(stated, *_names(stated))


def _described(model: Model) -> Model:
    raw = model.raw
    details, meta = _table(raw.get("details")), _table(raw.get("meta"))
    listed = raw.get("capabilities")
    abilities = listed if isinstance(listed, list) else []
    stated = _kind([raw.get("type"), *abilities])
    kind = stated or _kind_without_words(model)
    context = (
        raw.get("loaded_context_length"),
        details.get("context_length"),
        meta.get("n_ctx"),
        meta.get("n_ctx_train"),
    )
    length = _whole(details.get("embedding_length")) or _whole(meta.get("n_embd"))
    found = evolve(
        model,
        kind=kind,
        known=() if stated else model.known,
        context_length=next(filter(None, map(_whole, context)), model.context_length),
        # For a chat model this is the width of its layers, not the size of a vector.
        dimensions=None if kind == "chat" else length,
        inputs=model.inputs or (("text", "image") if "vision" in abilities else ()),
        aliases=_aliases(model),
    )
    return MODELS.described(found, *_names(found))


def _kind_without_words(model: Model) -> ModelKind:
    # llama.cpp says that every model gives text, embedding models among them.
    return "unknown" if model.raw.get("owned_by") == "llamacpp" and model.kind == "chat" else model.kind


def _aliases(model: Model) -> tuple[str, ...]:
    plain = model.id.removesuffix(":latest")
    return model.aliases if plain == model.id else (*model.aliases, plain)


def _names(model: Model) -> tuple[str, ...]:
    """Names of a model in the table: "nomic-ai/Nomic-Embed-Text:v1.5" is "nomic-embed-text" there."""
    plain = (name.rpartition("/")[2].lower() for name in (model.id, model.name))
    return tuple(form for name in plain for form in (name, name.partition(":")[0]))


def _kind(words: list[Any]) -> ModelKind | None:
    found = {_KINDS[word] for word in words if isinstance(word, str) and word in _KINDS}
    return next((kind for kind in _ORDER if kind in found), None)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _whole(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
