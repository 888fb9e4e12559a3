"""Anthropic: messages and models as api.anthropic.com serves them (docs/development/provider-facts.md#anthropic)."""

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Unpack

from aiohttp import web

from tests.support.emulators import anthropic_requests as requests
from tests.support.emulators.anthropic_requests import MODELS, AnthropicModel, Fault
from tests.support.emulators.base import (
    Common,
    Emulator,
    Headers,
    JsonObject,
    Received,
    Refusal,
    Route,
    Shortage,
    answer,
    reply_to,
    token_count,
)

CREATED_AT = "2025-10-01T00:00:00Z"
TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}
CALLS = ("tool_use", "server_tool_use")


def signature_for(model: str, thinking: str) -> str:
    """The signature of a block of thinking: of this model and these words alone."""
    return b64encode(hashlib.sha256(f"{model}:{thinking}".encode()).digest()).decode()


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer: its blocks, why it stopped, and what it cost."""

    blocks: list[JsonObject]
    stop_reason: str
    usage: JsonObject
    model: AnthropicModel

    @property
    def message(self) -> JsonObject:
        """The whole of it."""
        head = {"id": "msg_01", "type": "message", "role": "assistant", "model": self.model.name}
        about = {"stop_reason": self.stop_reason, "stop_sequence": None, "stop_details": None}
        return {**head, "content": self.blocks, **about, "usage": self.usage}


class AnthropicEmulator(Emulator):
    """api.anthropic.com/v1.

    Without a script the model repeats the last message, as the other emulators do.

    Args:
        models: what there is, each also under its aliases.
        page_size: the most models in a page of the list.
        common: see ``Emulator``.

    Attributes:
        script: answers to come, as lists of blocks; thinking without a signature is signed.
    """

    def __init__(
        self, *, models: Iterable[AnthropicModel] = MODELS, page_size: int = 1000, **common: Unpack[Common]
    ) -> None:
        super().__init__(**common)
        self.models_by_name = {name: model for model in models for name in (model.name, *model.aliases)}
        self.page_size = page_size
        self.script: list[list[JsonObject]] = []
        self._issued: dict[str, list[JsonObject]] = {}
        self._cached: set[str] = set()

    def routes(self) -> Iterable[Route]:
        return [
            ("POST", "/v1/messages", self.messages),
            ("POST", "/v1/messages/count_tokens", self.count),
            ("GET", "/v1/models", self.models),
            ("GET", "/v1/models/{model}", self.model),
        ]

    # Faults.

    def error(self, status: int, message: str, *, code: str = "", headers: Headers | None = None) -> Refusal:
        """Make a refusal in Anthropic's envelope."""
        return Refusal(status, self.envelope(TYPES[status], message, code), headers)

    def envelope(self, kind: str, message: str, code: str = "") -> JsonObject:
        error: JsonObject = {"type": kind, "message": message}
        if code:
            error["details"] = {"error_code": code}
        return {"type": "error", "error": error, "request_id": f"req_{len(self.requests):08d}"}

    def authorise(self, received: Received) -> None:
        if self.key and self.key not in (received.headers.get("x-api-key"), received.bearer):
            raise self.error(401, "invalid x-api-key")
        if "anthropic-version" not in received.headers:
            raise self.error(400, "anthropic-version: header is required")

    def unreadable(self, received: Received) -> Refusal:
        return self.error(400, "The request body is not valid JSON")

    async def no_route(self, received: Received) -> web.StreamResponse:
        raise self.error(404, "Not Found")

    def over_limit(self, received: Received, model: str, shortage: Shortage) -> Refusal:
        unit = {"requests": "requests", "tokens": "input tokens"}[shortage.kind]
        text = "This request would exceed the rate limit for your organization (org-example) of "
        after = {
            "retry-after": str(max(1, math.ceil(min(shortage.wait, 60.0)))),
            "x-should-retry": "true",
        }
        return self.error(429, f"{text}{shortage.limit:,} {unit} per minute.", headers=after)

    def reply_headers(self, received: Received, status: int) -> Headers:
        headers = {"request-id": f"req_{len(self.requests):08d}", "anthropic-organization-id": "org-example"}
        if received.method != "POST" or status == 401:
            return headers
        # Real answers have it too, and mean nothing by it.
        waiting = {"retry-after": "19"} if status == 200 else {}
        return {**headers, **waiting, **self.rate_headers()}

    def rate_headers(self) -> dict[str, str]:
        """Limit, remaining and the moment when all is there again; the tokens that remain are rounded to thousands."""
        headers: dict[str, str] = {}
        kinds = (("requests", self.request_budget), ("input-tokens", self.token_budget))
        for kind, budget in (*kinds, ("tokens", self.token_budget)):
            if budget is None:
                continue
            left = budget.remaining if kind == "requests" else round(budget.remaining, -3)
            full = datetime.fromtimestamp(math.ceil(self._now() + budget.reset), UTC)
            values = {"limit": budget.limit, "remaining": left, "reset": full.strftime("%Y-%m-%dT%H:%M:%SZ")}
            headers |= {f"anthropic-ratelimit-{kind}-{name}": str(value) for name, value in values.items()}
        return headers

    def _now(self) -> float:
        budget = self.request_budget or self.token_budget
        return budget.now() if budget is not None else 0.0

    # Models.

    def card(self, model: AnthropicModel) -> JsonObject:
        can = {"image_input": {"supported": True}, "pdf_input": {"supported": True}}
        thinks = {"supported": True, "types": {"adaptive": {"supported": "adaptive" not in model.refused}}}
        return {
            "id": model.name,
            "type": "model",
            "display_name": model.name.replace("-", " ").title(),
            "created_at": CREATED_AT,
            "capabilities": {**can, "batch": {"supported": True}, "thinking": thinks},
            "max_input_tokens": model.context,
            "max_tokens": model.max_tokens,
            "lifecycle": "deprecated" if model.retires_at else "active",
            "deprecated_at": "2026-01-01T00:00:00Z" if model.retires_at else None,
            "retires_at": model.retires_at,
            "line": "claude",
        }

    async def models(self, received: Received) -> web.StreamResponse:
        every = [self.card(model) for model in dict.fromkeys(self.models_by_name.values())]
        limit = int(received.query.get("limit", "20"))
        if not 1 <= limit <= 1000:
            raise self.error(400, "limit: Input should be less than or equal to 1000")
        names = [card["id"] for card in every]
        after = received.query.get("after_id")
        if after is not None and after not in names:
            raise self.error(400, "after_id: no such model")
        start = names.index(after) + 1 if after is not None else 0
        page = every[start : start + min(limit, self.page_size)]
        more = start + len(page) < len(every)
        first, last = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        return answer(200, {"data": page, "has_more": more, "first_id": first, "last_id": last})

    async def model(self, received: Received) -> web.StreamResponse:
        return answer(200, self.card(self.model_of(received.request.match_info["model"])))

    def model_of(self, name: object) -> AnthropicModel:
        """The model of a name, or a refusal."""
        if not isinstance(name, str) or name not in self.models_by_name:
            raise self.error(404, f"model: {name}")
        return self.models_by_name[name]

    # Messages.

    async def messages(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, {})
        try:
            requests.check_fields(body)
            model = self.model_of(body["model"])
            requests.check(body, model, received.headers["anthropic-version"])
            self.check_signatures(body["messages"], model)
        except Fault as fault:
            raise self.error(400, str(fault)) from None
        tokens = requests.tokens_of(body)
        if tokens > model.context:
            raise self.error(400, f"prompt is too long: {tokens} tokens > {model.context} maximum")
        self.charge(received, model.name, tokens)
        await self.work()
        said = self.said(body, model, tokens)
        if body.get("stream"):
            return await self.stream(received, self.events(said), "text/event-stream; charset=utf-8")
        return answer(200, said.message)

    async def count(self, received: Received) -> web.StreamResponse:
        body = self.body_of(received, {})
        self.model_of(body.get("model"))
        return answer(200, {"input_tokens": requests.tokens_of(body)})

    def check_signatures(self, turns: Sequence[JsonObject], model: AnthropicModel) -> None:
        """Refuse thinking that was not written here, and a loop of tools in which some of it was lost."""
        for number, turn in enumerate(turns):
            blocks = turn["content"] if isinstance(turn["content"], list) else []
            for place, block in enumerate(blocks):
                if block["type"] == "thinking" and block["signature"] != signature_for(
                    model.name, block["thinking"]
                ):
                    raise Fault(f"messages.{number}.content.{place}: Invalid `signature` in `thinking` block")
            if turn["role"] == "assistant" and requests.is_latest(turns, number):
                self.check_thinking(blocks, number)

    def check_thinking(self, blocks: Sequence[JsonObject], number: int) -> None:
        """The thinking of a step with calls comes back complete, in order, and as it was."""
        called = next((block["id"] for block in blocks if block["type"] == "tool_use"), "")
        thinking = [block for block in blocks if "thinking" in block["type"]]
        if called in self._issued and thinking != self._issued[called]:
            raise Fault(
                f"messages.{number}.content.0: `thinking` or `redacted_thinking` blocks in the latest assistant "
                "message cannot be modified. These blocks must remain as they were in the original response."
            )

    def said(self, body: JsonObject, model: AnthropicModel, tokens: int) -> Said:
        """What the model answers."""
        if self.script:
            blocks = [self.signed(block, model) for block in self.script.pop(0)]
            called = any(block["type"] == "tool_use" for block in blocks)
            reason = "tool_use" if called else "end_turn"
            output = 1 + sum(token_count(json.dumps(block)) for block in blocks)
        else:
            last = requests.text_of(body["messages"][-1])
            reply = reply_to([{"content": last}], body["max_tokens"])
            blocks = [{"type": "text", "text": reply.text}]
            reason = "end_turn" if reply.finish_reason == "stop" else "max_tokens"
            output = len(reply.pieces)
        thinking = [block for block in blocks if "thinking" in block["type"]]
        for block in blocks:
            if block["type"] == "tool_use":
                self._issued[block["id"]] = thinking
        usage = self.usage(body, tokens, output, sum(token_count(json.dumps(block)) for block in thinking))
        return Said(blocks=blocks, stop_reason=reason, usage=usage, model=model)

    def signed(self, block: JsonObject, model: AnthropicModel) -> JsonObject:
        if block["type"] != "thinking" or "signature" in block:
            return block
        return {**block, "signature": signature_for(model.name, block["thinking"])}

    def usage(self, body: JsonObject, tokens: int, output: int, thinking: int) -> JsonObject:
        """The input in three parts: with `cache_control` all of it is written to the cache, and read the next time."""
        written = read = 0
        if body.get("cache_control"):
            prefix = json.dumps([body.get("system"), body["messages"][0]])
            written, read = (0, tokens) if prefix in self._cached else (tokens, 0)
            self._cached.add(prefix)
        usage = {
            "input_tokens": tokens - written - read,
            "cache_creation_input_tokens": written,
            "cache_read_input_tokens": read,
            "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
            "output_tokens": output,
            "service_tier": "standard",
        }
        return {**usage, "output_tokens_details": {"thinking_tokens": thinking}} if thinking else usage

    def events(self, said: Said) -> Iterator[bytes]:
        """The answer as a stream: pings anywhere, an event of an unknown type, usage in two parts."""
        whole = said.message
        begun = {**said.usage, "output_tokens": 1}
        begun.pop("output_tokens_details", None)
        start = {**whole, "content": [], "stop_reason": None, "usage": begun}
        yield event({"type": "message_start", "message": start})
        yield event({"type": "a_type_of_tomorrow", "note": "ignore it"})
        sent = 0
        for index, block in enumerate(said.blocks):
            empty, deltas = pieces_of(block)
            yield event({"type": "content_block_start", "index": index, "content_block": empty})
            yield event({"type": "ping"})
            for delta in deltas:
                if self.break_stream_after == sent:
                    yield event(self.envelope("api_error", "Internal server error"), "error")
                    return
                yield event({"type": "content_block_delta", "index": index, "delta": delta})
                sent += 1
            yield event({"type": "content_block_stop", "index": index})
        # Without the parts of the input that did not change.
        told = {"output_tokens": said.usage["output_tokens"]}
        if "output_tokens_details" in said.usage:
            told["output_tokens_details"] = said.usage["output_tokens_details"]
        delta = {"stop_reason": said.stop_reason, "stop_sequence": None, "stop_details": None}
        yield event({"type": "message_delta", "delta": delta, "usage": told})
        yield event({"type": "message_stop"})


def event(value: JsonObject, name: str = "") -> bytes:
    """One event; the object is padded with blanks, as the real ones are."""
    text = json.dumps(value, ensure_ascii=False)[:-1]
    return f"event: {name or value['type']}\ndata: {text}     }}\n\n".encode()


def pieces_of(block: JsonObject) -> tuple[JsonObject, list[JsonObject]]:
    """A block without its content, and the content in pieces; blocks of other types come whole."""
    match block["type"]:
        case "text":
            words = block["text"].split(" ")
            pieces = [words[0], *(f" {word}" for word in words[1:])]
            return {**block, "text": ""}, [{"type": "text_delta", "text": piece} for piece in pieces]
        case "thinking":
            thought, signature = block["thinking"], block["signature"]
            middle = len(thought) // 2
            halves = [half for half in (thought[:middle], thought[middle:]) if half]
            signed = {"type": "signature_delta", "signature": signature}
            said = [{"type": "thinking_delta", "thinking": half} for half in halves]
            return {**block, "thinking": "", "signature": ""}, [*said, signed]
        case kind if kind in CALLS:
            text = json.dumps(block["input"], ensure_ascii=False) if block["input"] else ""
            middle = len(text) // 2
            pieces = ["", *(half for half in (text[:middle], text[middle:]) if half)]
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": each} for each in pieces
            ]
    return block, []
