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
    """A plugin's hooks, as the core calls them."""
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
    """A call for embeddings."""
    return EmbedCall(model=model, texts=texts or ("one", "two"), **more)


def answer(value: object, status: int = 200, **headers: str) -> HttpResponse:
    """An answer with this JSON."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return HttpResponse(status=status, headers={"content-type": "application/json", **headers}, body=body)


def page(plugin: str, value: object, where: Settings) -> CatalogPage:
    """The list that an answer holds."""
    found = hooks(plugin).parse_catalog(answer(value), where)
    assert isinstance(found, CatalogPage)
    return found


def rows(plugin: str, value: object, where: Settings) -> EmbeddedRows:
    """The vectors that an answer holds."""
    found = hooks(plugin).parse_embeddings(call(), answer(value), where)
    assert isinstance(found, EmbeddedRows)
    return found


def failure(status: int, value: object = b"") -> Failure:
    """An error."""
    return Failure.from_response(answer(value, status))
