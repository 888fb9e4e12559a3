"""The emulated Anthropic: the official client reads it, and it refuses what the real server refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx2
import pytest

from tests.support.emulators import AnthropicEmulator
from tests.support.emulators.anthropic import signature_for
from tests.support.scale import nightly_only

if TYPE_CHECKING:
    import anthropic

OPUS, MIXED, HAIKU = "claude-opus-5", "claude-sonnet-4-6", "claude-haiku-4-5"
HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOLS: Any = [{"name": "look", "description": "", "input_schema": {"type": "object"}}]
SCRIPT: list[dict[str, Any]] = [
    {"type": "thinking", "thinking": "A door, I think"},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "the door"}},
]


@pytest.fixture
async def server() -> AsyncIterator[AnthropicEmulator]:
    async with AnthropicEmulator() as emulator:
        yield emulator


def client_of(server: AnthropicEmulator, **more: Any) -> anthropic.AsyncAnthropic:
    import anthropic

    return anthropic.AsyncAnthropic(
        **{"base_url": server.origin, "api_key": "test-key", "max_retries": 0, **more}
    )


@nightly_only
async def test_the_official_client_reads_whole_and_streamed_answers(server: AnthropicEmulator) -> None:
    """Blocks, signatures, usage and the request id; what it gathers from a stream is the whole answer."""
    server.script = [SCRIPT, SCRIPT]
    async with client_of(server) as client:
        whole = await client.messages.create(model=OPUS, max_tokens=100, messages=HELLO, tools=TOOLS)
        async with client.messages.stream(model=OPUS, max_tokens=100, messages=HELLO, tools=TOOLS) as stream:
            gathered = await stream.get_final_message()
        plain = await client.messages.create(model=HAIKU, max_tokens=100, messages=HELLO)
        counted = await client.messages.count_tokens(model=OPUS, messages=HELLO)
    assert [block.type for block in whole.content] == ["thinking", "text", "tool_use"]
    assert gathered.content[0].to_dict() == whole.content[0].to_dict()
    assert gathered.content[2].input == {"at": "the door"}  # type: ignore[union-attr]
    assert (gathered.stop_reason, gathered.usage.output_tokens) == ("tool_use", whole.usage.output_tokens)
    assert whole.content[0].signature == signature_for(OPUS, "A door, I think")  # type: ignore[union-attr]
    assert plain.content[0].text == "You said: Hello"  # type: ignore[union-attr]
    assert (plain.model, plain._request_id) == ("claude-haiku-4-5-20251001", "req_00000003")
    assert counted.input_tokens == 2


@nightly_only
async def test_the_official_client_pages_through_the_list(server: AnthropicEmulator) -> None:
    server.page_size = 2
    async with client_of(server) as client:
        models = [model.id async for model in client.models.list(limit=1000)]
        one = await client.models.retrieve(HAIKU)
    assert models == [*dict.fromkeys(model.name for model in server.models_by_name.values())]
    assert (one.max_tokens, one.display_name) == (64_000, "Claude Haiku 4 5 20251001")


@nightly_only
async def test_the_official_client_knows_the_errors(server: AnthropicEmulator) -> None:
    import anthropic

    async with client_of(server, api_key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.create(model=OPUS, max_tokens=1, messages=HELLO)
    async with client_of(server) as client:
        with pytest.raises(anthropic.NotFoundError, match="model: nothing"):
            await client.messages.create(model="nothing", max_tokens=1, messages=HELLO)
        server.fail_next(529, server.envelope("overloaded_error", "Overloaded"))
        with pytest.raises(anthropic.APIStatusError) as overloaded:
            await client.messages.create(model=OPUS, max_tokens=1, messages=HELLO)
        assert overloaded.value.status_code == 529
        server.break_stream_after = 1
        with pytest.raises(anthropic.APIStatusError, match="Internal server error"):
            async with client.messages.stream(model=OPUS, max_tokens=9, messages=HELLO) as stream:
                await stream.get_final_message()


@nightly_only
async def test_a_rate_limit_says_which_and_when() -> None:
    import anthropic

    async with AnthropicEmulator(rpm=1, clock=lambda: 30.0) as server, client_of(server) as client:
        first = await client.messages.with_raw_response.create(model=OPUS, max_tokens=9, messages=HELLO)
        with pytest.raises(anthropic.RateLimitError, match="of 1 requests per minute") as refused:
            await client.messages.create(model=OPUS, max_tokens=9, messages=HELLO)
    assert first.headers["retry-after"] == "19", "a success has it too"
    assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert first.headers["anthropic-ratelimit-requests-reset"] == "1970-01-01T00:01:30Z"
    assert (
        refused.value.response.headers["retry-after"],
        refused.value.response.headers["x-should-retry"],
    ) == (
        "60",
        "true",
    )


def said(*blocks: Any, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": list(blocks)}


USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "no"}
TEXT = {"type": "text", "text": "Well?"}
SYSTEM = {"role": "system", "content": "Be brief."}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no max_tokens": ({"max_tokens": ...}, "max_tokens: Field required"),
    "no messages": ({"messages": ...}, "messages: Field required"),
    "a field of another dialect": ({"n": 1}, "n: Extra inputs are not permitted"),
    "the role tool": ({"messages": [{"role": "tool", "content": "x"}]}, 'Unexpected role "tool"'),
    "system, by model": ({"messages": [*HELLO, SYSTEM], "model": HAIKU}, "role 'system' is not supported"),
    "system, by place": ({"messages": [SYSTEM, *HELLO]}, "top-level 'system'"),
    "empty text": ({"messages": [said({"type": "text", "text": ""}, role="user")]}, "must be non-empty"),
    "blank text": ({"messages": [said({"type": "text", "text": " "}, role="user")]}, "non-whitespace"),
    "a call without its result": ({"messages": [*HELLO, said(USE), *HELLO]}, "without `tool_result` blocks"),
    "text before a result": ({"messages": [*HELLO, said(USE), said(TEXT, RESULT, role="user")]}, "immediately after"),
    "a result without its call": ({"messages": [*HELLO, said(RESULT, role="user")]}, "unexpected `tool_use_id`"),
    "an id twice": ({"messages": [*HELLO, said(USE, USE), said(RESULT, role="user")]}, "must be unique"),
    "input that is text": ({"messages": [said({**USE, "input": "{}"})]}, "valid dictionary"),
    "a key of another dialect": ({"messages": [said({**TEXT, "annotations": []}, role="user")]}, "Extra inputs"),
    "a name with a blank": ({"tools": [{**TOOLS[0], "name": "look at"}]}, "should match pattern"),
    "sampling, by model": ({"temperature": 0.5}, "temperature"),
    "too hot": ({"temperature": 1.5, "model": HAIKU}, "range: 0..1"),
    "thinking, by model": ({"thinking": {"type": "enabled", "budget_tokens": 2_000}}, "enabled thinking is not"),
    "adaptive, by model": ({"thinking": {"type": "adaptive"}, "model": HAIKU}, "adaptive thinking is not supported"),
    "a budget below 1,024": (
        {"thinking": {"type": "enabled", "budget_tokens": 1_000}, "model": HAIKU},
        "greater than 1024",
    ),
    "a budget above max_tokens": (
        {"thinking": {"type": "enabled", "budget_tokens": 5_000}, "model": HAIKU},
        "must be greater than",
    ),
    "a forced tool with a budget": (
        {"thinking": {"type": "enabled", "budget_tokens": 1_024}, "model": HAIKU, "tools": TOOLS,
         "tool_choice": {"type": "any"}},
        "forces tool use",
    ),
    "a forced tool, by model": ({"tool_choice": {"type": "any"}, "model": "claude-sonnet-5-5"}, "refuses"),
    "an effort, by model": ({"output_config": {"effort": "xhigh"}, "model": MIXED}, "effort level 'xhigh'"),
    "prefill": ({"messages": [*HELLO, said(TEXT)]}, "does not support assistant message prefill"),
    "a schema with bounds": (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "string", "maxLength": 3}}}},
        "'maxLength' is not supported",
    ),
    "an open object": (
        {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        "additionalProperties",
    ),
    "thinking of another model": (
        {"messages": [*HELLO, said({"type": "thinking", "thinking": "x", "signature": "y"}, TEXT), *HELLO]},
        "Invalid `signature`",
    ),
    "thinking without a signature": (
        {"messages": [*HELLO, said({"type": "thinking", "thinking": "x"}, TEXT), *HELLO]},
        "signature: Field required",
    ),
}  # fmt: skip


async def test_the_emulator_refuses_what_the_real_server_refuses(server: AnthropicEmulator) -> None:
    """With its words."""
    headers = {"x-api-key": "test-key", "anthropic-version": "2023-06-01"}
    wrong: dict[str, str] = {}
    async with httpx2.AsyncClient(base_url=server.base_url, headers=headers) as client:
        for name, (changes, words) in REFUSED.items():
            asked = {"model": OPUS, "max_tokens": 4_096, "messages": HELLO, **changes}
            sent = {key: value for key, value in asked.items() if value is not ...}
            found = await client.post("/messages", json=sent)
            if found.status_code != 400 or words not in found.json()["error"]["message"]:
                wrong[name] = found.text
    assert wrong == {}


async def test_the_emulator_accepts_what_the_real_server_accepts(server: AnthropicEmulator) -> None:
    """Neighbours of one role, an assistant first, `?beta=true`, the key as a Bearer token, a prefill on an older model."""
    accepted: list[dict[str, Any]] = [
        {"messages": [*HELLO, *HELLO]},
        {"messages": [said(TEXT), *HELLO]},
        {"messages": [*HELLO, said(TEXT)], "model": HAIKU},
        {"messages": [*HELLO, SYSTEM], "system": [TEXT]},
        {"messages": [*HELLO, said(USE), said(RESULT, role="user"), said(TEXT, role="user")]},
        {"temperature": 1},
    ]
    headers = {"authorization": "Bearer test-key", "anthropic-version": "2023-06-01"}
    async with httpx2.AsyncClient(base_url=server.base_url, headers=headers) as client:
        for changes in accepted:
            asked = {"model": OPUS, "max_tokens": 4_096, "messages": HELLO, **changes}
            found = await client.post("/messages?beta=true", json=asked)
            assert found.status_code == 200, found.text
        asked = {"model": OPUS, "max_tokens": 4_096, "messages": HELLO, "temperature": 1}
        newer = {"anthropic-version": "2026-10-21"}
        refused = await client.post("/messages", json=asked, headers=newer)
        assert refused.json()["error"]["message"] == "temperature: Extra inputs are not permitted"
    async with httpx2.AsyncClient(base_url=server.base_url, headers={"x-api-key": "test-key"}) as client:
        bare = await client.post("/messages", json=asked)
        assert bare.json()["error"]["message"] == "anthropic-version: header is required"
