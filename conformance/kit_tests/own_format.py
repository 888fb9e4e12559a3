"""A plugin for a provider with its own wire format, as a module and as samples for the kit.

The provider takes ``{"parts": [{"text": ...}]}`` at ``/models/<model>:embed``, answers
``{"results": [{"values": [...]}], "cost": 7}`` in the order of the texts, and lists models as ``{"list": [...]}``.
"""

from __future__ import annotations

import json
from urllib.parse import quote

from llmopt import (
    BatchLimit,
    Call,
    CatalogCall,
    CatalogPage,
    EmbedCall,
    EmbeddedRows,
    Failure,
    HttpRequest,
    HttpResponse,
    InvalidInput,
    Model,
    Profile,
    Settings,
    Usage,
    Verdict,
    compatible,
    hookimpl,
    reading,
)
from llmopt_conformance import SampleError, SamplePage, SampleRows, Samples


@hookimpl
def provider_profile() -> Profile:
    """The key is sent in the header x-own-key."""
    return Profile(
        base_url="https://own.example/api",
        key_env=("OWN_API_KEY",),
        auth="x-own-key",
        operations=frozenset({"embeddings", "catalog"}),
    )


@hookimpl
def batch_limit() -> BatchLimit:
    """At most four texts in a request."""
    return BatchLimit(max_items=4)


@hookimpl
def build_request(call: Call, settings: Settings) -> HttpRequest:
    """Write a request in the provider's format; it has no chat."""
    headers = {**settings.headers, **settings.auth_headers()}
    if isinstance(call, CatalogCall):
        page = "" if call.cursor is None else f"?page={quote(call.cursor, safe='')}"
        return HttpRequest(method="GET", path=f"/models{page}", headers=headers)
    if not isinstance(call, EmbedCall):
        raise InvalidInput("this provider has embeddings only.")
    body: dict[str, object] = {"parts": [{"text": text} for text in call.texts]}
    if call.dimensions is not None:
        body["size"] = call.dimensions
    path = f"/models/{quote(call.model, safe='')}:embed"
    return HttpRequest(method="POST", path=path, headers=headers, json={**body, **call.extra})


@hookimpl
def parse_embeddings(response: HttpResponse) -> EmbeddedRows | Failure:
    """Read vectors, which come in the order of the texts."""
    value = reading.body(response)
    if value.get("error"):
        return Failure.from_response(response)
    rows = [each.get("values") for each in reading.objects(value.get("results"), "results")]
    cost = reading.count(value.get("cost"))
    return EmbeddedRows(vectors=reading.vectors(rows), usage=Usage(prompt_tokens=cost, total_tokens=cost))


@hookimpl
def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    """Read a list of model names."""
    value = reading.body(response)
    if value.get("error"):
        return Failure.from_response(response, operation="catalog")
    names = reading.as_type(value.get("list"), list[object])
    following = value.get("next")
    return CatalogPage(
        models=tuple(Model(id=name) for name in names if isinstance(name, str)),
        next_cursor=following if isinstance(following, str) else None,
    )


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """Classify errors as the common dialect does."""
    return compatible.classify(failure)


def _write_rows(answer: SampleRows) -> bytes:
    results = [{"values": list(row)} for _, row in answer.rows]
    return json.dumps({"results": results, "cost": answer.tokens}).encode()


def _write_page(page: SamplePage) -> bytes:
    return json.dumps({"list": page.models, "next": page.cursor}).encode()


def _write_error(error: SampleError) -> bytes:
    return json.dumps({"error": {"status": error.status, "message": error.message}}).encode()


SAMPLES = Samples(
    embeddings=_write_rows,
    catalog=_write_page,
    error=_write_error,
    indexed=False,
    ignores={"input_type"},
)
