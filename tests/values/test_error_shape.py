"""Errors under a successful status, told by their shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import ChatCall, Failure, HttpResponse, ServerEvent, compatible
from llmopt.values.error_shape import is_error

WORDS = "the engine broke"
CALL = ChatCall(model="m")
_ids = st.dictionaries(
    st.sampled_from(["id", "request_id", "requestId", "created", "timestamp", "path", "trace", "model"]),
    st.sampled_from(["x", "2026-11-30", 7, None]),
)
"""Keys that say nothing."""
_codes = st.one_of(
    st.integers(1, 199), st.integers(300, 9999), st.sampled_from(["1039", "ServerBusy", "data_error", "-1"])
)
_no_answer = st.sampled_from([{}, {"choices": None}, {"choices": []}, {"data": None}, {"success": False}])


def _shapes(code: Any) -> st.SearchStrategy[dict[str, Any] | list[Any]]:
    shapes: list[Any] = [
        {"code": code, "msg": WORDS},
        {"code": code, "message": WORDS},
        {"code": code, "reason": "X", "message": WORDS},
        {"statusCode": code, "message": WORDS},
        {"error_code": code, "error_msg": WORDS},
        {"error_code": code, "message": WORDS},
        {"error": WORDS, "code": code},
        {"error": {"code": code, "message": WORDS}},
        {"errors": [{"code": code, "message": WORDS}]},
        {"base_resp": {"status_code": code, "status_msg": WORDS}},
        {"status": 503, "error": "Service Unavailable", "message": WORDS},
        {"type": "about:blank", "title": "Unavailable", "status": 503, "detail": WORDS},
        {"type": "https://acme.example/problems/7", "title": "Unavailable", "detail": WORDS},
        {"detail": WORDS},
        {"detail": [{"loc": ["body"], "msg": WORDS}]},
        {"detail": {"msg": WORDS, "type": "bad"}},
        {"object": "error", "message": WORDS, "code": code},
        {"type": "server_error", "text": WORDS},
        {"status": "failure", "message": WORDS},
        {"fault": {"faultstring": WORDS}},
        {"Response": {"Error": {"Code": code, "Message": WORDS}}},
        {"header": {"code": code, "message": WORDS, "sid": "x"}},
        {"Message": WORDS, "Code": code},
        {"__type": "ThrottlingException", "message": WORDS},
        {"errorMessage": WORDS, "errorType": "X"},
        {"promptFeedback": {"blockReason": "SAFETY"}},
        {"x_acme": {"id": "1", "error": WORDS}},
        {"type": "response.failed", "response": {"error": {"code": code, "message": WORDS}}},
    ]
    return st.sampled_from([*shapes, *([shape] for shape in shapes)])


@given(_codes.flatmap(_shapes), _ids, _no_answer)
def test_an_error_of_any_shape_is_one(shape: Any, ids: dict[str, Any], more: dict[str, Any]) -> None:
    """Whatever stands beside it; in a stream and in place of an answer."""
    value = shape if isinstance(shape, list) else {**ids, **more, **shape}
    assert is_error(value)
    text = json.dumps(value)
    assert isinstance(compatible.parse_stream_event(CALL, ServerEvent(data=text)), Failure)
    found = compatible.parse_chat(CALL, HttpResponse(status=200, body=text.encode()))
    assert isinstance(found, Failure)


_names = st.sampled_from(
    ["ping", "chat.moderation", "response.created", "progress", "keepalive.v2", "status_update"]
)
_neutral = st.dictionaries(
    st.sampled_from(
        ["sequence_number", "at", "item", "results", "delta", "position", "response", "error", "errors"]
    ),
    st.one_of(st.none(), st.integers(0, 0), st.just([]), st.just({})),
)


@given(
    st.sampled_from(["type", "object", "event", "status"]),
    _names,
    _neutral,
    st.sampled_from(
        [{}, {"message": "still warming up"}, {"detail": "step 2"}, {"code": 0, "msg": "success"}]
    ),
)
def test_what_names_itself_otherwise_is_merely_unknown(
    key: str, name: str, more: dict[str, Any], words: dict[str, Any]
) -> None:
    """It adds nothing, ends nothing, and is no error."""
    value = {**more, **words, key: name}
    assert not is_error(value)
    found = compatible.parse_stream_event(CALL, ServerEvent(data=json.dumps(value)))
    assert isinstance(found, tuple)
    assert [(each.unknown != "", each.adds, each.last) for each in found] == [(True, False, False)]


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        None,
        "text",
        {"choices": [{"index": 0}], "message": "x", "code": 500},
        {"object": "list", "data": [{}], "message": "ok", "code": 7},
        {"choices": [], "base_resp": {"status_code": 0, "status_msg": "success"}},
        {"type": "message_start", "message": {"role": "assistant"}},
        {"id": "", "object": "", "choices": [], "prompt_filter_results": [{}]},
        {"error": None, "errors": [], "error_code": 0, "error_msg": ""},
        {"code": 200, "msg": "ok", "data": {}},
        {"type": "lookup.result", "status": 404},
        {"object": "chat.completion.chunk", "status": "completed"},
        {"header": {"code": 0, "message": "Success", "sid": "x"}},
        {"promptFeedback": {}},
        {"x_acme": {"id": "1", "error": None}},
        ["text"],
        7,
    ],
)
def test_what_is_no_error(value: Any) -> None:
    """Answers, success in other words, and values without a word of an error."""
    assert not is_error(value)
