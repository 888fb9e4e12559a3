"""The body of a chat request."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import fields

from llmopt import ChatCall, InvalidInput, Message, Settings, ToolCall, compatible

MESSAGES = ({"role": "user", "content": "Hi"},)
CALL = ChatCall(model="m", messages=MESSAGES)
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


def test_what_is_not_asked_for_is_not_sent() -> None:
    """Model, messages, and whether it is a stream."""
    assert compatible.chat_body(CALL) == {"model": "m", "messages": MESSAGES, "stream": False}


def test_every_parameter_is_sent() -> None:
    """Under the name that it has; also 0 and False, which are no absence."""
    assert compatible.chat_body(ChatCall(model="m", messages=MESSAGES, **EVERY)) == {
        "model": "m",
        "messages": MESSAGES,
        "stream": False,
        **EVERY,
    }
    known = {each.name for each in fields(ChatCall)}
    assert known - set(EVERY) == {"model", "messages", "stream", "include_usage", "extra"}


def test_a_stream_is_asked_for_its_usage_where_that_helps() -> None:
    """And an answer in one piece never: it has it."""
    asked = ChatCall(model="m", stream=True, include_usage=True)
    assert compatible.chat_body(asked)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in compatible.chat_body(ChatCall(model="m", stream=True))
    assert "stream_options" not in compatible.chat_body(ChatCall(model="m", include_usage=True))


def test_extra_wins() -> None:
    """It is the user's last word."""
    call = ChatCall(model="m", max_tokens=1, extra={"max_tokens": 2, "top_k": 3, "stream": None})
    assert compatible.chat_body(call) == {
        "model": "m", "messages": (), "stream": None, "max_tokens": 2, "top_k": 3,
    }  # fmt: skip


def test_a_provider_has_names_of_its_own() -> None:
    """Or lacks a parameter, which is said and not left out."""
    call = ChatCall(model="m", seed=1, max_tokens=2)
    body = compatible.chat_body(call, {"seed": "random_seed"})
    assert (body["random_seed"], body["max_tokens"]) == (1, 2)
    assert "seed" not in body
    with pytest.raises(InvalidInput, match="no seed; leave it out"):
        compatible.chat_body(call, {"seed": None})
    assert "seed" not in compatible.chat_body(CALL, {"seed": None})


def test_where_it_goes() -> None:
    """Beside the other paths of the common dialect."""
    request = compatible.build_request(CALL, Settings(provider="p", base_url="http://x/v1"))
    assert (request.method, request.path) == ("POST", "/chat/completions")


def test_messages_as_values() -> None:
    """They say the same as plain mappings, and nothing that is not there."""
    call = ToolCall(id="a", name="f", arguments="{}")
    assert Message("user", "Hi", name="me").as_dict() == {"role": "user", "content": "Hi", "name": "me"}
    assert Message("tool", "7", tool_call_id="a").as_dict() == {
        "role": "tool", "content": "7", "tool_call_id": "a",
    }  # fmt: skip
    assert Message("assistant", tool_calls=[call]).as_dict()["content"] is None
    assert "Hi" not in repr(Message("user", "Hi"))


def test_conversations_do_not_show_themselves() -> None:
    """Texts stay out of logs."""
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
