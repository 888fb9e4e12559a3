"""Requests for embeddings to Mistral: keys of its own, and none that it does not know.

Mistral answers 422 to any other key (``additionalProperties: false`` in its description): to
``dimensions``, ``user`` and ``input_type`` among them.
"""

from __future__ import annotations

from llmopt import EmbedCall, HttpRequest, Settings


def request_of(call: EmbedCall, settings: Settings) -> HttpRequest:
    """The request for embeddings."""
    body: dict[str, object] = {"model": call.model, "input": call.texts, "encoding_format": _encoding(call)}
    if call.dimensions is not None:
        body["output_dimension"] = call.dimensions
    headers = {**settings.headers, **settings.auth_headers()}
    return HttpRequest(method="POST", path="/embeddings", headers=headers, json={**body, **call.extra})


def _encoding(call: EmbedCall) -> str:
    # With int8, binary and their like the base64 would hold bytes instead of float32; a list is a list of numbers.
    return "base64" if call.extra.get("output_dtype", "float") == "float" else "float"
