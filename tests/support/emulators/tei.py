"""text-embeddings-inference 1.9: /info, /embed and /v1/embeddings of one model (docs/development/provider-facts.md#tei)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, ClassVar, Unpack

from aiohttp import web

from tests.support.emulators.base import (
    Common,
    Emulator,
    Headers,
    Item,
    JsonObject,
    Received,
    Refusal,
    Route,
    Shape,
    answer,
    cut,
    embedding_rows,
    token_count,
    vector_for,
)

STATUS = {
    "Empty": 400,
    "Validation": 422,
    "Tokenizer": 422,
    "Backend": 424,
    "Overloaded": 429,
    "Unhealthy": 503,
}
CHARACTERS_PER_TOKEN = 250
EMBED_SHAPE: Shape = {
    "truncate": bool,
    "truncation_direction": str,
    "prompt_name": str,
    "normalize": bool,
    "dimensions": int,
}
V1_SHAPE: Shape = {"model": str, "user": str, "encoding_format": str, "dimensions": int}


def is_ids(value: Any) -> bool:
    """Return whether a value is one input given as token ids."""
    return isinstance(value, list) and bool(value) and all(type(number) is int for number in value)


class TEIEmulator(Emulator):
    """A text-embeddings-inference router; ``base_url`` has no path, ``base_url + "/v1"`` is the OpenAI-like root.

    Args:
        model_id: the one model.
        dimensions: its vector size.
        max_input_length: tokens in one item.
        max_client_batch_size: items in one request.
        max_concurrent_requests: permits; each item in flight takes one.
        max_batch_tokens: shown in /info only, no limit of a request.
        auto_truncate: cut long items where the request does not say.
        payload_limit: bytes in one body.
        prompts: names for ``prompt_name`` and the text each puts in front.
        batches_wait: let a batch wait for its permits instead of refusing it (older routers did).
        common: see ``Emulator``; rpm and tpm are refused, TEI has no such limits.

    Attributes:
        backend_fails: answer 424 Backend to every item.
        healthy: when False, /health and the model answer 503 Unhealthy.
    """

    default_key: ClassVar[str] = ""
    base_path: ClassVar[str] = ""

    def __init__(
        self,
        *,
        model_id: str = "BAAI/bge-small-en-v1.5",
        dimensions: int = 384,
        max_input_length: int = 512,
        max_client_batch_size: int = 32,
        max_concurrent_requests: int = 512,
        max_batch_tokens: int = 16_384,
        auto_truncate: bool = True,
        payload_limit: int = 2_000_000,
        prompts: Mapping[str, str] | None = None,
        batches_wait: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(**common)
        if self.request_budget or self.token_budget:
            raise ValueError("TEI has no rate limits: rpm and tpm must be None")
        self.model_id, self.dimensions = model_id, dimensions
        self.max_input_length, self.max_client_batch_size = max_input_length, max_client_batch_size
        self.max_concurrent_requests, self.max_batch_tokens = max_concurrent_requests, max_batch_tokens
        self.auto_truncate, self.payload_limit = auto_truncate, payload_limit
        self.prompts, self.batches_wait = dict(prompts or {}), batches_wait
        self.backend_fails, self.healthy = False, True
        self.permits_taken = 0
        self._returned = asyncio.Condition()

    def routes(self) -> Iterable[Route]:
        return [
            ("GET", "/health", self.health),
            ("GET", "/info", self.info),
            ("POST", "/embed", self.embed),
            ("POST", "/embeddings", self.v1_embeddings),
            ("POST", "/v1/embeddings", self.v1_embeddings),
        ]

    # Faults.

    def error(self, received: Received, kind: str, message: str) -> Refusal:
        """Make a refusal: ``error_type`` on native routes, a flat body with an int code on the other."""
        status = STATUS[kind]
        if received.path.endswith("/embeddings"):
            return Refusal(status, {"message": message, "code": status, "type": kind})
        return Refusal(status, {"error": message, "error_type": kind})

    def authorise(self, received: Received) -> None:
        if self.key and received.path != "/health" and received.bearer != self.key:
            raise Refusal(401)

    def body_of(self, received: Received, shape: Shape) -> JsonObject:
        """Return the JSON object in the body, or refuse as the web layer does: in plain text."""
        if "json" not in received.headers.get("Content-Type", ""):
            raise Refusal(415, "Expected request with `Content-Type: application/json`")
        if len(received.body) > self.payload_limit:
            raise Refusal(413, "Failed to buffer the request body: length limit exceeded")
        return super().body_of(received, shape)

    def unreadable(self, received: Received) -> Refusal:
        if received.json is None:
            return Refusal(400, "Failed to parse the request body as JSON: expected value at line 1 column 1")
        return misfit("invalid type, expected a struct")

    def mistyped(self, received: Received, key: str) -> Refusal:
        return misfit(f"{key}: invalid type")

    # Embeddings.

    async def health(self, received: Received) -> web.StreamResponse:
        if not self.healthy:
            raise self.error(received, "Unhealthy", "unhealthy")
        return answer(200)

    async def info(self, received: Received) -> web.StreamResponse:
        return answer(200, {
            "model_id": self.model_id,
            "model_sha": None,
            "model_dtype": "float32",
            "served_model_name": self.model_id,
            "model_type": {"embedding": {"pooling": "cls"}},
            "max_concurrent_requests": self.max_concurrent_requests,
            "max_input_length": self.max_input_length,
            "max_batch_tokens": self.max_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": self.max_client_batch_size,
            "auto_truncate": self.auto_truncate,
            "tokenization_workers": 2,
            "version": "1.9.3",
            "sha": None,
            "docker_label": None,
        })  # fmt: skip

    async def embed(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, EMBED_SHAPE)
        truncate = body.get("truncate")
        items = await self.processed(
            received,
            self.prompted(received, body),
            truncate=self.auto_truncate if truncate is None else truncate,
            left=body.get("truncation_direction") == "Left",
        )
        size = self.size_of(received, body)
        scale = 1 if body.get("normalize", True) else 3
        vectors = [(scale * vector_for(item, size)).tolist() for item in items]
        return answer(200, vectors, compute_headers(items))

    async def v1_embeddings(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, V1_SHAPE)
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise misfit(f"encoding_format: unknown variant `{encoding}`")
        given = body.get("input")
        items = await self.processed(received, given, truncate=self.auto_truncate, left=False)
        size = self.size_of(received, body)
        tokens = sum(map(token_count, items))
        reply = {
            "object": "list",
            "data": embedding_rows([vector_for(item, size) for item in items], encoding),
            "model": self.model_id,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return answer(200, reply, compute_headers(items))

    def prompted(self, received: Received, body: JsonObject) -> Any:
        """Return the inputs, each with the named prompt in front."""
        given, name = body.get("inputs"), body.get("prompt_name")
        if name is None:
            return given
        if name not in self.prompts:
            raise self.error(received, "Validation", f"Input validation error: unknown prompt name `{name}`")
        texts = given if isinstance(given, list) else [given]
        fronted = [self.prompts[name] + text if isinstance(text, str) else text for text in texts]
        return fronted if isinstance(given, list) else fronted[0]

    async def processed(self, received: Received, given: Any, *, truncate: bool, left: bool) -> list[Item]:
        """Take the inputs through permits, tokenizer and backend; return them as the model read them."""
        items = items_of(given)
        self.check_batch(received, items)
        async with self.permits(received, len(items), waits=self.batches_wait and isinstance(given, list)):
            kept = [self.tokenized(received, item, truncate=truncate, left=left) for item in items]
            await self.work()
            if self.backend_fails:
                raise self.error(received, "Backend", "backend error: inference failed")
        return kept

    def check_batch(self, received: Received, items: list[Item]) -> None:
        if not self.healthy:
            raise self.error(received, "Unhealthy", "unhealthy")
        if not items or not all(items):
            raise self.error(received, "Empty", "`inputs` cannot be empty")
        if len(items) > self.max_client_batch_size:
            text = f"batch size {len(items)} > maximum allowed batch size {self.max_client_batch_size}"
            raise self.error(received, "Validation", text)

    def tokenized(self, received: Received, item: Item, *, truncate: bool, left: bool) -> Item:
        """Return the item, cut to fit if that is wanted."""
        tokens, limit = token_count(item), self.max_input_length
        if tokens <= limit:
            return item
        if truncate:
            return item[-4 * limit :] if left and isinstance(item, str) else cut(item, limit)
        shape = f"less than {limit} tokens. Given: {tokens}"
        if isinstance(item, str) and len(item) > limit * CHARACTERS_PER_TOKEN:
            shape = f"less than {limit * CHARACTERS_PER_TOKEN} characters. Given: {len(item)}"
        raise self.error(received, "Validation", f"Input validation error: `inputs` must have {shape}")

    def size_of(self, received: Received, body: JsonObject) -> int:
        size: int = body.get("dimensions") or self.dimensions
        if size < 0:
            raise misfit(f"dimensions: invalid value: integer `{size}`, expected usize")
        if size > self.dimensions:
            text = f"Input validation error: `dimensions` must be at most {self.dimensions}. Given: {size}"
            raise self.error(received, "Validation", text)
        return size

    @contextlib.asynccontextmanager
    async def permits(self, received: Received, count: int, *, waits: bool) -> AsyncIterator[None]:
        """Hold one permit an item while the block runs."""

        def fits() -> bool:
            return self.permits_taken + count <= self.max_concurrent_requests

        async with self._returned:
            if waits:
                await self._returned.wait_for(lambda: fits() or not self.permits_taken)
            elif not fits():
                raise self.error(received, "Overloaded", "Model is overloaded")
            self.permits_taken += count
        try:
            yield
        finally:
            self.permits_taken -= count
            async with self._returned:
                self._returned.notify_all()


def misfit(message: str) -> Refusal:
    """Refuse JSON of the wrong shape, as the web layer does."""
    return Refusal(422, f"Failed to deserialize the JSON body into the target type: {message}")


def items_of(given: Any) -> list[Item]:
    """Return the inputs as a list: a bare text, or a bare list of token ids, is one input."""
    items = [given] if isinstance(given, str) or is_ids(given) else given
    if isinstance(items, list) and all(isinstance(item, str) or item == [] or is_ids(item) for item in items):
        return items
    raise misfit("data did not match any variant of untagged enum Input")


def compute_headers(items: list[Item]) -> Headers:
    """Write the metrics headers of a success."""
    times = ("compute", "total", "tokenization", "queue", "inference")
    sizes = {
        "x-compute-type": "cpu",
        "x-compute-characters": str(sum(map(len, items))),
        "x-compute-tokens": str(sum(map(token_count, items))),
    }
    return sizes | {f"x-{name}-time": "1" for name in times}
