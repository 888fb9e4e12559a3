"""Requests to local servers: the common dialect, and what is native to TEI and Ollama.

A text that is too long is an error of that text and no silent loss: requests ask TEI and Ollama not to cut
it, unless ``truncate = true``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import Call, CatalogCall, ChatCall, ConfigError, EmbedCall, HttpRequest, Settings, compatible
from llmopt_plugin_local._flavours import (
    INFINITY,
    LLAMACPP,
    LMSTUDIO,
    OLLAMA,
    TEI,
    VLLM,
    common,
    flavour_of,
    native,
)
from llmopt_plugin_local._ollama import chat_body

_BASE64: Final = frozenset({VLLM, LLAMACPP, INFINITY})
"""Flavours that surely know base64. Others might refuse it, and answer with lists without it."""
LISTS: Final[Mapping[str, str]] = {TEI: "/info", OLLAMA: "/api/tags", LMSTUDIO: "/api/v0/models"}
"""Native lists of models; they have more details than ``/v1/models``."""


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call.

    Raises:
        ConfigError: a chat, with what has none.
        InvalidInput: a chat with a parameter that the server does not have.
    """
    if isinstance(call, ChatCall):
        return _chat(call, settings)
    if not settings.base_url:
        encoding = "base64" if isinstance(call, EmbedCall) else None
        return compatible.build_request(call, settings, encoding_format=encoding)
    flavour = flavour_of(settings)
    if isinstance(call, CatalogCall) and flavour in LISTS:
        return get(native(settings, LISTS[flavour]), settings)
    if isinstance(call, EmbedCall) and flavour in _NATIVE:
        path, body = _NATIVE[flavour](call, settings)
        return HttpRequest(method="POST", path=native(settings, path), headers=_headers(settings), json=body)
    return _common(call, settings, flavour)


def _chat(call: ChatCall, settings: Settings) -> HttpRequest:
    path = f"providers.{settings.provider}"
    if not settings.base_url:
        raise ConfigError(
            f"local/default only makes embeddings; for chat, set {path}.base_url to a chat server, such as "
            "http://127.0.0.1:8000/v1."
        )
    flavour = flavour_of(settings)
    if flavour in (TEI, INFINITY):
        raise ConfigError(f"a server of {path}.flavour = {flavour!r} has no chat; name another server.")
    if flavour == OLLAMA:
        url = native(settings, "/api/chat")
        return HttpRequest(method="POST", path=url, headers=_headers(settings), json=chat_body(call))
    return _common(call, settings, flavour)


def get(path: str, settings: Settings) -> HttpRequest:
    """A request without a body."""
    return HttpRequest(method="GET", path=path, headers=_headers(settings))


def _headers(settings: Settings) -> dict[str, str]:
    return {**settings.headers, **settings.auth_headers()}


def _common(call: Call, settings: Settings, flavour: str) -> HttpRequest:
    encoding = "base64" if isinstance(call, EmbedCall) and flavour in _BASE64 else None
    if isinstance(call, EmbedCall) and flavour == VLLM and settings.options.get("truncate"):
        # -1 stands for the model's own length.
        call = evolve(call, extra={"truncate_prompt_tokens": -1, **call.extra})
    request = compatible.build_request(call, settings, encoding_format=encoding)
    return evolve(request, path=common(settings, request.path))


def _tei(call: EmbedCall, settings: Settings) -> tuple[str, dict[str, Any]]:
    """``/embed``: one model, so none is named; what a text is for selects one of the model's prompts."""
    body: dict[str, Any] = {"inputs": call.texts, "truncate": bool(settings.options.get("truncate"))}
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    if call.input_type is not None:
        body["prompt_name"] = call.input_type
    return "/embed", {**body, **call.extra}


def _ollama(call: EmbedCall, settings: Settings) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": call.model,
        "input": call.texts,
        "truncate": bool(settings.options.get("truncate")),
    }
    if call.dimensions is not None:
        body["dimensions"] = call.dimensions
    return "/api/embed", {**body, **call.extra}


_NATIVE: Final[Mapping[str, Callable[[EmbedCall, Settings], tuple[str, dict[str, Any]]]]] = {
    TEI: _tei,
    OLLAMA: _ollama,
}
