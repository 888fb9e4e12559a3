"""Ollama: the native API under /api and the OpenAI-like one under /v1 (docs/development/provider-facts.md#ollama)."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

from aiohttp import web

from tests.support.emulators.base import (
    CREATED,
    SSE_DONE,
    Common,
    Emulator,
    JsonObject,
    Received,
    Refusal,
    Reply,
    Route,
    Shape,
    answer,
    cut,
    embedding_rows,
    is_conversation,
    json_bytes,
    reply_to,
    sse,
    token_count,
    vector_for,
)

EMBED_SHAPE: Shape = {
    "model": str,
    "prompt": str,
    "truncate": bool,
    "dimensions": int,
    "encoding_format": str,
    "options": dict,
}
CHAT_SHAPE: Shape = {
    "model": str,
    "messages": list,
    "stream": bool,
    "stream_options": dict,
    "max_tokens": int,
    "options": dict,
}
MOMENT = "2023-11-14T22:13:20Z"
DURATION = 1_000_000
V1_TYPES = {400: "invalid_request_error", 404: "not_found_error"}


@dataclass(frozen=True, kw_only=True)
class OllamaModel:
    """One pulled model; with dimensions it embeds, without it chats."""

    name: str
    family: str
    dimensions: int = 0
    context: int = 2048

    @property
    def capabilities(self) -> list[str]:
        return ["embedding"] if self.dimensions else ["completion", "tools"]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.name.encode()).hexdigest()


MODELS = (
    OllamaModel(name="nomic-embed-text:latest", family="nomic-bert", dimensions=768),
    OllamaModel(name="qwen3:0.6b", family="qwen3", context=40_960),
)


def json_complaint(body: bytes) -> str:
    """Return the message of Go's JSON decoder about a body that is no JSON object."""
    start = body.lstrip()[:1]
    if not start:
        return "missing request body"
    if start in b'{["-0123456789tfn':
        return "unexpected EOF"
    shown = start.decode("latin-1")
    name = shown if shown.isprintable() else f"\\x{start[0]:02x}"
    return f"invalid character '{name}' looking for beginning of value"


class OllamaEmulator(Emulator):
    """A local Ollama (no key), or with ``key`` its cloud; ``base_url`` has no path.

    Args:
        models: what has been pulled.
        max_queue: requests that may wait; one more is a 503.
        recent_details: send context_length, embedding_length and capabilities in /api/tags.
        common: see ``Emulator``; rpm and tpm are refused, Ollama has no such limits.
    """

    default_key: ClassVar[str] = ""
    base_path: ClassVar[str] = ""

    def __init__(
        self,
        *,
        models: Iterable[OllamaModel] = MODELS,
        max_queue: int = 512,
        recent_details: bool = True,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if self.request_budget or self.token_budget:
            raise ValueError("Ollama has no rate limits: rpm and tpm must be None")
        self.models_by_name = {model.name: model for model in models}
        self.max_queue, self.recent_details = max_queue, recent_details
        self._loaded: dict[str, OllamaModel] = {}

    def routes(self) -> Iterable[Route]:
        return [
            ("GET", "/", self.alive),
            ("GET", "/api/version", self.version),
            ("GET", "/api/tags", self.tags),
            ("GET", "/api/ps", self.running),
            ("POST", "/api/show", self.show),
            ("POST", "/api/embed", self.embed),
            ("POST", "/api/embeddings", self.embed_one),
            ("POST", "/api/chat", self.chat),
            ("GET", "/v1/models", self.v1_models),
            ("POST", "/v1/embeddings", self.v1_embeddings),
            ("POST", "/v1/chat/completions", self.v1_chat),
        ]

    # Faults.

    def error(self, received: Received, status: int, message: str, **more: str) -> Refusal:
        """Make a refusal: a bare text natively, an envelope under /v1."""
        if not received.path.startswith("/v1/"):
            return Refusal(status, {"error": message, **more})
        kind = V1_TYPES.get(status, "api_error")
        return Refusal(status, {"error": {"message": message, "type": kind, "param": None, "code": None}})

    def authorise(self, received: Received) -> None:
        if self.key and received.bearer != self.key:
            raise self.error(received, 401, "unauthorized", signin_url="https://ollama.com/connect")

    def unreadable(self, received: Received) -> Refusal:
        return self.error(received, 400, json_complaint(received.body))

    def mistyped(self, received: Received, key: str) -> Refusal:
        return self.error(received, 400, f"json: cannot unmarshal value into Go struct field {key}")

    async def no_route(self, received: Received) -> web.StreamResponse:
        return answer(404, "404 page not found")

    def find(self, received: Received, name: str | None, hint: str = "") -> OllamaModel:
        """Return a pulled model; a name without a tag means ``:latest``."""
        name = name or ""
        tagged = name if ":" in name else f"{name}:latest"
        if tagged not in self.models_by_name:
            raise self.error(received, 404, f"model '{name}' not found{hint}")
        return self.models_by_name[tagged]

    def model_of(self, received: Received, body: JsonObject, capability: str) -> OllamaModel:
        """Return the model that is to work, loaded, or refuse."""
        if self.in_flight > self.max_queue:
            text = "server busy, please try again.  maximum pending requests exceeded"
            raise self.error(received, 503, text)
        model = self.find(received, body.get("model"), ", try pulling it first")
        if capability not in model.capabilities:
            raise self.error(received, 400, f'"{body["model"]}" does not support {capability}')
        self._loaded[model.name] = model
        return model

    # What is there.

    async def alive(self, received: Received) -> web.StreamResponse:
        return answer(200, "Ollama is running")

    async def version(self, received: Received) -> web.StreamResponse:
        return answer(200, {"version": "0.33.0"})

    async def tags(self, received: Received) -> web.StreamResponse:
        return answer(200, {"models": [self.card(model) for model in self.models_by_name.values()]})

    def card(self, model: OllamaModel) -> JsonObject:
        card = {"name": model.name, "model": model.name, "modified_at": MOMENT, "size": 274_302_450}
        card |= {"digest": model.digest, "details": self.details(model)}
        return card | {"capabilities": model.capabilities} if self.recent_details else card

    def details(self, model: OllamaModel) -> JsonObject:
        details: JsonObject = {"parent_model": "", "format": "gguf", "family": model.family}
        details |= {"families": [model.family], "parameter_size": "137M", "quantization_level": "F16"}
        recent = {"context_length": model.context, "embedding_length": model.dimensions or 1024}
        return details | recent if self.recent_details else details

    async def running(self, received: Received) -> web.StreamResponse:
        extra = {"size_vram": 0, "expires_at": MOMENT}
        cards = [
            self.card(model) | extra | {"context_length": model.context} for model in self._loaded.values()
        ]
        return answer(200, {"models": cards})

    async def show(self, received: Received) -> web.StreamResponse:
        model = self.find(received, self.body_of(received, {"model": str}).get("model"))
        info = {
            "general.architecture": model.family,
            f"{model.family}.context_length": model.context,
            f"{model.family}.embedding_length": model.dimensions or 1024,
        }
        shown = {"details": self.details(model), "model_info": info, "capabilities": model.capabilities}
        return answer(200, shown | {"modified_at": MOMENT})

    async def v1_models(self, received: Received) -> web.StreamResponse:
        fixed = {"object": "model", "created": CREATED, "owned_by": "library"}
        return answer(
            200, {"object": "list", "data": [{"id": name, **fixed} for name in self.models_by_name]}
        )

    # Embeddings.

    def embedded(self, received: Received, body: JsonObject, given: Any) -> tuple[list[Any], int]:
        """Return the vectors of the inputs, cut to the context, and the tokens read."""
        model = self.model_of(received, body, "embedding")
        texts = given if isinstance(given, list) else [given] if given else []
        if not all(isinstance(text, str) for text in texts):
            raise self.error(received, 400, "invalid input type")
        if body.get("truncate") is False and any(token_count(text) > model.context for text in texts):
            raise self.error(received, 400, "the input length exceeds the context length")
        kept = [cut(text, model.context) for text in texts]
        asked = body.get("dimensions") or 0
        size = asked if 0 < asked < model.dimensions else model.dimensions
        return [vector_for(text, size) for text in kept], sum(map(token_count, kept))

    async def embed(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, EMBED_SHAPE)
        vectors, tokens = self.embedded(received, body, body.get("input"))
        await self.work()
        reply = {"model": body["model"], "embeddings": [vector.tolist() for vector in vectors]}
        times = {"total_duration": 2 * DURATION, "load_duration": DURATION, "prompt_eval_count": tokens}
        return answer(200, reply | times)

    async def embed_one(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, EMBED_SHAPE)
        vectors, _ = self.embedded(received, body, body.get("prompt"))
        await self.work()
        return answer(200, {"embedding": vectors[0].tolist() if vectors else []})

    async def v1_embeddings(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, EMBED_SHAPE)
        given, encoding = body.get("input"), body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            text = f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
            raise self.error(received, 400, text)
        if given is None or given == []:
            raise self.error(received, 400, "invalid input")
        passed_on = {key: value for key, value in body.items() if key in ("model", "dimensions")}
        vectors, tokens = self.embedded(received, passed_on, [""] if given == "" else given)
        await self.work()
        rows = embedding_rows(vectors, encoding)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return answer(200, {"object": "list", "data": rows, "model": body["model"], "usage": usage})

    # Chat.

    def reply(self, received: Received, body: JsonObject, max_tokens: int | None) -> Reply:
        self.model_of(received, body, "completion")
        if not is_conversation(body.get("messages")):
            raise self.error(received, 400, "[] is too short - 'messages'")
        return reply_to(body["messages"], max_tokens)

    async def chat(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, CHAT_SHAPE)
        most = (body.get("options") or {}).get("num_predict")
        reply = self.reply(received, body, most if isinstance(most, int) else None)
        await self.work()
        if body.get("stream", True):
            return await self.stream(received, self.chat_lines(body["model"], reply), "application/x-ndjson")
        return answer(200, self.last_line(body["model"], reply, reply.text))

    def chat_lines(self, model: str, reply: Reply) -> Iterator[bytes]:
        """Write the reply as one JSON object a line."""
        for piece in reply.pieces[: self.break_stream_after]:
            yield json_bytes(line(model, piece) | {"done": False}) + b"\n"
        broken = self.break_stream_after is not None
        last = {"error": "an error was encountered while running the model"} if broken else None
        yield json_bytes(last or self.last_line(model, reply, "")) + b"\n"

    def last_line(self, model: str, reply: Reply, text: str) -> JsonObject:
        counts = {"prompt_eval_count": reply.prompt_tokens, "eval_count": len(reply.pieces)}
        times = {"total_duration": 4, "load_duration": 1, "prompt_eval_duration": 1, "eval_duration": 2}
        times = {name: factor * DURATION for name, factor in times.items()}
        return line(model, text) | {"done": True, "done_reason": reply.finish_reason} | counts | times

    async def v1_chat(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, CHAT_SHAPE)
        reply = self.reply(received, body, body.get("max_tokens"))
        await self.work()
        head = {
            "id": "chatcmpl-1",
            "created": CREATED,
            "model": body["model"],
            "system_fingerprint": "fp_ollama",
        }
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            events = self.v1_events(head | {"object": "chat.completion.chunk"}, reply, usage=usage)
            return await self.stream(received, events, "text/event-stream")
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        return answer(200, head | {"object": "chat.completion", "choices": [choice], "usage": reply.usage})

    def v1_events(self, head: JsonObject, reply: Reply, *, usage: bool) -> Iterator[bytes]:
        """Write the reply as SSE. A failure is one empty chunk, and the end without ``[DONE]``."""

        def chunk(text: str, finish: str | None = None) -> bytes:
            delta = {"role": "assistant", "content": text}
            return sse(head | {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        for piece in reply.pieces[: self.break_stream_after]:
            yield chunk(piece)
        yield chunk("", None if self.break_stream_after is not None else reply.finish_reason)
        if self.break_stream_after is not None:
            return
        if usage:
            yield sse(head | {"choices": [], "usage": reply.usage})
        yield SSE_DONE


def line(model: str, text: str) -> JsonObject:
    """Write the part that every native chat line has."""
    return {"model": model, "created_at": MOMENT, "message": {"role": "assistant", "content": text}}
