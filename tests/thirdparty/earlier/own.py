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
    InvalidResponse,
    Model,
    Profile,
    Settings,
    Usage,
    Verdict,
    compatible,
    hookimpl,
)
from llmopt_conformance import SampleError, SamplePage, SampleRows, Samples


@hookimpl
def provider_profile() -> Profile:
    """The key is sent in the header x-own-key."""
    return Profile(base_url="https://own.example/api", key_env=("OWN_API_KEY",), auth="x-own-key")


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
    import numpy as np

    value = response.json
    if isinstance(value, dict) and value.get("error"):
        return Failure.from_response(response)
    results = value.get("results") if isinstance(value, dict) else None
    if not isinstance(results, list) or not results or not all(map(_is_result, results)):
        raise InvalidResponse("the answer holds no results.", reason="json", sent="yes")
    if len({len(each["values"]) for each in results}) > 1:
        raise InvalidResponse("the vectors differ in length.", reason="dimensions", sent="yes")
    with np.errstate(over="ignore"):
        vectors = np.array([each["values"] for each in results], dtype=np.float32)
    return EmbeddedRows(vectors=vectors, usage=_usage(value.get("cost")))


def _is_result(value: object) -> bool:
    values = value.get("values") if isinstance(value, dict) else None
    return isinstance(values, list) and all(type(number) in (int, float) for number in values)


def _usage(cost: object) -> Usage | None:
    return Usage(prompt_tokens=cost, total_tokens=cost) if type(cost) is int and 0 <= cost < 10**9 else None


@hookimpl
def parse_catalog(response: HttpResponse) -> CatalogPage | Failure:
    """Read a list of model names."""
    value = response.json
    if isinstance(value, dict) and value.get("error"):
        return Failure.from_response(response, operation="catalog")
    names = value.get("list") if isinstance(value, dict) else None
    if not isinstance(names, list):
        raise InvalidResponse("the answer holds no list.", reason="json", sent="yes")
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
