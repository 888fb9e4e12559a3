"""Azure's two surfaces: where a deployment stands in the URL, and where in the body."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from attrs import evolve

from llmopt import Call, CatalogCall, EmbedCall, HttpRequest, Settings, compatible

CLASSIC_VERSION: Final = "2024-10-21"
"""The last dated version that is generally available."""


def is_classic(settings: Settings) -> bool:
    """Whether the classic surface is meant: when it is named, or an api_version is."""
    surface = settings.options.get("surface")
    return surface == "classic" or (surface is None and bool(settings.options.get("api_version")))


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call on the surface that the settings mean."""
    deployment = settings.options.get("deployment")
    if deployment and not isinstance(call, CatalogCall):
        call = evolve(call, model=deployment)
    encoding = "base64" if isinstance(call, EmbedCall) else None
    request = compatible.build_request(call, settings, encoding_format=encoding)
    headers = {**settings.headers, **_auth(settings)}
    return evolve(request, path=_path(call, request.path, settings), headers=headers)


def _auth(settings: Settings) -> dict[str, str]:
    if settings.credential is not None and settings.credential_kind == "token":
        return {"authorization": f"Bearer {settings.credential.reveal()}"}
    return settings.auth_headers()


def _path(call: Call, path: str, settings: Settings) -> str:
    root = "" if settings.base_url.endswith(("/openai", "/openai/v1")) else "/openai"
    if not is_classic(settings):
        return path if settings.base_url.endswith("/v1") else f"{root}/v1{path}"
    version = quote(settings.options.get("api_version") or CLASSIC_VERSION, safe="")
    if isinstance(call, CatalogCall):
        return f"{root}/models?api-version={version}"
    return f"{root}/deployments/{quote(call.model, safe='')}{path}?api-version={version}"
