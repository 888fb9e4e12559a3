"""Anthropic: its requests, answers, streams, lists, rates, and what a model does not take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llmopt import (
    CatalogCall,
    CatalogPage,
    ChatCall,
    ChatReply,
    ConfigError,
    EmbedCall,
    Failure,
    HttpResponse,
    InvalidInput,
    InvalidResponse,
    Message,
    Prices,
    ServerEvent,
    Settings,
    StreamStep,
    Usage,
)
from llmopt.testing.harness import accumulate, decode_stream
from tests.plugins.errors import REPOSITORY
from tests.plugins.helpers import answer, hooks, page, settings

BASE = "https://api.anthropic.com/v1"
WHERE = settings("anthropic", BASE, auth="x-api-key")
HI = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"properties": {}}}}
BUDGETED, ADAPTIVE = "claude-haiku-4-5", "claude-opus-4-8"


def call(*messages: Any, model: str = "claude-x", **more: Any) -> ChatCall:
    return ChatCall(model=model, messages=messages or (HI,), **more)


def body(*messages: Any, where: Settings = WHERE, **more: Any) -> dict[str, Any]:
    result = hooks("anthropic").build_request(call(*messages, **more), where).json
    assert isinstance(result, dict)
    return result


def turns(*messages: Any, **more: Any) -> Any:
    return body(*messages, **more)["messages"]


# Requests.


def test_a_request_has_the_key_the_version_and_only_what_was_asked_for() -> None:
    request = hooks("anthropic").build_request(call(), WHERE)
    assert request.path == "/messages"
    assert request.headers["anthropic-version"] == "2023-06-01"
    assert request.headers["x-api-key"] == "test-key-1"
    assert request.json == {"model": "claude-x", "max_tokens": 4_096, "messages": [HI], "stream": False}


def test_a_token_is_no_key() -> None:
    where = settings("anthropic", BASE, auth="x-api-key", kind="token")
    headers = hooks("anthropic").build_request(call(), where).headers
    assert headers["authorization"] == "Bearer test-key-1"
    assert "x-api-key" not in headers


@pytest.mark.parametrize(
    ("base", "path"),
    [
        (BASE, "/messages"),
        ("https://proxy.example", "/v1/messages"),
        ("https://proxy.example/anthropic", "/v1/messages"),
    ],
)
def test_a_base_url_may_end_before_the_version(base: str, path: str) -> None:
    """Those of Anthropic's own libraries do."""
    assert hooks("anthropic").build_request(call(), settings("anthropic", base)).path == path
    listed = hooks("anthropic").build_request(CatalogCall(cursor="claude x"), settings("anthropic", base))
    assert listed.path == f"{path.removesuffix('/messages')}/models?limit=1000&after_id=claude%20x"


def test_the_version_of_the_user_goes_before_the_plugins() -> None:
    where = settings("anthropic", BASE, headers={"Anthropic-Version": "2026-10-21"})
    assert "anthropic-version" not in hooks("anthropic").build_request(call(), where).headers
    with pytest.raises(InvalidInput, match="version 2026-10-21 of Anthropic's API has no temperature"):
        body(temperature=1, where=where)


def test_parameters_under_anthropics_names() -> None:
    result = body(
        model=BUDGETED,
        stream=True,
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        stop=("a", "b"),
        tools=(TOOL, {"type": "web_search_20250305", "name": "web_search"}),
        tool_choice={"type": "function", "function": {"name": "look"}},
        parallel_tool_calls=False,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        extra={"metadata": {"user_id": "u"}},
    )
    assert result == {
        "model": BUDGETED, "messages": [HI], "stream": True, "max_tokens": 7, "temperature": 0.0, "top_p": 0.5,
        "stop_sequences": ["a", "b"],
        "tools": [
            {"name": "look", "input_schema": {"type": "object", "properties": {}}},
            {"type": "web_search_20250305", "name": "web_search"},
        ],
        "tool_choice": {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "u"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "parallel", "sent"),
    [
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        ({"type": "tool", "name": "look"}, None, {"type": "tool", "name": "look"}),
        (None, True, {"type": "auto", "disable_parallel_tool_use": False}),
    ],
)
def test_choices_of_tools(choice: Any, parallel: bool | None, sent: dict[str, Any]) -> None:
    result = body(tools=(TOOL,), tool_choice=choice, parallel_tool_calls=parallel)
    assert result["tool_choice"] == sent


def test_max_tokens_is_that_of_the_model_where_it_is_known() -> None:
    assert body(model="claude-opus-5")["max_tokens"] == 128_000
    assert body(model="claude-haiku-4-5-20991231")["max_tokens"] == 64_000
    assert body(model="claude-unknown")["max_tokens"] == 4_096


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"seed": 0}, "no seed"),
        ({"presence_penalty": 0.0}, "no presence_penalty"),
        ({"frequency_penalty": 1.0}, "no frequency_penalty"),
        ({"temperature": 1.5}, "temperature is 0 to 1"),
        ({"temperature": 0.0, "model": "claude-opus-5"}, "claude-opus-5 takes no temperature"),
        ({"top_p": 0.9, "model": "claude-sonnet-5-5"}, "takes no top_p"),
        ({"tool_choice": "sometimes"}, "tool_choice is auto, none, required"),
        ({"tool_choice": "required", "model": "claude-fable-5"}, "cannot be forced"),
        (
            {"tool_choice": "required", "model": BUDGETED, "reasoning_effort": "low"},
            "forced while the model thinks",
        ),
        ({"reasoning_effort": "none", "model": "claude-mythos-5-1"}, "always thinks"),
        ({"reasoning_effort": "xhigh", "model": BUDGETED}, "no reasoning_effort 'xhigh'"),
        ({"reasoning_effort": "low", "model": BUDGETED, "max_tokens": 1_000}, "raise max_tokens"),
        ({"response_format": {"type": "json_object"}}, "no json_object"),
    ],
)
def test_what_anthropic_lacks_is_refused_before_a_request(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        body(**asked)


def test_embeddings_are_refused() -> None:
    with pytest.raises(InvalidInput, match="no embeddings"):
        hooks("anthropic").build_request(EmbedCall(model="m", texts=("a",)), WHERE)


@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        ("claude-x", "minimal", {"output_config": {"effort": "low"}}),
        ("claude-x", "max", {"output_config": {"effort": "max"}}),
        ("claude-opus-5", "none", {"thinking": {"type": "disabled"}}),
        ("claude-sonnet-5-5", "none", {"thinking": {"type": "between_tools"}}),
        (ADAPTIVE, "high", {"output_config": {"effort": "high"}, "thinking": {"type": "adaptive"}}),
        ("claude-sonnet-4-6", "low", {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}}),
        (BUDGETED, "high", {"thinking": {"type": "enabled", "budget_tokens": 16_384}}),
        ("claude-opus-4-1-20250805", "minimal", {"thinking": {"type": "enabled", "budget_tokens": 1_024}}),
    ],
)
def test_an_effort_as_the_model_takes_it(model: str, effort: str, sent: dict[str, Any]) -> None:
    result = body(model=model, reasoning_effort=effort, max_tokens=64_000)
    assert {key: result[key] for key in ("thinking", "output_config") if key in result} == sent


def test_a_budget_leaves_room_for_the_answer() -> None:
    thinking = body(model=BUDGETED, reasoning_effort="high", max_tokens=2_000)["thinking"]
    assert thinking["budget_tokens"] == 1_500


def test_the_user_may_say_what_a_model_takes() -> None:
    """A rule of Anthropic's may change before this plugin does."""
    rules = {"claude-next": {"effort": "budget", "sampling": False}}
    where = settings("anthropic", BASE, model_rules=rules)
    assert body(model="claude-next", reasoning_effort="low", where=where)["thinking"]["type"] == "enabled"
    with pytest.raises(InvalidInput, match="takes no temperature"):
        body(model="claude-next", temperature=0.5, where=where)
    wrong = settings("anthropic", BASE, model_rules={"claude-next": {"sampling": "no"}})
    with pytest.raises(ConfigError, match=r"model_rules.claude-next: Expected `bool`, got `str`"):
        body(model="claude-next", where=wrong)


# Conversations.


def test_system_messages_at_the_start_are_the_system() -> None:
    system = ({"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."})
    result = body(*system, HI)
    assert (result["system"], result["messages"]) == ("Be brief.\n\nBe kind.", [HI])
    cached = {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}
    parts = body({"role": "system", "content": [cached]}, system[1], HI)["system"]
    assert parts == [cached, {"type": "text", "text": "Be kind."}]


def test_later_system_messages_are_for_models_that_take_them() -> None:
    later = {"role": "system", "content": "Now in French."}
    assert turns(HI, later, model=ADAPTIVE)[1] == later
    with pytest.raises(InvalidInput, match="claude-haiku-4-5 takes system messages at the start"):
        turns(HI, later, model=BUDGETED)


def test_results_of_tools_are_one_message_with_the_words_behind_them() -> None:
    calls = [
        {"id": f"c{n}", "type": "function", "function": {"name": "look", "arguments": given}}
        for n, given in enumerate(("", '{"at": "the door"}'))
    ]
    result = turns(
        HI,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c0", "content": "a key", "is_error": False},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
        {"role": "user", "content": "Well?"},
        {"role": "user", "content": "Say it."},
    )
    assert result[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "tool_use", "id": "c0", "name": "look", "input": {}},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"at": "the door"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c0", "content": "a key", "is_error": False},
                {"type": "tool_result", "tool_use_id": "c1"},
                {"type": "text", "text": "Well?"},
                {"type": "text", "text": "Say it."},
            ],
        },
    ]


def test_images_and_documents() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "high"}},
        {"type": "image_url", "image_url": "https://example.com/a.png"},
        {
            "type": "file",
            "file": {"file_data": "data:application/pdf;base64,JVBE", "filename": "a.pdf"},
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "file", "file": {"file_id": "file_1"}},
        {"type": "search_result", "title": "t"},
    ]
    (turn,) = turns({"role": "user", "content": parts})
    assert turn["content"] == [
        parts[0],
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
            "title": "a.pdf",
            "cache_control": {"type": "ephemeral"},
        },
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        parts[-1],
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "narrator", "content": "x"}, "no role 'narrator'"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "no audio"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "file_data or file_id"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png,x"}]}, "base64"),
        ({"role": "user", "content": [7]}, "neither text nor a mapping"),
        (
            {"role": "assistant", "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": '{"a'}}]},
            "no JSON object, perhaps because the answer was cut",
        ),
    ],
)
def test_what_has_no_place_in_a_conversation_is_refused(message: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        turns(HI, message)
    assert refused.value.index == 1


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_an_answer_without_content_is_left_out(content: str | None) -> None:
    """A refusal leaves one, which Anthropic refuses to read again."""
    assert turns(HI, Message("assistant", content).as_dict(), HI) == [HI, HI]


def test_a_blank_text_between_blocks_is_left_out() -> None:
    kept = {"anthropic.blocks": [THINKING, {"type": "text", "text": "\n"}, USE]}
    message = Message("assistant", "\n", provider_data=kept).as_dict()
    assert turns(HI, message)[1]["content"] == [THINKING, USE]


# Answers.

THINKING = {"type": "thinking", "thinking": "A door, I think", "signature": "EqC1=="}
USE = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"at": "the door"}}
USAGE = {"input_tokens": 25, "cache_creation_input_tokens": 100, "cache_read_input_tokens": 1_000, "output_tokens": 31,
         "output_tokens_details": {"thinking_tokens": 20}}  # fmt: skip


def message(*blocks: Any, **changes: Any) -> dict[str, Any]:
    whole = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x-1",
        "content": list(blocks),
    }
    return {**whole, "stop_reason": "end_turn", "stop_sequence": None, "usage": USAGE, **changes}


def reply(*blocks: Any, **changes: Any) -> ChatReply:
    result = hooks("anthropic").parse_chat(call(), answer(message(*blocks, **changes)), WHERE)
    assert isinstance(result, ChatReply)
    return result


def test_an_answer_of_every_part() -> None:
    found = reply(THINKING, {"type": "text", "text": "I look."}, USE, stop_reason="tool_use")
    assert (found.text, found.reasoning, found.finish_reason) == ("I look.", "A door, I think", "tool_calls")
    assert [(each.id, each.name, json.loads(each.arguments)) for each in found.tool_calls] == [
        ("toolu_1", "look", {"at": "the door"})
    ]
    assert found.usage == Usage(
        prompt_tokens=1_125, cached_tokens=1_000, completion_tokens=31, reasoning_tokens=20
    )
    assert (found.model, found.id) == ("claude-x-1", "msg_1")
    assert found.provider_data == {"anthropic.blocks": [THINKING, {"type": "text", "text": "I look."}, USE]}
    assert turns(HI, found.message.as_dict())[1]["content"] == found.provider_data["anthropic.blocks"]


def test_text_alone_leaves_nothing_to_send_back() -> None:
    found = reply({"type": "text", "text": "a", "citations": None}, {"type": "text", "text": "b"})
    assert (found.text, found.provider_data) == ("ab", {})


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("compaction", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "pause_turn"),
        ("a_reason_of_tomorrow", "a_reason_of_tomorrow"),
    ],
)
def test_reasons_in_the_words_of_the_common_dialect(stated: str, word: str) -> None:
    assert reply({"type": "text", "text": "a"}, stop_reason=stated).finish_reason == word


def test_a_refusal_says_why() -> None:
    details = {"type": "refusal", "category": "cyber", "explanation": "That would help an attack."}
    found = reply(stop_reason="refusal", stop_details=details)
    assert (found.text, found.finish_reason, found.refusal) == (
        "",
        "content_filter",
        "That would help an attack.",
    )


def test_blocks_of_unknown_types_are_kept() -> None:
    odd = {"type": "server_idea", "name": None, "payload": [1]}
    found = reply(odd, {"type": "text", "text": "a"})
    assert found.text == "a"
    assert found.provider_data["anthropic.blocks"][0] == odd


# Streams.


def read(events: list[Any]) -> ChatReply:
    parse = hooks("anthropic").stream_parser(call(stream=True), WHERE)
    found = [parse(ServerEvent(event=each["type"], data=json.dumps(each))) for each in events]
    assert not any(isinstance(each, (Failure, StreamStep)) for each in found)
    return accumulate(event for each in found for event in each)  # type: ignore[union-attr]


def start(index: int, block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": block}


def delta(index: int, **value: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": value}


BEGIN = {
    "type": "message_start",
    "message": message(stop_reason=None, usage={"input_tokens": 20, "output_tokens": 1}),
}


def end(reason: str, **usage: int) -> list[dict[str, Any]]:
    told = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": usage}
    return [told, {"type": "message_stop"}]


def stop(index: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": index}


def test_a_usage_that_grows_is_the_last_one() -> None:
    """The parts of the input that the last event leaves out are those of the first."""
    first = {**USAGE, "output_tokens": 1}
    begin = {"type": "message_start", "message": message(stop_reason=None, usage=first)}
    found = read([begin, *end("end_turn", input_tokens=31_772, output_tokens=40)]).usage
    assert found is not None
    assert (found.prompt_tokens, found.cached_tokens, found.completion_tokens, found.total_tokens) == (
        32_872,
        1_000,
        40,
        32_912,
    )


def test_blocks_of_a_stream_are_those_of_a_whole_answer() -> None:
    """Thinking that is not shown, redacted thinking, a citation, a tool without arguments."""
    citation = {"type": "char_location", "cited_text": "a"}
    found = read(
        [
            BEGIN,
            start(0, {"type": "thinking", "thinking": "", "signature": ""}),
            {"type": "ping"},
            delta(0, type="signature_delta", signature="EqC2"),
            stop(0),
            start(1, {"type": "redacted_thinking", "data": "c2Vj"}),
            stop(1),
            start(2, {"type": "text", "text": "", "citations": []}),
            delta(2, type="text_delta", text="At the "),
            delta(2, type="citations_delta", citation=citation),
            delta(2, type="text_delta", text="door."),
            stop(2),
            start(3, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}),
            delta(3, type="input_json_delta", partial_json=""),
            stop(3),
            *end("tool_use", output_tokens=9),
        ]
    )
    assert (found.text, found.reasoning, found.finish_reason) == ("At the door.", "", "tool_calls")
    assert [(each.id, each.arguments) for each in found.tool_calls] == [("toolu_1", "{}")]
    assert found.provider_data["anthropic.blocks"] == [
        {"type": "thinking", "thinking": "", "signature": "EqC2"},
        {"type": "redacted_thinking", "data": "c2Vj"},
        {"type": "text", "text": "At the door.", "citations": [citation]},
        {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}},
    ]


def test_a_call_that_was_cut_does_not_go_back() -> None:
    found = read(
        [
            BEGIN,
            start(0, {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {}}),
            delta(0, type="input_json_delta", partial_json='{"at": "the d'),
            stop(0),
            *end("max_tokens", output_tokens=9),
        ]
    )
    assert (found.tool_calls[0].arguments, found.finish_reason) == ('{"at": "the d', "length")
    with pytest.raises(InvalidInput, match="was cut at max_tokens"):
        turns(HI, found.message.as_dict())


def test_a_long_answer_is_joined_as_it_comes() -> None:
    pieces = [f"{number} " for number in range(1_000)]
    found = read(
        [
            BEGIN,
            start(0, {"type": "thinking", "thinking": "", "signature": ""}),
            *(delta(0, type="thinking_delta", thinking=piece) for piece in pieces),
            stop(0),
            *end("end_turn", output_tokens=9),
        ]
    )
    assert found.reasoning == "".join(pieces)
    assert found.provider_data["anthropic.blocks"][0]["thinking"] == found.reasoning


@pytest.mark.parametrize("event", [stop(0), delta(0, type="text_delta", text="a")])
def test_a_piece_without_its_block_is_refused(event: Any) -> None:
    with pytest.raises(InvalidResponse):
        read([BEGIN, event])


def test_an_error_may_be_the_first_event() -> None:
    body = {"type": "error", "error": {"details": None, "type": "overloaded_error", "message": "Overloaded"}}
    parse = hooks("anthropic").stream_parser(call(stream=True), WHERE)
    assert isinstance(parse(ServerEvent(event="error", data=json.dumps(body))), Failure)


def test_events_of_unknown_types_are_told() -> None:
    parse = hooks("anthropic").stream_parser(call(stream=True), WHERE)
    (event,) = parse(ServerEvent(event="x", data='{"type": "message_note", "note": 1}'))  # type: ignore[misc]
    assert event.unknown == "message_note"
    assert not event.adds


# The list of models, and the rates.


def test_a_list_of_models() -> None:
    can = {"image_input": {"supported": True}, "pdf_input": {"supported": False}}
    value = {
        "data": [
            {
                "type": "model", "id": "claude-haiku-4-5", "display_name": "Claude Haiku 4.5", "max_input_tokens": 200_000,
                "max_tokens": 64_000, "created_at": "2025-10-01T00:00:00Z", "capabilities": can, "lifecycle": "deprecated",
                "deprecated_at": "2026-06-01T00:00:00Z", "retires_at": "2026-12-31T00:00:00Z",
            },
            {"type": "model", "id": "claude-new", "created_at": "soon", "max_tokens": None, "capabilities": None},
        ],
        "has_more": True, "first_id": "claude-haiku-4-5", "last_id": "claude-new",
    }  # fmt: skip
    found = page("anthropic", value, WHERE)
    haiku, new = found.models
    assert found.next_cursor == "claude-new"
    assert (haiku.kind, haiku.name, haiku.inputs) == ("chat", "Claude Haiku 4.5", ("text", "image"))
    assert (haiku.context_length, haiku.max_output_tokens, haiku.created) == (
        200_000,
        64_000,
        1_759_276_800,
    )
    assert (haiku.deprecated, haiku.shutdown) == ("2026-06-01", "2026-12-31")
    assert haiku.prices == Prices(input=1.0, output=5.0, cached_input=0.1, cache_write=1.25)
    assert haiku.known == ("kind", "prices")
    assert (new.kind, new.max_output_tokens, new.created, new.inputs) == ("chat", None, None, ())


RECORDED = {
    "anthropic-ratelimit-input-tokens-limit": "4000000",
    "anthropic-ratelimit-input-tokens-remaining": "3999000",
    "anthropic-ratelimit-input-tokens-reset": "2026-04-05T14:28:37Z",
    "anthropic-ratelimit-output-tokens-limit": "800000",
    "anthropic-ratelimit-output-tokens-remaining": "800000",
    "anthropic-ratelimit-tokens-limit": "4800000",
    "anthropic-ratelimit-tokens-remaining": "4799000",
    "anthropic-ratelimit-requests-limit": "20000",
    "anthropic-ratelimit-requests-remaining": "19999",
    "anthropic-ratelimit-requests-reset": "2026-04-05T14:28:55Z",
    "date": "Sun, 05 Apr 2026 14:28:37 GMT",
}


def test_rates_of_requests_input_and_output() -> None:
    found = hooks("anthropic").rate_limits(HttpResponse(status=200, headers=RECORDED), WHERE)
    assert found.requests is not None
    assert found.tokens is not None
    assert found.output_tokens is not None
    assert (found.requests.limit, found.requests.remaining, found.requests.reset_s) == (20_000, 19_999, 18)
    assert (found.tokens.limit, found.tokens.remaining) == (4_000_000, 3_999_000)
    assert (found.output_tokens.limit, found.output_tokens.reset_s) == (800_000, None)
    without = {name: value for name, value in RECORDED.items() if "put-" not in name}
    tightest = hooks("anthropic").rate_limits(HttpResponse(status=200, headers=without), WHERE)
    assert tightest.tokens is not None
    assert (tightest.tokens.limit, tightest.output_tokens) == (4_800_000, None)


# Recorded exchanges, which are next to the repository (../shared/samples/recorded).

FOLDER = REPOSITORY.parent / "shared" / "samples" / "recorded"


def recordings() -> Iterator[Any]:
    for path in sorted([*FOLDER.glob("anthropic/*.json"), *FOLDER.glob("anthropic-*.json")]):
        for number, exchange in enumerate(json.loads(path.read_text())["exchanges"]):
            if "count_tokens" not in exchange["request"]["url"]:
                yield pytest.param(exchange, id=f"{path.stem}-{number}")


@pytest.mark.parametrize("exchange", list(recordings()))
def test_a_recorded_request_is_sent_as_it_was(exchange: Any) -> None:
    """Blocks in Anthropic's form are the user's own, so nothing about them changes."""
    asked = exchange["request"]["body"]
    own = ("model", "messages", "max_tokens", "stream", "system")
    system = [{"role": "system", "content": asked["system"]}] if "system" in asked else []
    sent = body(
        *system,
        *asked["messages"],
        model=asked["model"],
        max_tokens=asked["max_tokens"],
        stream=asked["stream"],
        extra={key: value for key, value in asked.items() if key not in own},
    )
    assert [(turn["role"], turn["content"]) for turn in sent.pop("messages")] == [
        (turn["role"], turn["content"]) for turn in asked["messages"]
    ]
    assert sent == {key: value for key, value in asked.items() if key != "messages"}


@pytest.mark.parametrize("exchange", list(recordings()))
def test_a_recorded_answer_is_read_and_its_blocks_go_back(exchange: Any) -> None:
    told = exchange["response"]
    if told["status"] >= 400:
        verdict = hooks("anthropic").classify_error(
            Failure(status=told["status"], body=json.dumps(told["body"]).encode(), operation="chat"), WHERE
        )
        assert verdict.kind.value in ("bad_request", "not_found")
        return
    if "body_text" not in told:
        whole = hooks("anthropic").parse_chat(call(), answer(told["body"]), WHERE)
        assert isinstance(whole, ChatReply)
        blocks = told["body"]["content"]
    else:
        parse = hooks("anthropic").stream_parser(call(stream=True), WHERE)
        events = decode_stream("text/event-stream", [told["body_text"].encode()])
        assert events is not None
        whole = accumulate(part for event in events for part in parse(event))  # type: ignore[union-attr]
        blocks = list(whole.provider_data.get("anthropic.blocks", [{"type": "text", "text": whole.text}]))
        assert not any("error" in event.event for event in events)
    texts = [block.get("text", "") for block in blocks if block["type"] == "text"]
    assert whole.text == "".join(texts)
    assert len(whole.tool_calls) == sum(block["type"] == "tool_use" for block in blocks)
    assert whole.finish_reason in ("stop", "tool_calls", "length", "pause_turn")
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0
    sent = turns(HI, whole.message.as_dict())[1]["content"]
    # A blank text, which some answers begin with, is refused when it comes back.
    filled = [block for block in blocks if block["type"] != "text" or block["text"].strip()]
    assert sent == (filled if whole.provider_data else whole.text)


def test_a_page_is_a_page() -> None:
    """Of an error under 200 the plugin makes a failure."""
    found = hooks("anthropic").parse_catalog(answer({"type": "error", "error": {"type": "api_error"}}), WHERE)
    assert not isinstance(found, CatalogPage)
