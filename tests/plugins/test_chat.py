"""Chats of the four plugins: what each sends, and what is special about its answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmopt import (
    ChatCall,
    ChatEvent,
    ChatReply,
    ConfigError,
    Failure,
    InvalidInput,
    InvalidResponse,
    Message,
    ProviderEntry,
    ServerEvent,
    Settings,
    ToolCall,
    ToolCallPart,
    Usage,
    VerdictKind,
)
from tests.plugins.helpers import answer, hooks, settings

MESSAGES = ({"role": "user", "content": "Hi"},)
HOST = "http://127.0.0.1:11434"


def call(**more: Any) -> ChatCall:
    return ChatCall(**{"model": "m", "messages": MESSAGES, **more})


def body(plugin: str, where: Settings, **more: Any) -> dict[str, Any]:
    result = hooks(plugin).build_request(call(**more), where).json
    assert isinstance(result, dict)
    return result


def streamed(plugin: str, value: Any, kind: str = "message", **options: Any) -> Any:
    data = value if isinstance(value, str) else json.dumps(value)
    where = settings(plugin, HOST, **options)
    return hooks(plugin).stream_parser(call(), where)(ServerEvent(event=kind, data=data))


# OpenAI.


def test_openai_gets_max_completion_tokens() -> None:
    """Its reasoning models accept that name only."""
    where = settings("openai", "https://api.openai.com/v1", organization="org-1")
    result = body("openai", where, max_tokens=5, seed=1, stream=True, include_usage=True)
    assert result == {
        "model": "m", "messages": MESSAGES, "stream": True, "stream_options": {"include_usage": True},
        "max_completion_tokens": 5, "seed": 1,
    }  # fmt: skip
    assert hooks("openai").build_request(call(), where).headers["OpenAI-Organization"] == "org-1"


# Mistral.


def test_mistral_gets_only_keys_that_it_accepts() -> None:
    """``seed`` under its own name, and no ``stream_options``."""
    where = settings("mistral", "https://api.mistral.ai/v1")
    result = body("mistral", where, max_tokens=5, seed=1, stream=True, include_usage=True)
    assert result == {
        "model": "m", "messages": MESSAGES, "stream": True, "max_tokens": 5, "random_seed": 1,
    }  # fmt: skip
    profile = hooks("mistral").provider_profile(ProviderEntry(name="mistral"))
    assert (profile.stream_usage, profile.stream_end) == (False, "done")


def test_mistral_reasoning_in_typed_parts() -> None:
    """It is separate from the text."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "a"},
    ]
    (event,) = streamed("mistral", {"choices": [{"index": 0, "delta": {"content": parts}}]})
    assert (event.text, event.reasoning) == ("a", "hm")


# Azure.

CLASSIC = {"api_version": "2024-10-21"}
RESOURCE = "https://r.openai.azure.com"


@pytest.mark.parametrize(
    ("options", "most", "usage"),
    [
        ({}, "max_completion_tokens", True),
        ({"api_version": "2025-04-01-preview"}, "max_completion_tokens", True),
        ({"api_version": "2024-12-01-preview"}, "max_completion_tokens", True),
        (CLASSIC, "max_tokens", True),
        ({"api_version": "2024-02-01"}, "max_tokens", False),
    ],
)
def test_azure_parameters_depend_on_the_version(options: dict[str, str], most: str, usage: bool) -> None:
    """Older versions refuse parameters of newer models."""
    where = settings("azure", RESOURCE, auth="api-key", **options)
    result = body("azure", where, max_tokens=5, stream=True, include_usage=True)
    assert result[most] == 5
    assert ("stream_options" in result) is usage


def test_azure_request_has_the_deployment() -> None:
    """In the path of the classic surface, in the body of the other."""
    classic = hooks("azure").build_request(call(model="d 1"), settings("azure", RESOURCE, **CLASSIC))
    assert classic.path == "/openai/deployments/d%201/chat/completions?api-version=2024-10-21"
    newer = hooks("azure").build_request(call(), settings("azure", RESOURCE, deployment="d"))
    assert newer.path == "/openai/v1/chat/completions"
    assert newer.json["model"] == "d"


def test_azure_filter_chunks_add_nothing() -> None:
    """Before and after the text; only the end marker ends the stream."""
    first = {"id": "", "model": "", "prompt_filter_results": [{}], "choices": [], "usage": None}
    late = {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}}]}
    for value in (first, late):
        (event,) = streamed("azure", value)
        assert not event.adds
        assert event.raw == value
    assert streamed("azure", "[DONE]") == (ChatEvent(last=True),)
    assert hooks("azure").provider_profile(ProviderEntry(name="azure")).stream_end == "done"


@pytest.mark.parametrize("key", ["innererror", "inner_error"])
def test_azure_content_filter_in_a_stream_is_a_failure(key: str) -> None:
    """By code or inner code, in both spellings."""
    where = settings("azure", RESOURCE)
    for error in (
        {"code": "content_filter", "message": "x"},
        {"message": "x", key: {"code": "ResponsibleAIPolicyViolation"}},
    ):
        result = streamed("azure", {"error": error})
        assert isinstance(result, Failure)
        assert hooks("azure").classify_error(result, where).kind is VerdictKind.CONTENT_FILTERED


# Local servers.


def local(**options: Any) -> Settings:
    return settings("local", HOST, key=None, **options)


def test_the_in_process_engine_has_no_chat() -> None:
    """The error comes before any request, and names the option to set."""
    with pytest.raises(ConfigError, match=r"for chat, set providers\.local\.base_url"):
        hooks("local").build_request(call(), settings("local", "", key=None))


@pytest.mark.parametrize("flavour", ["tei", "infinity"])
def test_embedding_servers_have_no_chat(flavour: str) -> None:
    with pytest.raises(ConfigError, match=rf"flavour = '{flavour}' has no chat"):
        hooks("local").build_request(call(), local(flavour=flavour))


@pytest.mark.parametrize(("flavour", "end"), [(None, "finish"), ("vllm", "done"), ("ollama", "done")])
def test_known_servers_must_send_an_end_marker(flavour: str | None, end: str) -> None:
    """An unknown one may end with a finish reason."""
    options = {} if flavour is None else {"flavour": flavour}
    entry = ProviderEntry(name="local", base_url=HOST, options=options)
    assert hooks("local").provider_profile(entry).stream_end == end


# Ollama's own interface.

OLLAMA = local(flavour="ollama")


def test_ollama_gets_parameters_as_options() -> None:
    """Under its own names; stream must be sent as false."""
    result = body(
        "local", OLLAMA, max_tokens=5, temperature=0.5, top_p=0.9, stop=("x",), seed=3,
        presence_penalty=0.1, frequency_penalty=0.2, tools=({"type": "function"},), tool_choice="auto",
        reasoning_effort="low", include_usage=True, extra={"keep_alive": 60},
    )  # fmt: skip
    assert result == {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": False, "tools": ({"type": "function"},),
        "options": {
            "num_predict": 5, "temperature": 0.5, "top_p": 0.9, "stop": ("x",), "seed": 3,
            "presence_penalty": 0.1, "frequency_penalty": 0.2,
        },
        "think": "low", "keep_alive": 60,
    }  # fmt: skip
    assert body("local", OLLAMA, reasoning_effort="none")["think"] is False
    assert set(body("local", OLLAMA)) == {"model", "messages", "stream"}


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, "json"),
        (
            {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
            {"type": "object"},
        ),
    ],
)
def test_ollama_gets_response_formats(wanted: dict[str, Any], sent: Any) -> None:
    assert body("local", OLLAMA, response_format=wanted).get("format") == sent


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function"}},
        {"parallel_tool_calls": False},
        {"response_format": {"type": "json_schema"}},
        {"response_format": {"type": "grammar"}},
        {"messages": ({"role": "user", "content": 7},)},
        {"messages": ({"role": "user", "content": [{"type": "input_audio"}]},)},
        {"messages": ({"role": "user", "content": ["a"]},)},
        {"messages": ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},)},
        {"messages": ({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},)},
        {"messages": ({"role": "assistant", "tool_calls": ["f"]},)},
    ],
)  # fmt: skip
def test_a_parameter_that_ollama_lacks_is_an_error(more: dict[str, Any]) -> None:
    """It is not ignored."""
    with pytest.raises(InvalidInput):
        body("local", OLLAMA, **more)


def test_ollama_message_format() -> None:
    """Images next to the text, arguments as an object, the tool's name in its result."""
    asked = ToolCall(id="c1", name="find", arguments='{"x": 1}')
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    messages = (
        {"role": "user", "content": [{"type": "text", "text": "a"}, picture, {"type": "text", "text": "b"}]},
        Message("assistant", tool_calls=[asked]).as_dict(),
        Message("tool", "7", tool_call_id="c1").as_dict(),
    )
    before = json.dumps(messages)
    result = body("local", OLLAMA, messages=messages)["messages"]
    assert result[0] == {"role": "user", "content": "ab", "images": ["QUJD"]}
    assert result[1]["content"] == ""
    assert result[1]["tool_calls"][0]["function"] == {"name": "find", "arguments": {"x": 1}}
    assert result[2] == {"role": "tool", "content": "7", "tool_call_id": "c1", "tool_name": "find"}
    assert json.dumps(messages) == before


def test_ollama_stream_of_lines() -> None:
    """Text, reasoning and whole tool calls; the last line has the usage."""
    head = {"model": "m", "created_at": "2026-11-21T10:00:00Z"}
    tool = {"function": {"index": 2, "name": "f", "arguments": {"x": 1}}}
    first = {"role": "assistant", "content": "Hi", "thinking": "hm", "tool_calls": [tool]}
    value = {**head, "message": first, "done": False}
    assert streamed("local", value, "line") == (
        ChatEvent(
            text="Hi",
            reasoning="hm",
            tool_calls=(ToolCallPart(index=2, name="f", arguments='{"x":1}'),),
            model="m",
            raw=value,
        ),
    )
    value = {**head, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "length"}
    value |= {"prompt_eval_count": 3, "eval_count": 1, "total_duration": 900000000}
    assert streamed("local", value, "line") == (
        ChatEvent(
            finish_reason="length",
            usage=Usage(prompt_tokens=3, completion_tokens=1, total_tokens=4),
            model="m",
            last=True,
            raw=value,
        ),
    )


def test_ollama_omits_counts_of_zero() -> None:
    """A cached prompt counts 0; without any count there is no usage."""
    done: dict[str, Any] = {"message": {"content": ""}, "done": True}
    (event,) = streamed("local", {**done, "eval_count": 2}, "line")
    assert event.usage == Usage(completion_tokens=2, total_tokens=2)
    assert event.finish_reason == "stop"
    for nothing in ({}, {"eval_count": "2"}, {"eval_count": -1}, {"eval_count": True}):
        (event,) = streamed("local", {**done, **nothing}, "line")
        assert event.usage is None


def test_ollama_whole_response() -> None:
    """In the same format; a response in the common dialect is read too."""
    message = {
        "role": "assistant",
        "content": "Hi",
        "thinking": "hm",
        "tool_calls": [{"function": {"name": "f"}}],
    }
    value = {"model": "m", "message": message, "done": True, "done_reason": "stop", "eval_count": 2}
    result = hooks("local").parse_chat(call(), answer(value), OLLAMA)
    assert isinstance(result, ChatReply)
    assert (result.text, result.reasoning, result.tool_calls) == ("Hi", "hm", (ToolCall(name="f"),))
    assert (result.finish_reason, result.model, result.raw) == ("stop", "m", value)
    assert result.usage == Usage(completion_tokens=2, total_tokens=2)
    common = {"choices": [{"message": {"content": "Hi"}}]}
    result = hooks("local").parse_chat(call(), answer(common), OLLAMA)
    assert isinstance(result, ChatReply)
    assert result.text == "Hi"


def test_ollama_error_in_a_line_is_a_transient_failure() -> None:
    result = streamed("local", {"error": "an error was encountered while running the model"}, "line")
    assert isinstance(result, Failure)
    assert hooks("local").classify_error(result, OLLAMA).kind is VerdictKind.TRANSIENT
    whole = hooks("local").parse_chat(call(), answer({"error": "x", "message": {"content": "a"}}), OLLAMA)
    assert isinstance(whole, Failure)


@pytest.mark.parametrize(
    "value",
    [
        "no json", "[]", "7", "{}", '{"message": null}', '{"message": []}', '{"message": {"content": 7}}',
        '{"message": {"thinking": []}}', '{"message": {"tool_calls": {}}}', '{"message": {"tool_calls": [1]}}',
        '{"message": {"tool_calls": [{"function": 1}]}}', '{"message": {"tool_calls": [{"function": {"name": 1}}]}}',
        '{"message": {"tool_calls": [{"function": {"arguments": [1]}}]}}', '{"message": {"tool_calls": [{"id": 1, "function": {}}]}}',
        '{"message": {}, "done": true, "done_reason": 7}', "[DONE]",
    ],
)  # fmt: skip
def test_an_invalid_line_is_invalid(value: str) -> None:
    """Text must not be lost silently."""
    with pytest.raises(InvalidResponse):
        streamed("local", value, "line")
