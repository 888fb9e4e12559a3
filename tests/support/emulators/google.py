"""Google: Gemini's generateContent, embeddings and models as generativelanguage.googleapis.com serves them.

Facts: docs/development/provider-facts.md#gemini.
"""

import hashlib
import json
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Unpack

from aiohttp import web

from tests.support.emulators import google_requests as requests
from tests.support.emulators.base import (
    Common,
    Emulator,
    JsonObject,
    Received,
    Refusal,
    Route,
    Shortage,
    answer,
    reply_to,
    token_count,
    vector_for,
)
from tests.support.emulators.google_requests import FOREIGN, MODELS, Fault, GeminiModel

STATUSES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
RPC = "type.googleapis.com/google.rpc."
FULL = 3072
"""Numbers of a whole vector."""


def signature_for(part: JsonObject) -> str:
    """The signature of a part: of what it says alone."""
    said = json.dumps({key: part[key] for key in sorted(part) if key != "thoughtSignature"}, sort_keys=True)
    return b64encode(hashlib.sha256(said.encode()).digest()).decode()


class GoogleEmulator(Emulator):
    """generativelanguage.googleapis.com/v1beta.

    Without a script the model repeats the last message, as the other emulators do.

    Args:
        models: what there is.
        page_size: the most models in a page of the list.
        common: see ``Emulator``; each text of a batch counts as a request.

    Attributes:
        script: answers to come, as lists of parts; those that have to be signed are signed.
        finish: the finish reason of the answers, and whether they have content.
        block: the reason for which every prompt is blocked, None for none.
    """

    base_path: ClassVar[str] = "/v1beta"

    def __init__(
        self, *, models: Iterable[GeminiModel] = MODELS, page_size: int = 1000, **common: Unpack[Common]
    ) -> None:
        super().__init__(**common)
        self.models_by_name = {model.name: model for model in models}
        self.page_size = page_size
        self.script: list[list[JsonObject]] = []
        self.finish: tuple[str, bool] | None = None
        self.block: str | None = None
        self.embedded: list[str] = []

    def routes(self) -> Iterable[Route]:
        return [
            ("POST", "/v1beta/models/{call}", self.call),
            ("GET", "/v1beta/models", self.models),
            ("GET", "/v1beta/models/{model}", self.model),
        ]

    # Faults.

    def error(self, status: int, message: str, *details: JsonObject) -> Refusal:
        """Make a refusal in Google's envelope."""
        return Refusal(status, self.envelope(status, message, *details))

    def envelope(self, status: int, message: str, *details: JsonObject) -> JsonObject:
        error: JsonObject = {"code": status, "message": message, "status": STATUSES[status]}
        return {"error": {**error, "details": list(details)} if details else error}

    def authorise(self, received: Received) -> None:
        key = received.headers.get("x-goog-api-key") or received.query.get("key") or received.bearer
        if self.key and key is None:
            raise self.error(403, "Method doesn't allow unregistered callers.")
        if self.key and key != self.key:
            reason = {"@type": f"{RPC}ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}
            raise self.error(400, "API key not valid. Please pass a valid API key.", reason)

    def unreadable(self, received: Received) -> Refusal:
        return self.error(400, "Invalid JSON payload received.")

    async def no_route(self, received: Received) -> web.StreamResponse:
        return answer(404, "<html><title>Error 404 (Not Found)!!1</title></html>")

    def over_limit(self, received: Received, model: str, shortage: Shortage) -> Refusal:
        metric = f"generativelanguage.googleapis.com/generate_content_{shortage.kind}"
        quota = {
            "requests": "RequestsPerMinutePerProjectPerModel",
            "tokens": "InputTokensPerModelPerMinute",
        }[shortage.kind]
        wait = min(shortage.wait, 60.0)
        text = (
            "You exceeded your current quota, please check your plan and billing details.\n"
            f"* Quota exceeded for metric: {metric}, limit: {shortage.limit}, model: {model}\n"
            f"Please retry in {wait:.9f}s."
        )
        violation = {"quotaMetric": metric, "quotaId": quota, "quotaValue": str(shortage.limit)}
        return self.error(
            429,
            text,
            {"@type": f"{RPC}QuotaFailure", "violations": [violation]},
            {"@type": f"{RPC}RetryInfo", "retryDelay": f"{math.ceil(wait)}s"},
        )

    def charge_items(self, received: Received, model: str, items: int, tokens: int) -> None:
        """Pay for a batch whose texts count as requests each."""
        budget = self.request_budget
        if budget is not None and (wait := budget.wait_for(items)) > 0:
            used = budget.limit - budget.remaining
            raise self.over_limit(
                received,
                model,
                Shortage(kind="requests", limit=budget.limit, used=used, requested=items, wait=wait),
            )
        if budget is not None:
            budget.spend(items)

    # Models.

    def card(self, model: GeminiModel) -> JsonObject:
        methods = ["embedContent"] if model.embeds else ["generateContent", "countTokens"]
        card: JsonObject = {
            "name": f"models/{model.name}",
            "version": "001",
            "displayName": model.name.replace("-", " ").title(),
            "inputTokenLimit": model.context,
            "outputTokenLimit": 1 if model.embeds else 65_536,
            "supportedGenerationMethods": methods,
        }
        return card if model.embeds else {**card, "thinking": True, "maxTemperature": 2}

    async def models(self, received: Received) -> web.StreamResponse:
        every = [self.card(model) for model in self.models_by_name.values()]
        start = int(received.query.get("pageToken", "0"))
        size = min(int(received.query.get("pageSize", "50")), self.page_size)
        more = {"nextPageToken": str(start + size)} if start + size < len(every) else {}
        return answer(200, {"models": every[start : start + size], **more})

    async def model(self, received: Received) -> web.StreamResponse:
        name = received.request.match_info["model"]
        return answer(200, self.card(self.model_of(name, "generateContent")))

    def model_of(self, name: str, method: str) -> GeminiModel:
        """The model of a name that has a method, or a refusal."""
        found = self.models_by_name.get(name)
        embeds = method in ("embedContent", "batchEmbedContents")
        if found is None or found.embeds is not embeds:
            text = f"models/{name} is not found for API version v1beta, or is not supported for {method}."
            raise self.error(404, f"{text} Call ListModels to see the list of available models.")
        return found

    async def call(self, received: Received) -> web.StreamResponse:
        name, _, method = received.request.match_info["call"].partition(":")
        body = self.body_of(received, {})
        try:
            match method:
                case "generateContent" | "streamGenerateContent":
                    return await self.generate(received, self.model_of(name, method), body, method)
                case "batchEmbedContents":
                    return await self.embed(received, self.model_of(name, method), body)
                case "countTokens":
                    total = requests.tokens_of(body)
                    return answer(200, {"totalTokens": total})
        except Fault as fault:
            violations = [{"description": line} for line in str(fault).split("\n")]
            raise self.error(
                400, str(fault), {"@type": f"{RPC}BadRequest", "fieldViolations": violations}
            ) from None
        return await self.no_route(received)

    # Embeddings.

    async def embed(self, received: Received, model: GeminiModel, body: JsonObject) -> web.StreamResponse:
        items = requests.items_of(body, model)
        tokens = sum(token_count(text) for text, _ in items)
        self.charge_items(received, model.name, len(items), tokens)
        await self.work()
        self.embedded += [text for text, _ in items]
        rows = []
        for text, item in items:
            size = item.get("outputDimensionality", FULL)
            vector = vector_for(text, size)
            # Those of the older model are the beginning of a longer one, and have not its norm.
            rows.append({"values": (vector * (1.0 if size == FULL or model.norms else 0.5)).tolist()})
        usage = {"usageMetadata": {"promptTokenCount": tokens}} if model.norms else {}
        return answer(200, {"embeddings": rows, **usage})

    # Contents.

    async def generate(
        self, received: Received, model: GeminiModel, body: JsonObject, method: str
    ) -> web.StreamResponse:
        requests.check(body, model)
        self.check_signatures(body["contents"], model)
        tokens = requests.tokens_of(body)
        if tokens > model.context:
            text = f"The input token count ({tokens}) exceeds the maximum number of tokens allowed ({model.context})."
            raise self.error(400, text)
        self.charge(received, model.name, tokens)
        await self.work()
        chunks = self.chunks(body, model, tokens)
        if method == "generateContent":
            return answer(200, self.joined(chunks))
        if received.query.get("alt") != "sse":
            text = ",\r\n".join(json.dumps(chunk, indent=2) for chunk in chunks)
            return answer(200, f"[{text}]".encode(), {"content-type": "application/json"})
        return await self.stream(received, self.events(chunks), "text/event-stream")

    def check_signatures(self, contents: Sequence[JsonObject], model: GeminiModel) -> None:
        """Refuse a step of the current turn whose first call is not signed, and a signature of something else."""
        for place in requests.current_turn(contents):
            calls = [part for part in contents[place]["parts"] if requests.called(part) is not None]
            signature = requests.signature_of(calls[0]) if calls else None
            if calls and signature is None and model.signs:
                raise Fault(
                    "Function call is missing a thought_signature in functionCall parts. This is required for "
                    "tools to work correctly."
                )
        for content in contents:
            for part in content["parts"]:
                found = requests.signature_of(part)
                if found is not None and found != FOREIGN and found != signature_for(part):
                    raise Fault("Invalid thought signature.")

    def said(self, body: JsonObject, model: GeminiModel) -> tuple[list[JsonObject], str]:
        """The parts of an answer, and why it stopped."""
        if self.script:
            parts, signed = [], False
            for part in self.script.pop(0):
                call = "functionCall" in part
                # Of parallel calls the first one alone is signed.
                if (call and not signed and model.signs) or "thoughtSignature" in part:
                    parts.append({**part, "thoughtSignature": signature_for(part)})
                    signed = signed or call
                else:
                    parts.append(part)
            return parts, "STOP"
        most = body.get("generationConfig", {}).get("maxOutputTokens")
        reply = reply_to([{"content": requests.text_of(body["contents"][-1])}], most)
        return [
            {"text": piece} for piece in reply.pieces
        ], "STOP" if reply.finish_reason == "stop" else "MAX_TOKENS"

    def chunks(self, body: JsonObject, model: GeminiModel, tokens: int) -> list[JsonObject]:
        """The answer part by part, each with the usage so far, whose fields come and go."""
        about = {"modelVersion": model.name, "responseId": "resp-1"}
        if self.block is not None:
            feedback = {"blockReason": self.block, "blockReasonMessage": "The prompt was blocked."}
            return [{"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": tokens}, **about}]
        parts, reason = self.said(body, model)
        if self.finish is not None:
            reason, filled = self.finish
            parts = parts if filled else []
        thoughts = sum(token_count(part["text"]) for part in parts if part.get("thought"))
        output = sum(1 for part in parts if not part.get("thought"))
        whole = {
            "promptTokenCount": tokens,
            "candidatesTokenCount": output,
            "totalTokenCount": tokens + output + thoughts,
        }
        if thoughts:
            whole["thoughtsTokenCount"] = thoughts
        # The prompt is estimated at first, and the thoughts are told until there is an answer.
        early = {
            "promptTokenCount": 2 * tokens,
            "totalTokenCount": 2 * tokens,
            **({"thoughtsTokenCount": thoughts} if thoughts else {}),
        }
        late = {name: count for name, count in whole.items() if name != "thoughtsTokenCount"}
        chunks = [
            # An index of 0 is left out by older models.
            {"candidates": [{"content": {"parts": [part], "role": "model"}}], "usageMetadata": early, **about}
            for part in parts
        ]
        last: JsonObject = {
            "content": {"parts": [{"text": ""}], "role": "model"} if parts else {"role": "model"}
        }
        last |= {"finishReason": reason, "index": 0}
        return [*chunks, {"candidates": [last], "usageMetadata": late, **about}]

    def joined(self, chunks: Sequence[JsonObject]) -> JsonObject:
        """The whole answer: all parts, and the usage without what changed on the way; text is joined."""
        if "candidates" not in chunks[0]:
            return chunks[0]
        parts: list[JsonObject] = []
        for part in (part for chunk in chunks for part in chunk["candidates"][0]["content"].get("parts", [])):
            plain = part.keys() <= {"text", "thought"}
            if parts and plain and parts[-1].keys() == part.keys() and "thoughtSignature" not in parts[-1]:
                parts[-1] = {**part, "text": parts[-1]["text"] + part["text"]}
            elif part != {"text": ""}:
                parts.append(part)
        last = chunks[-1]["candidates"][0]
        candidate = {**last, "content": {"parts": parts, "role": "model"} if parts else {}}
        usage = {**chunks[0]["usageMetadata"], **chunks[-1]["usageMetadata"]}
        return {**chunks[-1], "candidates": [candidate], "usageMetadata": usage}

    def events(self, chunks: Sequence[JsonObject]) -> Iterator[bytes]:
        """Server-sent events with CRLF; there is no end marker."""
        for number, chunk in enumerate(chunks):
            if self.break_stream_after == number:
                yield event(self.envelope(500, "An internal error has occurred."))
                return
            yield event(chunk)


def event(value: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n"
