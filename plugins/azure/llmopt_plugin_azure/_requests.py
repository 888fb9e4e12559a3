"""Requests to Azure's two surfaces: the deployment is in the URL or in the body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from attrs import evolve

from llmopt import Call, CatalogCall, ChatCall, EmbedCall, HttpRequest, Settings, compatible
from llmopt_plugin_azure._addresses import Resource, resource_of

_LISTING_VERSION: Final = "2023-03-15-preview"
"""The one version whose data plane lists deployments (github openai/openai-python#447, langflow-ai/langflow#14509)."""
_BASE64_SINCE: Final = "2024-03-01"
_USAGE_SINCE: Final = "2024-09-01"
"""Older versions refuse ``stream_options`` (github Azure/azure-rest-api-specs#29157, openai/openai-dotnet#103)."""
_COMPLETION_TOKENS_SINCE: Final = "2024-12-01"
"""Older versions refuse ``max_completion_tokens`` (github openai/openai-python#1724); models that reason want it."""
_NAMES: Final[Mapping[str, str]] = {"max_tokens": "max_completion_tokens"}


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call on the surface of the settings."""
    resource = resource_of(settings)
    if resource.deployment and not isinstance(call, CatalogCall):
        call = evolve(call, model=resource.deployment)
    encoding = "base64" if isinstance(call, EmbedCall) and _knows(resource, _BASE64_SINCE) else None
    if isinstance(call, ChatCall):
        # What another server signed is an unknown key here.
        usage = call.include_usage and _knows(resource, _USAGE_SINCE)
        call = evolve(call, include_usage=usage, messages=compatible.plain_messages(call.messages))
    names = _NAMES if _knows(resource, _COMPLETION_TOKENS_SINCE) else {}
    request = compatible.build_request(call, settings, encoding_format=encoding, chat_names=names)
    headers = {**settings.headers, **_auth(settings)}
    url = _url(call, request.path, resource, settings)
    return evolve(request, path=_relative(url, settings.base_url), headers=headers)


def _relative(url: str, base: str) -> str:
    """The path behind base_url; the whole URL where what was pasted as base_url holds more than the resource."""
    rest = url.removeprefix(base)
    return rest if rest.startswith("/") else url


def _knows(resource: Resource, since: str) -> bool:
    """Whether a surface has what the classic one has since a version; v1 has it all."""
    return not resource.classic or (resource.version or "") >= since


def _auth(settings: Settings) -> dict[str, str]:
    kind = settings.options.get("auth") or settings.credential_kind
    if settings.credential is not None and kind in ("token", "entra"):
        return evolve(settings, auth="bearer").auth_headers()
    return settings.auth_headers()


def _url(call: Call, path: str, resource: Resource, settings: Settings) -> str:
    root = f"{resource.root}/openai"
    path, _, query = path.partition("?")
    if isinstance(call, CatalogCall) and settings.options.get("catalog") == "deployments":
        return f"{root}/deployments?api-version={_LISTING_VERSION}"
    if not resource.classic:
        path = f"/v1{path}"
    elif not isinstance(call, CatalogCall):
        path = f"/deployments/{quote(call.model, safe='')}{path}"
    version = "" if resource.version is None else f"api-version={quote(resource.version, safe='')}"
    return root + path + "?" * bool(version or query) + "&".join(filter(None, (version, query)))
