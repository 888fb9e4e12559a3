"""Parsing of OpenAI-compatible chat responses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from attrs import fields

from llmopt import (
    ChatCall,
    ChatEvent,
    ChatReply,
    Failure,
    HttpResponse,
    InvalidInput,
    InvalidResponse,
    Message,
    ServerEvent,
    Settings,
    ToolCall,
    ToolCallPart,
    Usage,
    VerdictKind,
    compatible,
)

CALL = ChatCall(model="m")


def streamed(value: Any, kind: str = "message") -> tuple[ChatEvent, ...] | Failure:
    data = value if isinstance(value, str) else json.dumps(value)
    return compatible.parse_stream_event(CALL, ServerEvent(event=kind, data=data))


def one(value: Any) -> ChatEvent:
    result = streamed(value)
    assert isinstance(result, tuple)
    (event,) = result
    return event


def delta(finish_reason: Any = None, **said: Any) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": said, "finish_reason": finish_reason}]}


def reply(value: Any) -> ChatReply | Failure:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return compatible.parse_chat(CALL, HttpResponse(status=200, body=body))


def message(finish_reason: Any = "stop", **said: Any) -> dict[str, Any]:
    said = {"role": "assistant", **said}
    return {
        "id": "c",
        "model": "m",
        "choices": [{"index": 0, "message": said, "finish_reason": finish_reason}],
    }


def test_text_id_model_and_raw_are_read() -> None:
    value = delta(content="Hi")
    assert one(value) == ChatEvent(text="Hi", id="c", model="m", raw=value)
    result = reply(message(content="Hi"))
    assert isinstance(result, ChatReply)
    assert (result.text, result.finish_reason, result.id, result.model) == ("Hi", "stop", "c", "m")
    assert result.request_id is None


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning"])
def test_reasoning_is_separate_from_text(key: str) -> None:
    """Servers use either of these keys."""
    assert one(delta(content=None, **{key: "hm"})).reasoning == "hm"
    result = reply(message(content="a", **{key: "hm"}))
    assert isinstance(result, ChatReply)
    assert (result.text, result.reasoning) == ("a", "hm")


def test_reasoning_under_both_keys_is_read_once() -> None:
    """Some gateways send both."""
    assert one(delta(reasoning="hm", reasoning_content="hm")).reasoning == "hm"
    assert one(delta(reasoning="", reasoning_content=None)).reasoning == ""


def test_typed_content_parts() -> None:
    """Text, reasoning as parts or text, and a refusal; other types are ignored."""
    content = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "h"}, {"type": "reference", "x": 1}]},
        {"type": "thinking", "thinking": "m"},
        {"type": "text", "text": "a"},
        {"type": "reference", "reference_ids": [1]},
        {"text": "b"},
        {"type": "refusal", "refusal": "n"},
    ]
    event = one(delta(content=content))
    assert (event.text, event.reasoning, event.refusal) == ("ab", "hm", "n")


def test_a_refusal_is_separate_from_text() -> None:
    assert one(delta(content=None, refusal="no")).refusal == "no"
    result = reply(message(content=None, refusal="no"))
    assert isinstance(result, ChatReply)
    assert (result.text, result.refusal) == ("", "no")


def test_tool_calls() -> None:
    """Fragments with and without index, id and name; arguments as text or as an object."""
    wire = [
        {"index": 3, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"function": {"arguments": '{"x"'}},
        {"index": True, "function": {"name": "g", "arguments": {"y": 1}}},
        {"index": 0, "id": None, "function": None},
    ]
    assert one(delta(tool_calls=wire)).tool_calls == (
        ToolCallPart(index=3, id="a", name="f"),
        ToolCallPart(index=1, arguments='{"x"'),
        ToolCallPart(index=2, name="g", arguments='{"y":1}'),
        ToolCallPart(index=0),
    )
    result = reply(message("tool_calls", content=None, tool_calls=wire[:1]))
    assert isinstance(result, ChatReply)
    assert result.tool_calls == (ToolCall(id="a", name="f"),)


def test_typed_parts_under_other_names() -> None:
    """Gateways pass on the names of other interfaces."""
    content = [{"type": "reasoning_text", "text": "hm"}, {"type": "output_text", "text": "a"}]
    event = one(delta(content=content))
    assert (event.text, event.reasoning) == ("a", "hm")


def test_tool_calls_in_other_forms() -> None:
    """A custom tool gets free text; some servers leave out the inner object."""
    calls = [
        {"index": 0, "id": "a", "type": "custom", "custom": {"name": "f", "input": "free text"}},
        {"index": 1, "id": "b", "name": "g", "arguments": "{}"},
    ]
    assert one(delta(tool_calls=calls)).tool_calls == (
        ToolCallPart(index=0, id="a", name="f", arguments="free text"),
        ToolCallPart(index=1, id="b", name="g", arguments="{}"),
    )


def test_the_first_choice_is_read() -> None:
    """The one with index 0, whatever its position; the others are in raw."""
    choices = [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]
    assert one({"choices": choices}).text == "a"
    assert one({"choices": [{"delta": {"content": "c"}}]}).text == "c"
    # Where several were asked for, each event has one of them.
    several = ChatCall(model="m", extra={"n": 2})
    found = compatible.parse_stream_event(several, ServerEvent(data=json.dumps({"choices": choices[:1]})))
    assert isinstance(found, tuple)
    assert not found[0].adds


def test_the_only_choice_is_read_whatever_its_number() -> None:
    """Some servers count from 1."""
    assert one({"choices": [{"index": 1, "delta": {"content": "b"}}]}).text == "b"
    value = message(content="b")
    value["choices"][0]["index"] = 1
    found = reply(value)
    assert isinstance(found, ChatReply)
    assert found.text == "b"


def test_usage() -> None:
    """Without a choice, with one, null, or implausible."""
    counts = {
        "prompt_tokens": 3,
        "completion_tokens": 2,
        "total_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    wanted = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5, cached_tokens=1, reasoning_tokens=2)
    assert one({"choices": [], "usage": counts}) == ChatEvent(
        usage=wanted, raw={"choices": [], "usage": counts}
    )
    assert one({"usage": counts}).usage == wanted
    assert one({**delta("stop"), "usage": counts}).usage == wanted
    for nothing in (None, {}, [], "5", {"total_tokens": -1}, {"prompt_tokens": True}):
        assert one({**delta(), "usage": nothing}).usage is None
    other = {"prompt_tokens": 1, "prompt_token_details": {"cached_tokens": 1}, "prompt_tokens_details": None}
    assert one({"usage": other}).usage == Usage(prompt_tokens=1, total_tokens=1, cached_tokens=1)
    assert one({"usage": {"prompt_tokens": 4, "num_cached_tokens": 3}}).usage == Usage(
        prompt_tokens=4, total_tokens=4, cached_tokens=3
    )


def test_only_the_text_done_ends_a_stream() -> None:
    """With blanks around it; any other text is an ordinary event, and these are no JSON."""
    for end in ("[DONE]", " [DONE]", "[DONE] ", "[DONE]\t", " [DONE]\n"):
        assert streamed(end) == (ChatEvent(last=True),)
    for nearly in ("[DONE]x", "[done]", "[DONE", "DONE", "[ DONE ]"):
        with pytest.raises(InvalidResponse, match="is not JSON"):
            streamed(nearly)


@pytest.mark.parametrize("data", ["", " ", "\n", "{}"])
def test_empty_events_are_ignored(data: str) -> None:
    """Some servers keep a connection open with them."""
    assert streamed(data) == ()


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [
        ('{"type":"ping"}', "message", "ping"),
        ('{"object":"chat.moderation","results":[]}', "message", "chat.moderation"),
        ('{"type":"notice","message":"still warming up"}', "message", "notice"),
        ('{"type":"x y","at":1}', "tick", "tick"),
        ('{"choices_":[]}', "message", "unnamed"),
        ('{"message":null}', "message", "unnamed"),
        ("now", "heartbeat", "heartbeat"),
        ("null", "heartbeat", "heartbeat"),
        ("[]", "message", "unnamed"),
    ],
)
def test_what_is_unknown_adds_nothing(data: str, kind: str, name: str) -> None:
    """Kinds of events that are yet to come are handed on with their name, and are never words or an end."""
    found = streamed(data, kind)
    assert isinstance(found, tuple)
    (event,) = found
    assert (event.unknown, event.adds, event.last) == (name, False, False)
    assert event.raw == (json.loads(data) if data.startswith("{") else {"event": kind, "data": data})


@pytest.mark.parametrize(
    "value",
    [
        # Azure: before the first word, and a filter's verdict behind the last one.
        {"id": "", "object": "", "created": 0, "model": "", "prompt_filter_results": [{}], "choices": [], "usage": None},
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {}, "content_filter_offsets": {}}]},
        {"choices": [{"index": 0, "delta": None}]},
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
        {"choices": None},
        {**delta(content=None), "obfuscation": "x", "x_groq": {}, "sla_metrics": 1, "provider": "P"},
    ],
)  # fmt: skip
def test_a_chunk_without_text_is_no_error(value: Any) -> None:
    """It has the raw value, and adds nothing to the reply."""
    event = one(value)
    assert not event.adds
    assert event.raw == value


ERRORS: list[Any] = [
    {"error": {"message": "it failed", "type": "server_error", "param": None, "code": None}},
    {"error": {"message": "it failed"}, "choices": [{"index": 0, "delta": {"content": ""}}]},
    {"error": "it failed"},
    {"error": {"message": "it failed"}, "message": "it failed"},
    {"object": "error", "message": "it failed", "type": "internal", "code": "1"},
    {"message": "it failed"},
    {"detail": "it failed"},
    {"detail": [{"loc": ["body"], "msg": "it failed"}]},
]


@pytest.mark.parametrize("value", ERRORS)
def test_an_error_of_any_shape_is_a_failure(value: Any) -> None:
    """In a stream and as a whole response."""
    for result in (streamed(value), streamed(value, "error"), reply(value)):
        assert isinstance(result, Failure)
        assert "it failed" in result.error.message
        assert (result.status, result.operation, result.model) == (200, "chat", "m")
        assert compatible.classify(result).kind is VerdictKind.TRANSIENT


@pytest.mark.parametrize(
    "data", ['{"code":500,"message":"it failed","type":"server_error"}', "it failed", ""]
)
def test_an_event_named_error_is_a_failure_whatever_its_data(data: str) -> None:
    """Groq and LM Studio send such events, and so did old versions of llama.cpp."""
    result = streamed(data, "error")
    assert isinstance(result, Failure)
    assert result.error.message in ("it failed", "")


def test_the_finish_reason_error_is_a_failure() -> None:
    """Mistral documents it."""
    for result in (
        streamed(delta("error", content="half an ans")),
        reply(message("error", content="half an ans")),
    ):
        assert isinstance(result, Failure)
        assert result.error.message == 'the model ended its answer with finish_reason "error"'
        assert compatible.classify(result).kind is VerdictKind.TRANSIENT


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ({"code": 502, "message": "x"}, 502, VerdictKind.TRANSIENT),
        ({"code": "429", "message": "x"}, 429, VerdictKind.RATE_LIMITED),
        ({"status_code": 400, "code": "tool_use_failed"}, 400, VerdictKind.BAD_REQUEST),
        ({"code": 529, "type": "overloaded_error"}, 529, VerdictKind.OVERLOADED),
        ({"code": "insufficient_quota"}, 200, VerdictKind.QUOTA_EXHAUSTED),
        ({"type": "rate_limit_error", "code": None}, 200, VerdictKind.RATE_LIMITED),
        ({"type": "service_unavailable_error"}, 200, VerdictKind.OVERLOADED),
        ({"type": "invalid_request_error"}, 200, VerdictKind.BAD_REQUEST),
        ({"type": "BadRequestError", "code": "1300"}, 200, VerdictKind.BAD_REQUEST),
        ({"code": "content_filter"}, 200, VerdictKind.CONTENT_FILTERED),
        ({"code": True, "message": "x"}, 200, VerdictKind.TRANSIENT),
    ],
)
def test_an_error_in_a_stream_is_classified_by_its_own_status(
    error: Any, status: int, kind: VerdictKind
) -> None:
    """Or by its code or type; the status of the response is 200."""
    result = streamed({"error": error})
    assert isinstance(result, Failure)
    assert (result.status, result.stated_status) == (200, status)
    assert compatible.classify(result).kind is kind


@pytest.mark.row("E09")
@pytest.mark.parametrize("data", ["nonsense", "[1]", "null", "7", '"a"', '{"a":', '{"a":NaN}', "[" * 100_000])
def test_an_event_that_is_no_object_is_invalid(data: str) -> None:
    """The error does not show its text."""
    with pytest.raises(InvalidResponse) as caught:
        streamed(data)
    assert caught.value.reason == "json"
    assert "nonsense" not in str(caught.value)


WRONG: list[dict[str, Any]] = [
    {"choices": {}},
    {"choices": "a"},
    {"choices": [1]},
    {"choices": [{"delta": []}]},
    {"choices": [{"delta": "a"}]},
    delta(content=1),
    delta(content={"a": 1}),
    delta(content=["a"]),
    delta(content=[{"type": "text", "text": 1}]),
    delta(content=[{"type": "thinking", "thinking": {}}]),
    delta(content=[{"type": "thinking", "thinking": ["a"]}]),
    delta(refusal=1),
    delta(tool_calls={}),
    delta(tool_calls=["a"]),
    delta(tool_calls=[{"function": "f"}]),
    delta(tool_calls=[{"function": {"name": 1}}]),
    delta(tool_calls=[{"function": {"arguments": 1}}]),
    delta(tool_calls=[{"id": 1}]),
    delta(1),
    delta(["stop"]),
]


@pytest.mark.parametrize("value", WRONG, ids=lambda value: json.dumps(value)[-60:])
def test_text_of_a_wrong_type_is_invalid(value: dict[str, Any]) -> None:
    """Text must not be lost silently."""
    with pytest.raises(InvalidResponse) as caught:
        streamed(value)
    assert caught.value.reason == "type"


@pytest.mark.parametrize(
    "value",
    [{}, [], {"choices": []}, {"choices": None}, {"choices": [{"index": 1}]}, {"choices": [{}]}, {"choices": [{"message": None}]}, {"choices": [{"message": "a"}]}, message(content=1), message(3), b"", b"<html>", b"\xff"],
)  # fmt: skip
def test_a_response_without_a_message_is_invalid(value: Any) -> None:
    """It is not taken for an empty reply."""
    with pytest.raises(InvalidResponse):
        reply(value)


# The body of a chat request.

MESSAGES = ({"role": "user", "content": "Hi"},)
CHAT_CALL = ChatCall(model="m", messages=MESSAGES)
EVERY: dict[str, Any] = {
    "max_tokens": 5,
    "temperature": 0.0,
    "top_p": 0.5,
    "stop": ("a", "b"),
    "seed": 0,
    "presence_penalty": 0.1,
    "frequency_penalty": -0.1,
    "tools": ({"type": "function", "function": {"name": "f"}},),
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "low",
}


def test_a_parameter_that_is_not_set_is_not_sent() -> None:
    """A request has the model, the messages and stream."""
    assert compatible.chat_body(CHAT_CALL) == {"model": "m", "messages": MESSAGES, "stream": False}


def test_every_parameter_is_sent() -> None:
    """0 and False too."""
    assert compatible.chat_body(ChatCall(model="m", messages=MESSAGES, **EVERY)) == {
        "model": "m",
        "messages": MESSAGES,
        "stream": False,
        **EVERY,
    }
    known = {each.name for each in fields(ChatCall)}
    assert known - set(EVERY) == {"model", "messages", "stream", "include_usage", "extra", "headers"}


def test_a_stream_requests_its_usage_if_the_server_can() -> None:
    """A whole response has it anyway."""
    asked = ChatCall(model="m", stream=True, include_usage=True)
    assert compatible.chat_body(asked)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in compatible.chat_body(ChatCall(model="m", stream=True))
    assert "stream_options" not in compatible.chat_body(ChatCall(model="m", include_usage=True))


def test_extra_overrides_other_parameters() -> None:
    call = ChatCall(model="m", max_tokens=1, extra={"max_tokens": 2, "top_k": 3, "stream": None})
    assert compatible.chat_body(call) == {
        "model": "m", "messages": (), "stream": None, "max_tokens": 2, "top_k": 3,
    }  # fmt: skip


def test_a_provider_may_rename_or_lack_a_parameter() -> None:
    """A lacking one is an error, not ignored."""
    call = ChatCall(model="m", seed=1, max_tokens=2)
    body = compatible.chat_body(call, {"seed": "random_seed"})
    assert (body["random_seed"], body["max_tokens"]) == (1, 2)
    assert "seed" not in body
    with pytest.raises(InvalidInput, match="no seed; leave it out"):
        compatible.chat_body(call, {"seed": None})
    assert "seed" not in compatible.chat_body(CHAT_CALL, {"seed": None})


def test_the_path_of_a_chat() -> None:
    request = compatible.build_request(CHAT_CALL, Settings(provider="p", base_url="http://x/v1"))
    assert (request.method, request.path) == ("POST", "/chat/completions")


def test_messages_as_values() -> None:
    """They are sent like plain mappings, without empty keys."""
    call = ToolCall(id="a", name="f", arguments="{}")
    assert Message("user", "Hi", name="me").as_dict() == {"role": "user", "content": "Hi", "name": "me"}
    assert Message("tool", "7", tool_call_id="a").as_dict() == {
        "role": "tool", "content": "7", "tool_call_id": "a",
    }  # fmt: skip
    assert Message("assistant", tool_calls=[call]).as_dict()["content"] is None
    assert "Hi" not in repr(Message("user", "Hi"))


def test_repr_of_a_conversation_does_not_show_its_text() -> None:
    """Texts do not belong in logs."""
    call = ChatCall(
        model="m",
        messages=({"role": "user", "content": "secret"},),
        stop=("secret",),
        tools=({"secret": 1},),
        tool_choice={"secret": 1},
        response_format={"secret": 1},
        extra={"user": "secret"},
    )
    assert "secret" not in repr(call)
