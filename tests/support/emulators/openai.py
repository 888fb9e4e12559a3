"""OpenAI: embeddings, models and chat completions as api.openai.com serves them (docs/development/provider-facts.md#openai)."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Unpack

from aiohttp import web

from tests.support.emulators.base import (
    CREATED,
    SSE_DONE,
    Common,
    Emulator,
    Headers,
    Item,
    JsonObject,
    Received,
    Refusal,
    Reply,
    Route,
    Shape,
    Shortage,
    answer,
    is_conversation,
    message_text,
    reply_to,
    sse,
    token_count,
    vector_for,
)

EMBEDDING_MODELS: Mapping[str, int] = {
    "text-embedding-3-small": 1536,
    "text-embedding-3-large": 3072,
    "text-embedding-ada-002": 1536,
}
CHAT_MODELS = ("gpt-4o-mini",)
FIXED_SIZE = frozenset({"text-embedding-ada-002"})
SHUTDOWN_DATES: Mapping[str, str] = {"text-embedding-ada-002": "2026-10-23"}
EMBEDDING_KEYS = frozenset({"model", "input", "encoding_format", "dimensions", "user"})
EMBEDDING_SHAPE: Shape = {"model": str, "encoding_format": str, "dimensions": int, "user": str}
CHAT_SHAPE: Shape = {
    "model": str,
    "messages": list,
    "stream": bool,
    "stream_options": dict,
    "max_tokens": int,
    "max_completion_tokens": int,
}


def go_duration(seconds: float) -> str:
    """Write seconds as Go does: ``12ms``, ``1s``, ``6m0s``, ``1m30.951s``, ``1h0m0s``."""
    ms = math.ceil(seconds * 1000 - 1e-6)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, rest = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    small = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{hours}h{minutes}m{small}" if hours else f"{minutes}m{small}" if minutes else small


def is_tokens(value: Any) -> bool:
    """Return whether a value is one input given as token ids."""
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


class OpenAIOptions(Common, total=False):
    """Options that Azure's emulator takes over; see ``OpenAIEmulator``."""

    embedding_models: Mapping[str, int]
    chat_models: Iterable[str]
    max_items: int
    max_item_tokens: int
    max_request_tokens: int
    context_tokens: int
    blocked_word: str


class OpenAIEmulator(Emulator):
    """api.openai.com/v1.

    Args:
        embedding_models: model name to vector size.
        chat_models: names of chat models.
        max_items: inputs in one embeddings request.
        max_item_tokens: tokens in one input.
        max_request_tokens: tokens in one embeddings request.
        context_tokens: tokens in one conversation.
        blocked_word: a text that holds it is refused by the content filter.
        common: see ``Emulator``.
    """

    refuses_unknown_keys: ClassVar[bool] = True
    too_long_code: ClassVar[str | None] = None

    def __init__(
        self,
        *,
        embedding_models: Mapping[str, int] = EMBEDDING_MODELS,
        chat_models: Iterable[str] = CHAT_MODELS,
        max_items: int = 2048,
        max_item_tokens: int = 8192,
        max_request_tokens: int = 300_000,
        context_tokens: int = 128_000,
        blocked_word: str = "[blocked]",
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        self.embedding_models, self.chat_models = dict(embedding_models), tuple(chat_models)
        self.max_items, self.max_item_tokens = max_items, max_item_tokens
        self.max_request_tokens, self.context_tokens = max_request_tokens, context_tokens
        self.blocked_word = blocked_word

    def routes(self) -> Iterable[Route]:
        return [
            ("POST", "/v1/embeddings", self.embeddings),
            ("POST", "/v1/chat/completions", self.chat),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model}", self.model),
        ]

    # Faults.

    def error(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Headers | None = None,
    ) -> Refusal:
        """Make a refusal in OpenAI's envelope."""
        error = {"message": message, "type": kind, "param": param, "code": code}
        return Refusal(status, {"error": error}, headers)

    def authorise(self, received: Received) -> None:
        if not self.key or received.bearer == self.key:
            return
        text = "You didn't provide an API key." if received.bearer is None else "Incorrect API key provided."
        raise self.error(401, text, code="invalid_api_key")

    def unreadable(self, received: Received) -> Refusal:
        return self.error(400, "We could not parse the JSON body of your request.")

    def mistyped(self, received: Received, key: str) -> Refusal:
        return self.error(400, f"Invalid type for '{key}'.", param=key)

    def unknown_model(self, received: Received, model: str) -> Refusal:
        text = f"The model `{model}` does not exist or you do not have access to it."
        return self.error(404, text, code="model_not_found")

    def filtered(self, received: Received) -> Refusal:
        return self.error(400, "Rejected by the content policy.", code="content_policy_violation")

    async def no_route(self, received: Received) -> web.StreamResponse:
        raise self.error(404, f"Invalid URL ({received.method} {received.path})")

    def over_limit(self, received: Received, model: str, shortage: Shortage) -> Refusal:
        unit, limit, wait = shortage.kind, shortage.limit, shortage.wait
        scope = f"on {unit} per min ({unit[0].upper()}PM)"
        tail = f"for {model} in organization org-example {scope}: Limit {limit},"
        if math.isinf(wait):
            text = f"Request too large {tail} Requested {shortage.requested}."
            return self.error(429, text, kind=unit, code="rate_limit_exceeded")
        text = f"Rate limit reached {tail} Used {shortage.used}, Requested {shortage.requested}."
        text += f" Please try again in {go_duration(wait)}."
        after = {"Retry-After": str(max(1, math.ceil(wait)))}
        return self.error(429, text, kind=unit, code="rate_limit_exceeded", headers=after)

    def reply_headers(self, received: Received, status: int) -> Headers:
        headers = {
            "x-request-id": f"req_{len(self.requests):08d}",
            "openai-processing-ms": "1",
            "openai-version": "2020-10-01",
        }
        limited = received.method == "POST" and status != 401
        return headers | self.rate_headers(go_duration) if limited else headers

    def rate_headers(self, duration: Callable[[float], str]) -> dict[str, str]:
        """Write limit, remaining and reset of each budget."""
        headers = {}
        for unit, budget in [("requests", self.request_budget), ("tokens", self.token_budget)]:
            if budget is not None:
                headers[f"x-ratelimit-limit-{unit}"] = str(budget.limit)
                headers[f"x-ratelimit-remaining-{unit}"] = str(budget.remaining)
                headers[f"x-ratelimit-reset-{unit}"] = duration(budget.reset)
        return headers

    # Models.

    def card(self, model: str) -> JsonObject:
        card = {"id": model, "object": "model", "created": CREATED, "owned_by": "system"}
        return card | {"shutdown_date": SHUTDOWN_DATES.get(model)}

    def model_names(self) -> list[str]:
        return [*self.embedding_models, *self.chat_models]

    async def models(self, received: Received) -> web.StreamResponse:
        return answer(200, {"object": "list", "data": [self.card(name) for name in self.model_names()]})

    async def model(self, received: Received) -> web.StreamResponse:
        name = received.request.match_info["model"]
        if name not in self.model_names():
            raise self.unknown_model(received, name)
        return answer(200, self.card(name))

    def model_of(self, received: Received, body: JsonObject, known: Iterable[str], operation: str) -> str:
        """Return the model that a request is for, or refuse."""
        model: str | None = body.get("model")
        if not model:
            raise self.error(400, "you must provide a model parameter")
        if model not in known:
            raise self.unknown_model(received, model)
        return model

    # Embeddings.

    async def embeddings(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, EMBEDDING_SHAPE)
        self.check_keys(body)
        model = self.model_of(received, body, self.embedding_models, "embeddings")
        size = self.size_of(body, model)
        items = self.items_of(body)
        tokens = sum(map(token_count, items))
        self.check_content(received, [item for item in items if isinstance(item, str)])
        self.charge(received, model, tokens)
        self.check_tokens(items, tokens)
        await self.work()
        rows = self.rows([vector_for(item, size) for item in items], body.get("encoding_format", "float"))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return answer(200, {"object": "list", "data": rows, "model": model, "usage": usage})

    def check_keys(self, body: JsonObject) -> None:
        unknown = sorted(body.keys() - EMBEDDING_KEYS)
        if unknown and self.refuses_unknown_keys:
            raise self.error(400, f"Unrecognized request argument supplied: {', '.join(unknown)}")
        if body.get("encoding_format", "float") not in ("float", "base64"):
            raise self.error(400, "'$.encoding_format' is invalid.", param="encoding_format")

    def size_of(self, body: JsonObject, model: str) -> int:
        """Return the vector size that a request asks for."""
        full = self.embedding_models[model]
        size = body.get("dimensions", full)
        if "dimensions" in body and model in FIXED_SIZE:
            raise self.error(400, "This model does not support specifying dimensions.", param="dimensions")
        if size is None or not 1 <= size <= full:
            raise self.error(400, f"Invalid value for 'dimensions': 1 to {full}.", param="dimensions")
        return int(size)

    def items_of(self, body: JsonObject) -> list[Item]:
        """Return the inputs as a list: a bare text, or a bare list of token ids, is one input."""
        given = body.get("input")
        if isinstance(given, list) and len(given) > self.max_items:
            raise self.error(400, f"'$.input' is invalid: array length must be {self.max_items} or less.")
        items = [given] if isinstance(given, str) or is_tokens(given) else given
        if not isinstance(items, list) or not items:
            raise self.error(400, "'$.input' is invalid.")
        if not (all(isinstance(item, str) and item for item in items) or all(map(is_tokens, items))):
            raise self.error(400, "'$.input' is invalid.")
        return items

    def check_content(self, received: Received, texts: Iterable[str]) -> None:
        if any(self.blocked_word in text for text in texts):
            raise self.filtered(received)

    def check_tokens(self, items: Sequence[Item], total: int) -> None:
        longest = max(map(token_count, items))
        if longest > self.max_item_tokens:
            raise self.too_long(longest, self.max_item_tokens, code=self.too_long_code)
        if total > self.max_request_tokens:
            text = f"Requested {total} tokens, max {self.max_request_tokens} tokens per request"
            raise self.error(400, text, kind="max_tokens_per_request", code="max_tokens_per_request")

    def too_long(self, tokens: int, limit: int, code: str | None, param: str | None = None) -> Refusal:
        text = f"This model's maximum context length is {limit} tokens, however you requested {tokens}."
        return self.error(400, text, param=param, code=code)

    # Chat.

    async def chat(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, CHAT_SHAPE)
        model = self.model_of(received, body, self.chat_models, "chatCompletion")
        messages = body.get("messages")
        if not is_conversation(messages):
            raise self.error(400, "Missing or invalid parameter: 'messages'.", param="messages")
        self.check_content(received, map(message_text, messages))
        reply = reply_to(messages, body.get("max_completion_tokens", body.get("max_tokens")))
        self.charge(received, model, reply.prompt_tokens)
        if reply.prompt_tokens > self.context_tokens:
            code = "context_length_exceeded"
            raise self.too_long(reply.prompt_tokens, self.context_tokens, code=code, param="messages")
        await self.work()
        if body.get("stream"):
            events = self.chat_events(model, reply, body.get("stream_options") or {})
            return await self.stream(received, events, "text/event-stream; charset=utf-8")
        return answer(200, self.completion(model, reply))

    def completion(self, model: str, reply: Reply) -> JsonObject:
        """Write the whole reply as one object."""
        message = {"role": "assistant", "content": reply.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish_reason}
        head = {"id": "chatcmpl-1", "object": "chat.completion", "created": CREATED, "model": model}
        return head | {"choices": [choice], "usage": self.chat_usage(reply)}

    def chat_usage(self, reply: Reply) -> JsonObject:
        spent = {"reasoning_tokens": 0, "audio_tokens": 0}
        predicted = {"accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0}
        return {
            **reply.usage,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": spent | predicted,
        }

    def chat_events(self, model: str, reply: Reply, options: Mapping[str, Any]) -> Iterator[bytes]:
        """Write the reply as a stream: role, pieces, finish, usage if asked for, ``[DONE]``."""
        tail: JsonObject = {"usage": None} if options.get("include_usage") else {}
        if options.get("include_obfuscation", True):
            tail["obfuscation"] = "xK2"
        yield sse(self.chunk(model, {"role": "assistant", "content": "", "refusal": None}) | tail)
        for piece in reply.pieces[: self.break_stream_after]:
            yield sse(self.chunk(model, {"content": piece}) | tail)
        if self.break_stream_after is not None:
            yield sse(self.error(500, "The server failed.", kind="server_error").body)
            return
        yield sse(self.chunk(model, {}, reply.finish_reason) | tail)
        if "usage" in tail:
            yield sse(self.chunk(model) | tail | {"usage": self.chat_usage(reply)})
        yield SSE_DONE

    def chunk(self, model: str, delta: JsonObject | None = None, finish: str | None = None) -> JsonObject:
        """Write one streamed chunk; without a delta it has no choice."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": model}
        return head | {"service_tier": "default", "choices": [] if delta is None else [choice]}
