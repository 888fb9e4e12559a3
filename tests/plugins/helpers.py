"""Helpers of the plugin tests."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from llmopt import CatalogPage, EmbedCall, EmbeddedRows, Failure, HttpResponse, Secret, Settings
from llmopt.providers.hooks import ProviderHooks

KEY = "test-key-1"


@cache
def hooks(plugin: str) -> ProviderHooks:
    """The hooks of a plugin, as the core calls them."""
    return ProviderHooks(plugin, importlib.import_module(f"llmopt_plugin_{plugin}"))


def settings(
    plugin: str,
    base_url: str,
    *,
    key: str | None = KEY,
    kind: Literal["key", "token"] = "key",
    auth: str = "bearer",
    headers: Mapping[str, str] | None = None,
    **options: Any,
) -> Settings:
    """Settings of one attempt."""
    return Settings(
        provider=plugin,
        base_url=base_url,
        credential=None if key is None else Secret(key),
        credential_kind=kind,
        auth=auth,
        headers=headers or {},
        options=options,
    )


def call(model: str = "m", *texts: str, **more: Any) -> EmbedCall:
    """An embed call."""
    return EmbedCall(model=model, texts=texts or ("one", "two"), **more)


def answer(value: object, status: int = 200, **headers: str) -> HttpResponse:
    """A response with a JSON value, or with these bytes."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return HttpResponse(status=status, headers={"content-type": "application/json", **headers}, body=body)


def page(plugin: str, value: object, where: Settings) -> CatalogPage:
    """The models that the plugin reads from a JSON value."""
    result = hooks(plugin).parse_catalog(answer(value), where)
    assert isinstance(result, CatalogPage)
    return result


def rows(plugin: str, value: object, where: Settings) -> EmbeddedRows:
    """The vectors that the plugin reads from a JSON value."""
    result = hooks(plugin).parse_embeddings(call(), answer(value), where)
    assert isinstance(result, EmbeddedRows)
    return result


def failure(status: int, value: object = b"") -> Failure:
    """An error response."""
    return Failure.from_response(answer(value, status))
