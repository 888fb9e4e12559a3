"""Azure OpenAI: classic deployments and the v1 surface on one resource (docs/development/provider-facts.md#azure-openai)."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Unpack

from aiohttp import web

from tests.support.emulators.base import (
    CREATED,
    Headers,
    JsonObject,
    Received,
    Refusal,
    Reply,
    Route,
    Shortage,
    answer,
    sse,
)
from tests.support.emulators.openai import OpenAIEmulator, OpenAIOptions

DEPLOYMENTS: Mapping[str, str] = {"embed-small": "text-embedding-3-small", "chat-mini": "gpt-4o-mini"}
LISTING_VERSION = "2023-03-15-preview"
DATED_VERSION = re.compile(r"\d{4}-\d{2}-\d{2}(-preview)?")
OPERATIONS = {"embeddings": "Embeddings_Create", "chatCompletion": "ChatCompletions_Create"}

_SAFE = {"filtered": False, "severity": "safe"}
SAFE = {"hate": _SAFE, "self_harm": _SAFE, "sexual": _SAFE, "violence": _SAFE}


def bare_seconds(seconds: float) -> str:
    """Write seconds as Azure's reset headers do: a number without a unit."""
    return str(math.ceil(seconds))


class AzureEmulator(OpenAIEmulator):
    """One Azure OpenAI resource; ``base_url`` is its endpoint, ``v1_url`` the root of the v1 surface.

    Args:
        deployments: deployment name to base model.
        accept_tokens: Entra tokens that pass as ``Authorization: Bearer``; any other is a 401.
        audience: the audience that the 401's text asks for.
        api_versions: the dated versions that classic paths know; None means every well-formed one.
        async_filter: add the chunks of the asynchronous content filter to chat streams.
        common: see ``OpenAIEmulator`` and ``Emulator``.
    """

    base_path: ClassVar[str] = ""
    refuses_unknown_keys: ClassVar[bool] = False
    too_long_code: ClassVar[str | None] = "context_length_exceeded"

    def __init__(
        self,
        *,
        deployments: Mapping[str, str] = DEPLOYMENTS,
        accept_tokens: Iterable[str] = (),
        audience: str = "https://cognitiveservices.azure.com",
        api_versions: Iterable[str] | None = None,
        async_filter: bool = False,
        **common: Unpack[OpenAIOptions],
    ) -> None:
        super().__init__(**common)
        self.deployments, self.accept_tokens = dict(deployments), set(accept_tokens)
        self.audience, self.async_filter = audience, async_filter
        self.api_versions = None if api_versions is None else frozenset(api_versions)

    @property
    def v1_url(self) -> str:
        return f"{self.origin}/openai/v1"

    def routes(self) -> Iterable[Route]:
        deployment = "/openai/deployments/{deployment}"
        return [
            ("POST", f"{deployment}/embeddings", self.embeddings),
            ("POST", f"{deployment}/chat/completions", self.chat),
            ("GET", "/openai/models", self.base_models),
            ("GET", "/openai/deployments", self.list_deployments),
            ("POST", "/openai/v1/embeddings", self.embeddings),
            ("POST", "/openai/v1/chat/completions", self.chat),
            ("GET", "/openai/v1/models", self.models),
        ]

    # Who may pass, and with which version.

    def authorise(self, received: Received) -> None:
        if self.key and not self._knows(received):
            text = "Unauthorized. Access token is missing, invalid, audience is incorrect"
            text += f" ({self.audience}), or have expired."
            raise Refusal(401, {"statusCode": 401, "message": text})
        self._check_version(received)

    def _knows(self, received: Received) -> bool:
        if received.headers.get("api-key") == self.key or received.bearer in self.accept_tokens:
            return True
        return on_v1(received) and received.bearer == self.key

    def _check_version(self, received: Received) -> None:
        version = received.query.get("api-version")
        if on_v1(received):
            known = version in (None, "v1", "preview")
        elif received.path == "/openai/deployments":
            known = version == LISTING_VERSION
        elif self.api_versions is None:
            known = DATED_VERSION.fullmatch(version or "") is not None
        else:
            known = version in self.api_versions
        if not known:
            raise self.gateway(404, "404", "Resource not found")

    # Faults.

    def gateway(self, status: int, code: str, message: str, headers: Headers | None = None) -> Refusal:
        """Make a refusal as Azure's own layers word it: a code, mostly, that repeats the status."""
        return Refusal(status, {"error": {"code": code, "message": message}}, headers)

    async def no_route(self, received: Received) -> web.StreamResponse:
        raise self.gateway(404, "404", "Resource not found")

    def filtered(self, received: Received) -> Refusal:
        found = SAFE | {"violence": {"filtered": True, "severity": "medium"}}
        inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": found}
        error = {
            "message": "The response was filtered due to the prompt triggering the content management policy.",
            "type": None,
            "param": "prompt",
            "code": "content_filter",
            "status": 400,
            "inner_error" if on_v1(received) else "innererror": inner,
        }
        return Refusal(400, {"error": error})

    def over_limit(self, received: Received, model: str, shortage: Shortage) -> Refusal:
        wait = 60.0 if math.isinf(shortage.wait) else shortage.wait
        operation = OPERATIONS["embeddings" if received.path.endswith("/embeddings") else "chatCompletion"]
        limit = "call" if shortage.kind == "requests" else "token"
        text = (
            f"Requests to the {operation} Operation under Azure OpenAI API version"
            f" {received.query.get('api-version', 'v1')} have exceeded {limit} rate limit of your current"
            f" pricing tier. Please retry after {math.ceil(wait)} seconds."
        )
        after = {"retry-after": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(wait * 1000))}
        return self.gateway(429, "429", text, after)

    def reply_headers(self, received: Received, status: int) -> Headers:
        headers = {
            "apim-request-id": f"00000000-0000-0000-0000-{len(self.requests):012d}",
            "x-ms-region": "Test",
        }
        limited = received.method == "POST" and status not in (401, 404)
        return headers | self.rate_headers(bare_seconds) if limited else headers

    # Models and deployments.

    def model_of(self, received: Received, body: JsonObject, known: Iterable[str], operation: str) -> str:
        """Return the base model of the deployment named in the path, or on v1 in the body."""
        name: str | None = received.request.match_info.get("deployment") or body.get("model")
        if not name:
            raise self.error(400, "you must provide a model parameter")
        if name not in self.deployments:
            text = "The API deployment for this resource does not exist. If you created the deployment"
            text += " within the last 5 minutes, please wait a moment and try again."
            raise self.gateway(404, "DeploymentNotFound", text)
        if (model := self.deployments[name]) not in known:
            text = f"The {operation} operation does not work with the specified model, {model}."
            raise self.gateway(400, "OperationNotSupported", text)
        return model

    def card(self, model: str) -> JsonObject:
        return {"id": model, "object": "model", "created": CREATED, "owned_by": "system"}

    async def base_models(self, received: Received) -> web.StreamResponse:
        return answer(200, {"data": [self.base_card(name) for name in self.model_names()], "object": "list"})

    def base_card(self, model: str) -> JsonObject:
        """Describe a base model that could be deployed; ``created_at`` is the classic spelling."""
        embeds = model in self.embedding_models
        can = {"fine_tune": False, "inference": True, "completion": False}
        return {
            "id": model,
            "object": "model",
            "created_at": CREATED,
            "status": "succeeded",
            "lifecycle_status": "generally-available",
            "capabilities": can | {"chat_completion": not embeds, "embeddings": embeds},
            "deprecation": {"inference": CREATED + 3 * 365 * 86_400},
        }

    async def list_deployments(self, received: Received) -> web.StreamResponse:
        fixed = {"object": "deployment", "created_at": CREATED, "owner": "organization-owner"}
        data = [{"id": name, "model": model, **fixed} for name, model in self.deployments.items()]
        return answer(200, {"object": "list", "data": data})

    # Chat, with the content filter's findings.

    def completion(self, model: str, reply: Reply) -> JsonObject:
        body = super().completion(model, reply)
        body["choices"][0]["content_filter_results"] = SAFE
        return body | {"prompt_filter_results": prompt_findings()}

    def chat_events(self, model: str, reply: Reply, options: Mapping[str, Any]) -> Iterator[bytes]:
        blank = {"id": "", "object": "", "created": 0, "model": ""}
        yield sse(blank | {"prompt_filter_results": prompt_findings(), "choices": [], "usage": None})
        *events, done = super().chat_events(model, reply, options)
        yield from events
        if self.async_filter:
            size = len(reply.text)
            offsets = {"check_offset": 0, "start_offset": 0, "end_offset": size}
            finding = {"content_filter_results": SAFE, "content_filter_offsets": offsets}
            choice = {"index": 0, "finish_reason": None, **finding}
            yield sse(blank | {"choices": [choice], "usage": None})
        yield done


def on_v1(received: Received) -> bool:
    """Return whether a request is for the v1 surface."""
    return received.path.startswith("/openai/v1/")


def prompt_findings() -> list[JsonObject]:
    """Write the content filter's findings about a harmless prompt."""
    found = SAFE | {"jailbreak": {"detected": False, "filtered": False}}
    return [{"prompt_index": 0, "content_filter_results": found}]
