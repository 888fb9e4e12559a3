"""Gemini's list of models: pages by token, names as resources, and what each model can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from llmopt import CatalogCall, CatalogPage, Failure, HttpResponse, Model, ModelTable, Settings, reading
from llmopt.values.catalog import ModelKind
from llmopt.values.error_shape import is_error

KNOWN: Final = ModelTable("llmopt_plugin_google", "known.json")
_PAGE: Final = 1000
"""Models in a page, the most that Google allows: usually the whole list."""
_KINDS: Final[tuple[tuple[str, ModelKind], ...]] = (
    ("generateContent", "chat"),
    ("embedContent", "embedding"),
    ("bidiGenerateContent", "audio"),
    ("predict", "image"),
    ("predictLongRunning", "other"),
)
"""Methods that show the kind of a model; the first one counts."""
_PREFIX: Final = "models/"


def path_of(call: CatalogCall) -> str:
    """The path of a page."""
    token = "" if call.cursor is None else f"&pageToken={quote(call.cursor, safe='')}"
    return f"/models?pageSize={_PAGE}{token}"


def page_of(response: HttpResponse, settings: Settings) -> CatalogPage | Failure:
    """A page of models, with what the plugin knows.

    Raises:
        InvalidResponse: the body is none.
    """
    value = response.json
    if is_error(value):
        return Failure.from_response(response, operation="catalog")
    body = reading.body(response)
    entries = reading.as_type(body.get("models", [] if "nextPageToken" in body else None), list[object])
    models = tuple(model for each in entries if (model := _model(each, settings.provider)) is not None)
    if entries and not models:
        raise reading.invalid(
            f"none of the {len(entries)} entries of the list of models can be read.", "json"
        )
    cursor = body.get("nextPageToken")
    page = CatalogPage(
        models=models,
        next_cursor=cursor if isinstance(cursor, str) and cursor else None,
        dropped=len(entries) - len(models),
    )
    return KNOWN.described_page(page)


def _model(entry: object, provider: str) -> Model | None:
    name = entry.get("name") if isinstance(entry, Mapping) else None
    if not isinstance(entry, Mapping) or not isinstance(name, str) or not name.removeprefix(_PREFIX):
        return None
    kind = _kind(entry.get("supportedGenerationMethods"))
    shown = entry.get("displayName")
    return Model(
        id=name.removeprefix(_PREFIX),
        provider=provider,
        kind=kind,
        name=shown if isinstance(shown, str) else "",
        context_length=_count(entry.get("inputTokenLimit")),
        # That of a model for embeddings is 1.
        max_output_tokens=_count(entry.get("outputTokenLimit")) if kind == "chat" else None,
        raw=entry,
    )


def _kind(methods: Any) -> ModelKind:
    named = methods if isinstance(methods, list) else []
    return next((kind for method, kind in _KINDS if method in named), "unknown")


def _count(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None
