"""What Anthropic refuses in a request for a message, and with which words (docs/development/provider-facts.md#anthropic)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.emulators.base import JsonObject, token_count

NO_SAMPLING_FROM = "2026-10-21"
"""The version of the API from which on there is no sampling."""
SAMPLING = ("temperature", "top_p", "top_k")
REQUIRED = ("model", "max_tokens", "messages")
FIELDS = frozenset(
    {
        *REQUIRED, *SAMPLING, "system", "stop_sequences", "stream", "thinking", "output_config", "metadata", "service_tier",
        "cache_control", "tools", "tool_choice", "speed", "inference_geo", "container",
    }
)  # fmt: skip
BLOCK_KEYS: Mapping[str, frozenset[str]] = {
    "text": frozenset({"text", "citations"}),
    "image": frozenset({"source"}),
    "document": frozenset({"source", "title", "context", "citations"}),
    "tool_use": frozenset({"id", "name", "input", "caller"}),
    "tool_result": frozenset({"tool_use_id", "content", "is_error"}),
    "thinking": frozenset({"thinking", "signature"}),
    "redacted_thinking": frozenset({"data"}),
    "server_tool_use": frozenset({"id", "name", "input"}),
    "web_search_tool_result": frozenset({"tool_use_id", "content"}),
}
SOURCE_KEYS: Mapping[str, frozenset[str]] = {
    "base64": frozenset({"type", "media_type", "data"}),
    "url": frozenset({"type", "url"}),
    "file": frozenset({"type", "file_id"}),
    "text": frozenset({"type", "media_type", "data"}),
}
TOOL_KEYS = frozenset(
    {"name", "description", "input_schema", "strict", "cache_control", "defer_loading", "type"}
)
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
BOUNDS = frozenset({"minimum", "maximum", "multipleOf", "minLength", "maxLength"})
"""Keywords that a schema for the answer may not have."""
FORCED = ("any", "tool")


@dataclass(frozen=True, kw_only=True)
class AnthropicModel:
    """One model, and what it refuses."""

    name: str
    aliases: tuple[str, ...] = ()
    context: int = 1_000_000
    max_tokens: int = 128_000
    refused: frozenset[str] = frozenset({"enabled"})
    sampling: bool = False
    prefill: bool = False
    system_turns: bool = False
    forced_tools: bool = True
    efforts: tuple[str, ...] = ("low", "medium", "high", "xhigh", "max")
    retires_at: str | None = None


MODELS = (
    AnthropicModel(name="claude-opus-5", system_turns=True),
    AnthropicModel(name="claude-sonnet-5-5", refused=frozenset({"enabled", "disabled"}), forced_tools=False),
    AnthropicModel(name="claude-opus-4-8", system_turns=True),
    AnthropicModel(
        name="claude-sonnet-4-6",
        refused=frozenset(),
        sampling=True,
        efforts=("low", "medium", "high", "max"),
    ),
    AnthropicModel(
        name="claude-haiku-4-5-20251001",
        aliases=("claude-haiku-4-5",),
        context=200_000,
        max_tokens=64_000,
        refused=frozenset({"adaptive", "between_tools"}),
        sampling=True,
        prefill=True,
        efforts=(),
        retires_at="2026-12-31T00:00:00Z",
    ),
)


class Fault(Exception):
    """What is wrong with a request, in Anthropic's words."""


def refuse_if(wrong: object, message: str) -> None:
    if wrong:
        raise Fault(message)


def check_fields(body: JsonObject) -> None:
    """The fields that there must be, and no others."""
    for name in REQUIRED:
        refuse_if(name not in body, f"{name}: Field required")
    for name in body.keys() - FIELDS:
        raise Fault(f"{name}: Extra inputs are not permitted")
    refuse_if(not isinstance(body["messages"], list) or not body["messages"], "messages: Field required")


def check(body: JsonObject, model: AnthropicModel, version: str) -> None:
    """Everything else that a model refuses."""
    most = body["max_tokens"]
    refuse_if(type(most) is not int or most < 1, "max_tokens: Input should be greater than or equal to 1")
    refuse_if(most > model.max_tokens, f"max_tokens: {most} > {model.max_tokens}, which is the maximum")
    check_sampling(body, model, version)
    check_thinking(body, model)
    check_tools(body, model)
    check_output(body, model)
    if isinstance(body.get("system"), list):
        for block in body["system"]:
            check_block(block, "system")
    check_turns(body["messages"], model)


def check_sampling(body: JsonObject, model: AnthropicModel, version: str) -> None:
    for name in SAMPLING:
        if name not in body:
            continue
        refuse_if(version >= NO_SAMPLING_FROM, f"{name}: Extra inputs are not permitted")
        refuse_if(
            not model.sampling and body[name] != 1, f"{name}: this model does not support other values than 1"
        )
        refuse_if(name != "top_k" and not 0 <= body[name] <= 1, f"{name}: range: 0..1")


def check_thinking(body: JsonObject, model: AnthropicModel) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    kind = thinking["type"]
    refuse_if(kind in model.refused, f"{kind} thinking is not supported on this model")
    extra = thinking.keys() - {"type", "display", "budget_tokens"}
    refuse_if(extra, f"thinking.{kind}.{next(iter(extra), '')}: Extra inputs are not permitted")
    if kind == "enabled":
        budget = thinking.get("budget_tokens", 0)
        refuse_if(budget < 1024, "thinking.enabled.budget_tokens: Input should be greater than 1024")
        refuse_if(budget >= body["max_tokens"], "`max_tokens` must be greater than `thinking.budget_tokens`.")
        choice = (body.get("tool_choice") or {}).get("type")
        refuse_if(choice in FORCED, "Thinking may not be enabled when tool_choice forces tool use.")


def check_tools(body: JsonObject, model: AnthropicModel) -> None:
    for number, tool in enumerate(body.get("tools", [])):
        if "input_schema" not in tool and "type" in tool:
            continue
        extra = tool.keys() - TOOL_KEYS
        refuse_if(extra, f"tools.{number}.custom.{next(iter(extra), '')}: Extra inputs are not permitted")
        refuse_if(
            not TOOL_NAME.fullmatch(tool.get("name", "")),
            f"tools.{number}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'",
        )
        schema = tool.get("input_schema", {})
        refuse_if(
            schema.get("type") != "object",
            f"tools.{number}.custom.input_schema.type: Input should be 'object'",
        )
    choice = body.get("tool_choice")
    if choice is None:
        return
    kind = choice["type"]
    refuse_if(kind not in ("auto", "any", "none", "tool"), "tool_choice: Input tag is not valid")
    refuse_if(
        kind in FORCED and not model.forced_tools, "tool_choice forces tool use, which this model refuses"
    )
    refuse_if(
        kind == "none" and "disable_parallel_tool_use" in choice,
        "tool_choice.none.disable_parallel_tool_use: Extra inputs are not permitted",
    )


def check_output(body: JsonObject, model: AnthropicModel) -> None:
    config = body.get("output_config") or {}
    effort = config.get("effort")
    refuse_if(
        effort is not None and effort not in model.efforts,
        f"This model does not support effort level '{effort}'. Supported levels: {', '.join(model.efforts)}.",
    )
    wanted = config.get("format")
    if wanted is not None:
        refuse_if(
            wanted.get("type") != "json_schema", "output_config.format.type: Input should be 'json_schema'"
        )
        check_schema(wanted.get("schema"))


def check_schema(schema: Any) -> None:
    """The part of JSON Schema that an answer may be held to."""
    if not isinstance(schema, dict):
        raise Fault("output_config.format.schema: Input should be a valid dictionary")
    bounds = BOUNDS & schema.keys()
    refuse_if(bounds, f"output_config.format.schema: property '{next(iter(bounds), '')}' is not supported")
    if schema.get("type") == "object":
        refuse_if(
            schema.get("additionalProperties") is not False,
            "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false",
        )
        for inner in schema.get("properties", {}).values():
            check_schema(inner)
    if isinstance(schema.get("items"), dict):
        check_schema(schema["items"])


# The turns of a conversation.


def check_turns(turns: Sequence[JsonObject], model: AnthropicModel) -> None:
    for number, turn in enumerate(turns):
        role: Any = turn.get("role")
        content: Any = turn.get("content")
        refuse_if(role not in ("user", "assistant", "system"), f'messages: Unexpected role "{role}".')
        refuse_if(turn.keys() - {"role", "content"}, f"messages.{number}: Extra inputs are not permitted")
        if role == "system":
            check_place(turns, number, model)
        if isinstance(content, str):
            refuse_if(not content, f"messages.{number}: user messages must have non-empty content")
            continue
        refuse_if(not isinstance(content, list) or not content, f"messages.{number}.content: Field required")
        for place, block in enumerate(content):
            check_block(block, f"messages.{number}.content.{place}")
            refuse_if(
                block["type"] == "image" and role == "assistant",
                f"messages.{number}.content.{place}: images are of users",
            )
    check_results(turns)
    refuse_if(
        turns[-1]["role"] == "assistant" and not model.prefill,
        "This model does not support assistant message prefill. The conversation must end with a user message.",
    )


def check_place(turns: Sequence[JsonObject], number: int, model: AnthropicModel) -> None:
    """Where a system message may stand, on the models that take one."""
    refuse_if(not model.system_turns, "role 'system' is not supported on this model")
    refuse_if(number == 0, "messages.0: use the top-level 'system' parameter for the initial system prompt")
    before = turns[number - 1]["role"]
    after = turns[number + 1]["role"] if number + 1 < len(turns) else "assistant"
    refuse_if(
        before != "user" or after != "assistant", f"messages.{number}: role 'system' must follow a user turn"
    )


def check_block(block: Any, path: str) -> None:
    kind = block.get("type")
    refuse_if(kind not in BLOCK_KEYS, f"{path}: Input tag '{kind}' found using 'type' does not match")
    extra = block.keys() - BLOCK_KEYS[kind] - {"type", "cache_control"}
    refuse_if(extra, f"{path}.{kind}.{next(iter(extra), '')}: Extra inputs are not permitted")
    if kind == "text":
        refuse_if(not block["text"], "messages: text content blocks must be non-empty")
        refuse_if(not block["text"].strip(), "messages: text content blocks must contain non-whitespace text")
    if kind == "tool_use":
        refuse_if(
            not isinstance(block["input"], dict), f"{path}.tool_use.input: Input should be a valid dictionary"
        )
    if kind in ("image", "document"):
        source = block["source"]
        keys = SOURCE_KEYS.get(source.get("type"), frozenset())
        refuse_if(source.keys() != keys, f"{path}.{kind}.source: Field required")
    if kind == "thinking":
        refuse_if("signature" not in block, f"{path}.thinking.signature: Field required")


def check_results(turns: Sequence[JsonObject]) -> None:
    """Each call has its result right behind it, before any words, and each result has its call."""
    merged = merge(turns)
    for number, (role, blocks) in enumerate(merged):
        called = [block["id"] for block in blocks if block["type"] == "tool_use"]
        refuse_if(len(called) != len(set(called)), "messages: `tool_use` ids must be unique")
        if role == "assistant" and called and number + 1 < len(merged):
            following = merged[number + 1][1]
            results = [block.get("tool_use_id") for block in following[: len(called)]]
            refuse_if(
                sorted(map(str, results)) != sorted(called),
                f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after",
            )
        if role == "user":
            known = [block["id"] for block in merged[number - 1][1] if block["type"] == "tool_use"]
            for block in blocks:
                refuse_if(
                    block["type"] == "tool_result" and (number == 0 or block["tool_use_id"] not in known),
                    f"messages.{number}: unexpected `tool_use_id` found in `tool_result` blocks",
                )


def merge(turns: Sequence[JsonObject]) -> list[tuple[str, list[JsonObject]]]:
    """The turns with equal neighbours as one, their contents as blocks."""
    merged: list[tuple[str, list[JsonObject]]] = []
    for turn in turns:
        content = turn["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        if merged and merged[-1][0] == turn["role"]:
            merged[-1][1].extend(blocks)
        else:
            merged.append((turn["role"], blocks))
    return merged


def is_latest(turns: Sequence[JsonObject], number: int) -> bool:
    """Whether a turn is the assistant's latest one, and results of tools are all that follows."""
    following = merge(turns[number + 1 :])
    return len(following) == 1 and any(block["type"] == "tool_result" for block in following[0][1])


def text_of(turn: Mapping[str, Any]) -> str:
    """The words of a turn, of results too."""
    content = turn.get("content")
    if isinstance(content, str):
        return content
    return "".join(
        block.get("text") or (text_of(block) if block.get("type") == "tool_result" else "")
        for block in content or []
    )


def tokens_of(body: JsonObject) -> int:
    """The tokens of the input: the words alone, so that a test can tell them."""
    system = body.get("system") or ""
    texts = [system if isinstance(system, str) else text_of({"content": system})]
    texts += [text_of(turn) for turn in body.get("messages", [])]
    tools = body.get("tools")
    return sum(token_count(text) for text in texts if text) + (token_count(json.dumps(tools)) if tools else 0)
