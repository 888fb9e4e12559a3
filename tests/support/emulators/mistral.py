"""Mistral: embeddings, models and chat completions as api.mistral.ai serves them (docs/development/provider-facts.md#mistral)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, Unpack

import numpy as np
from aiohttp import web
from numpy.typing import NDArray

from tests.support.emulators.base import (
    CREATED,
    SSE_DONE,
    Common,
    Emulator,
    Headers,
    JsonObject,
    Received,
    Refusal,
    Reply,
    Route,
    Shape,
    Shortage,
    answer,
    is_conversation,
    reply_to,
    sse,
    token_count,
    vector_for,
)

RateGeneration: TypeAlias = Literal["x-ratelimitbysize", "ratelimitbysize", "x-ratelimit"]
"""The three sets of rate headers in the wild, oldest first, by prefix."""

EMBEDDING_KEYS = frozenset(
    {"model", "input", "output_dimension", "output_dtype", "encoding_format", "metadata"}
)
CHAT_KEYS = frozenset(
    [
        "model",
        "messages",
        "temperature",
        "top_p",
        "max_tokens",
        "stream",
        "stop",
        "random_seed",
        "metadata",
        "response_format",
        "tools",
        "tool_choice",
        "presence_penalty",
        "frequency_penalty",
        "n",
        "prediction",
        "parallel_tool_calls",
        "prompt_mode",
        "reasoning_effort",
        "guardrails",
        "prompt_cache_key",
        "safe_prompt",
    ]
)
KEY_TYPES: Shape = {
    "model": str,
    "metadata": dict,
    "output_dtype": str,
    "encoding_format": str,
    "stream": bool,
    "max_tokens": int,
}
TYPE_NAMES = {str: "string", dict: "dict", bool: "bool", int: "int"}
CAPABILITIES = [
    "completion_chat",
    "function_calling",
    "completion_fim",
    "fine_tuning",
    "vision",
    "ocr",
    "classification",
    "moderation",
    "audio",
    "audio_transcription",
]
MONTH_TOKENS = 4_000_000_000


@dataclass(frozen=True, kw_only=True)
class MistralModel:
    """One model: its name, its other names, and for an embedding model its vector size."""

    name: str
    aliases: tuple[str, ...] = ()
    dimensions: int = 0
    context: int = 32_768
    deprecation: str | None = None
    replacement: str | None = None


MODELS = (
    MistralModel(name="mistral-embed-2312", aliases=("mistral-embed",), dimensions=1024, context=8192),
    MistralModel(name="mistral-small-2506", aliases=("mistral-small-latest",), context=131_072),
    MistralModel(
        name="mistral-small-2409", deprecation="2026-12-31T12:00:00Z", replacement="mistral-small-latest"
    ),
)


def quantised(vector: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Turn a vector into the requested output dtype: bytes per number, or bits packed into bytes."""
    if dtype == "float":
        return vector
    if dtype in ("binary", "ubinary"):
        bits = np.packbits(vector > 0)
        return bits if dtype == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    scaled = np.round(vector * 127)
    return scaled.astype(np.int8) if dtype == "int8" else (scaled + 128).astype(np.uint8)


def invalid(kind: str, loc: list[str | int], message: str, value: Any) -> JsonObject:
    """Write one entry of a 422's ``detail``; it repeats the offending value."""
    return {"type": kind, "loc": ["body", *loc], "msg": message, "input": value}


class MistralEmulator(Emulator):
    """api.mistral.ai/v1.

    Args:
        models: what there is; each is listed once per name and alias.
        max_items, max_item_tokens, max_request_tokens: limits of an embeddings request.
        rate_generation: which set of rate headers to send.
        older_errors: the wording and shapes of 2024: code null, ``{"message"}`` for a 429.
        unknown_model_status: 404 gives code ``unknown_model``, 400 gives ``1500`` (both are reported).
        common: see ``Emulator``.
    """

    steady_limits: ClassVar[bool] = False

    def __init__(
        self,
        *,
        models: Iterable[MistralModel] = MODELS,
        max_items: int = 512,
        max_item_tokens: int = 8192,
        max_request_tokens: int = 16_384,
        rate_generation: RateGeneration = "x-ratelimit",
        older_errors: bool = False,
        unknown_model_status: Literal[400, 404] = 404,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.models_by_name = {name: model for model in models for name in (model.name, *model.aliases)}
        self.max_items, self.max_item_tokens = max_items, max_item_tokens
        self.max_request_tokens, self.rate_generation = max_request_tokens, rate_generation
        self.older_errors, self.unknown_model_status = older_errors, unknown_model_status
        self._last_cost = 0

    def routes(self) -> Iterable[Route]:
        return [
            ("POST", "/v1/embeddings", self.embeddings),
            ("POST", "/v1/chat/completions", self.chat),
            ("GET", "/v1/models", self.models),
        ]

    # Faults.

    def error(self, status: int, message: str, kind: str, code: str | None) -> Refusal:
        """Make a refusal in Mistral's flat shape."""
        body = {"object": "error", "message": message, "type": kind, "param": None, "code": code}
        return Refusal(status, body if self.older_errors else body | {"raw_status_code": status})

    def authorise(self, received: Received) -> None:
        if self.key and received.bearer != self.key:
            raise Refusal(401, {"detail": "Unauthorized"})

    def unreadable(self, received: Received) -> Refusal:
        return self.malformed([invalid("json_invalid", [0], "JSON decode error", {})])

    def mistyped(self, received: Received, key: str) -> Refusal:
        name = TYPE_NAMES[KEY_TYPES[key]]
        text = f"Input should be a valid {name}"
        return self.malformed([invalid(f"{name}_type", [key], text, received.json[key])])

    def malformed(self, detail: list[JsonObject]) -> Refusal:
        return Refusal(422, {"detail": detail})

    async def no_route(self, received: Received) -> web.StreamResponse:
        raise Refusal(404, {"detail": "Not Found"})

    def too_large(self, older: str, newer: str) -> Refusal:
        if self.older_errors:
            return self.error(400, older, "invalid_request_error", None)
        return self.error(400, newer, "invalid_request_prompt", "3210")

    def over_limit(self, received: Received, model: str, shortage: Shortage) -> Refusal:
        text = "Requests rate limit exceeded"
        if self.older_errors:
            return Refusal(429, {"message": text})
        return self.error(429, text, "rate_limited", "1300")

    def reply_headers(self, received: Received, status: int) -> Headers:
        headers = {"mistral-correlation-id": f"00000000-0000-0000-0000-{len(self.requests):012d}"}
        return headers | self.rate_headers() if received.method == "POST" and status != 401 else headers

    def rate_headers(self) -> dict[str, str]:
        """Write the budgets in the chosen generation's names; the two older ones know tokens only."""
        headers: dict[str, int] = {}
        generation, tokens, calls = self.rate_generation, self.token_budget, self.request_budget
        if tokens and generation == "x-ratelimitbysize":
            month = MONTH_TOKENS - tokens.limit + tokens.remaining
            headers = {"limit-minute": tokens.limit, "remaining-minute": tokens.remaining}
            headers |= {"limit-month": MONTH_TOKENS, "remaining-month": month}
        elif tokens and generation == "ratelimitbysize":
            headers = {"limit": tokens.limit, "remaining": tokens.remaining}
            headers |= {"reset": math.ceil(tokens.reset), "query-cost": self._last_cost}
        elif generation == "x-ratelimit":
            if tokens:
                headers = {"limit-tokens-minute": tokens.limit, "remaining-tokens-minute": tokens.remaining}
                headers |= {"tokens-query-cost": self._last_cost}
            if calls:
                headers |= {"limit-req-minute": calls.limit, "remaining-req-minute": calls.remaining}
        return {f"{generation}-{name}": str(value) for name, value in headers.items()}

    def charge(self, received: Received, model: str, tokens: int) -> None:
        self._last_cost = tokens
        super().charge(received, model, tokens)

    # Models.

    async def models(self, received: Received) -> web.StreamResponse:
        cards = [self.card(name, model) for name, model in self.models_by_name.items()]
        return answer(200, {"object": "list", "data": cards})

    def card(self, name: str, model: MistralModel) -> JsonObject:
        """Describe a model under one of its names; nothing but the id says that it embeds."""
        chat = not model.dimensions
        others = [other for other in (model.name, *model.aliases) if other != name]
        able = dict.fromkeys(CAPABILITIES, False) | {"completion_chat": chat, "function_calling": chat}
        return {
            "id": name,
            "object": "model",
            "created": CREATED,
            "owned_by": "mistralai",
            "capabilities": able,
            "name": model.name,
            "description": f"The model {model.name}.",
            "max_context_length": model.context,
            "aliases": others,
            "deprecation": model.deprecation,
            "deprecation_replacement_model": model.replacement,
            "default_model_temperature": 0.3 if chat else None,
            "type": "base",
        }

    def model_of(self, body: JsonObject, *, embeds: bool) -> MistralModel:
        """Return the model asked for, or refuse."""
        name = str(body["model"])
        model = self.models_by_name.get(name)
        if model is not None and bool(model.dimensions) is embeds:
            return model
        if self.unknown_model_status == 404:
            raise self.error(404, f"Unknown model: {name}", "invalid_request_error", "unknown_model")
        raise self.error(400, f"Invalid model: {name}", "invalid_model", "1500")

    # Embeddings.

    async def embeddings(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, KEY_TYPES)
        self.check(body, embedding_faults(body))
        model = self.model_of(body, embeds=True)
        size = body.get("output_dimension") or model.dimensions
        if size > model.dimensions:
            text = f"Requested output_dimension {size}, maximum {model.dimensions}"
            raise self.error(400, text, "invalid_request_error", None)
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        tokens = sum(map(token_count, texts))
        self.charge(received, model.name, tokens)
        self.check_size(texts, tokens)
        await self.work()
        dtype = body.get("output_dtype", "float")
        vectors = [quantised(vector_for(text, size), dtype) for text in texts]
        return answer(200, {
            "id": f"{len(self.requests):032x}",
            "object": "list",
            "data": self.rows(vectors, body.get("encoding_format", "float")),
            "model": body["model"],
            "usage": usage(tokens, 0),
        })  # fmt: skip

    def check(self, body: JsonObject, faults: Iterable[JsonObject]) -> None:
        if found := list(faults):
            raise self.malformed(found)

    def check_size(self, texts: list[str], tokens: int) -> None:
        if len(texts) > self.max_items:
            older = f"Too many inputs in request. Max is {self.max_items} got {len(texts)}"
            raise self.too_large(older, "Too many inputs in request, split into more batches.")
        if tokens > self.max_request_tokens or max(map(token_count, texts), default=0) > self.max_item_tokens:
            older = f"Too many tokens in batch. Max is {self.max_request_tokens} got {tokens}"
            raise self.too_large(older, "Too many tokens overall, split into more batches.")

    # Chat.

    async def chat(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, KEY_TYPES)
        self.check(body, chat_faults(body))
        model = self.model_of(body, embeds=False)
        reply = reply_to(body["messages"], body.get("max_tokens"))
        self.charge(received, model.name, reply.prompt_tokens)
        await self.work()
        head = {"id": f"{len(self.requests):032x}", "created": CREATED, "model": body["model"]}
        if body.get("stream"):
            events = self.chat_events(head | {"object": "chat.completion.chunk"}, reply)
            return await self.stream(received, events, "text/event-stream; charset=utf-8")
        message = {"role": "assistant", "content": reply.text, "tool_calls": None}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        spent = usage(reply.prompt_tokens, len(reply.pieces))
        return answer(200, head | {"object": "chat.completion", "choices": [choice], "usage": spent})

    def chat_events(self, head: JsonObject, reply: Reply) -> Iterator[bytes]:
        """Write the reply as a stream; usage comes on the last chunk, unasked."""

        def chunk(delta: JsonObject, finish: str | None = None) -> JsonObject:
            return head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        yield sse(chunk({"role": "assistant", "content": ""}))
        for piece in reply.pieces[: self.break_stream_after]:
            yield sse(chunk({"content": piece}))
        finish = reply.finish_reason if self.break_stream_after is None else "error"
        spent = usage(reply.prompt_tokens, len(reply.pieces))
        yield sse(chunk({"content": ""}, finish) | {"usage": spent})
        yield SSE_DONE


def usage(prompt: int, completion: int) -> JsonObject:
    """Write Mistral's usage, with both spellings of the details."""
    details = {"cached_tokens": 0}
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_audio_seconds": None,
        "num_cached_tokens": 0,
        "prompt_tokens_details": details,
        "prompt_token_details": details,
    }


def embedding_faults(body: JsonObject) -> Iterator[JsonObject]:
    """Yield what is wrong with the shape of an embeddings request."""
    yield from key_faults(body, EMBEDDING_KEYS, ("model", "input"))
    given = body.get("input", "")
    for index, text in enumerate(given if isinstance(given, list) else []):
        if not isinstance(text, str):
            yield invalid(
                "string_type", ["input", "list[str]", index], "Input should be a valid string", text
            )
    if not isinstance(given, (str, list)):
        yield invalid("string_type", ["input", "str"], "Input should be a valid string", given)
    size = body.get("output_dimension")
    if size is not None and (type(size) is not int or size < 1):
        yield invalid("greater_than", ["output_dimension"], "Input should be greater than 0", size)
    yield from choice_faults(body, "output_dtype", ["float", "int8", "uint8", "binary", "ubinary"])
    yield from choice_faults(body, "encoding_format", ["float", "base64"])


def chat_faults(body: JsonObject) -> Iterator[JsonObject]:
    """Yield what is wrong with the shape of a chat request."""
    yield from key_faults(body, CHAT_KEYS, ("model", "messages"))
    if "messages" in body and not is_conversation(body["messages"]):
        yield invalid("list_type", ["messages"], "Input should be a valid list", body["messages"])


def key_faults(
    body: Mapping[str, Any], known: frozenset[str], required: Iterable[str]
) -> Iterator[JsonObject]:
    for key in required:
        if key not in body:
            yield invalid("missing", [key], "Field required", dict(body))
    for key in sorted(body.keys() - known):
        yield invalid("extra_forbidden", [key], "Extra inputs are not permitted", body[key])


def choice_faults(body: Mapping[str, Any], key: str, choices: list[str]) -> Iterator[JsonObject]:
    if body.get(key, choices[0]) not in choices:
        yield invalid("enum", [key], f"Input should be one of {choices}", body[key])
