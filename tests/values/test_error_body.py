"""Error bodies of every shape: the words of the server and its codes are found, and nothing raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import Failure, HttpResponse, ServerEvent
from llmopt.values.error_body import read_error_body
from tests.support.scale import scaled

WORDS = "the flux capacitor is out of order"
CODE = "flux_missing"
LEAVES: dict[str, Callable[[str], dict[str, Any]]] = {
    "message": lambda words: {"message": words, "code": CODE},
    "Message": lambda words: {"Message": words, "Code": CODE, "RequestId": "1"},
    "msg": lambda words: {"msg": words, "code": CODE, "success": False},
    "error_msg": lambda words: {"error_msg": words, "error_code": CODE},
    "errorMessage": lambda words: {"errorMessage": words, "errorType": CODE},
    "status_msg": lambda words: {"status_msg": words, "status_code": CODE},
    "faultstring": lambda words: {"faultstring": words, "detail": {"errorcode": CODE}},
    "problem": lambda words: {"title": "Bad things", "detail": words, "type": CODE, "status": 400},
    "description": lambda words: {"error": CODE, "error_description": words},
    "reason": lambda words: {"reason": CODE, "message": words, "metadata": {}},
    "typed": lambda words: {"type": CODE, "message": words, "param": None},
}
"""The innermost object."""
WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "as it is": lambda inner: inner,
    "error": lambda inner: {"error": inner},
    "error with a type": lambda inner: {"type": "error", "error": inner, "request_id": "1"},
    "list": lambda inner: [{"error": inner}],
    "errors": lambda inner: {"success": False, "errors": [inner], "messages": [], "result": None},
    "fault": lambda inner: {"fault": inner},
    "base_resp": lambda inner: {"vectors": None, "base_resp": inner},
    "detail": lambda inner: {"detail": inner},
    "response": lambda inner: {"Response": {"Error": inner, "RequestId": "1"}},
    "raw": lambda inner: {
        "error": {"message": "Provider returned error", "metadata": {"raw": json.dumps(inner)}}
    },
    "in a message": lambda inner: {
        "error": {"message": f"Gateway - {json.dumps(inner)}. Model group g", "code": "None"}
    },
    "in a message twice": lambda inner: {"message": json.dumps({"error": {"message": json.dumps(inner)}})},
}
"""What stands around it."""


def shaped(leaf: str, wrapper: str) -> bytes:
    return json.dumps(WRAPPERS[wrapper](LEAVES[leaf](WORDS)), ensure_ascii=False).encode()


@pytest.mark.row("V01")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("leaf", LEAVES)
def test_words_and_code_are_found_in_every_shape(leaf: str, wrapper: str) -> None:
    """Whatever the keys are called, and however deep the object stands."""
    error = read_error_body(shaped(leaf, wrapper))
    assert WORDS in error.message
    assert CODE in error.codes
    # Words alone, without a key or a code that says so, may be a result.
    assert error.form == "error" or wrapper in ("as it is", "base_resp", "in a message twice")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b'"a whole body that is one string"', "a whole body that is one string"),
        (b"error code: 1010", "error code: 1010"),
        (b'{"message": "Bad", "description": "the wheel is square", "details": "use a round one"}',
         "Bad: the wheel is square: use a round one"),
        (b'data: {"error": {"message": "in an event", "code": 502}}\n\n', "in an event"),
        (b'event: error\ndata: {"message": "in a named event"}\n\n', "in a named event"),
        (b'\xef\xbb\xbf{"message": "behind a BOM"}', "behind a BOM"),
        (b'{"message": "one of two"}\n{"message": "documents"}', "one of two"),
        (b'{"message": "a line\nbreak"}', "a line break"),
        (b'{"unknown": {"keys": [1, 2]}}', '{"unknown": {"keys": [1, 2]}}'),
        (b'{"errors": {"Input": ["is required", "is short"]}, "title": "Invalid"}', "Invalid: Input: is required; is short"),
        (b'{"errors": ["first", "second"]}', "first; second"),
        (b'{"error": ["a list", "of texts"]}', "a list; of texts"),
        (b'{"timestamp": 1, "status": 500, "error": "Internal Server Error", "message": "disk full", "path": "/v1"}',
         "Internal Server Error: disk full"),
        (b"<html><head><title>504 Gateway Time-out</title><style>p { color: red }</style></head><body><p>nginx &amp; co</p></body></html>",
         "504 Gateway Time-out nginx & co"),
        (b"<?xml version='1.0'?><Error><Code>Denied</Code><Message>No such thing</Message></Error>", "Denied No such thing"),
        (b"<script>alert(1)</script>", "<script>alert(1)</script>"),
        (b'{"detail": [{"loc": ["body", "user"], "msg": "not permitted", "input": "long"}]}', "body.user: not permitted"),
        (b'{"detail": [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": {"a": "cut he', "Field required"),
        ('{"message": "Gr\u00fc\u00dfe"}'.encode("latin-1"), "Gr"),
    ],
)  # fmt: skip
def test_the_words_of_other_bodies(body: bytes, words: str) -> None:
    """Text, markup, events, validation errors, and JSON that is cut off."""
    message = read_error_body(body).message
    assert message.startswith(words) if words == "Gr" else message == words


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}", b"[]", b"null", b'""'])
def test_nothing_is_no_message(body: bytes) -> None:
    """Only a body without content has none."""
    assert read_error_body(body).message == ""


def test_the_charset_of_the_content_type_is_used() -> None:
    """For a body that is not UTF-8; an unknown one does no harm."""
    body = '{"message": "余额不足"}'.encode("gbk")
    headers = {"content-type": "application/json; charset=GBK"}
    assert Failure(status=400, headers=headers, body=body).error.message == "余额不足"
    for name in ("none", "idna", "punycode", "undefined"):
        # Codecs of Python's that are no charset, or refuse to replace what they cannot decode.
        assert Failure(status=400, headers={"content-type": f"a/b; charset={name}"}, body=body).error.message


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"error": {"code": 503}}, 503),
        ({"status": 404, "title": "Not Found"}, 404),
        ({"error": {"message": "x", "http_status_code": 422}}, 422),
        ({"type": "error", "error": {"http_code": "429", "message": "x"}}, 429),
        ({"code": 500, "msg": "404 NOT_FOUND", "success": False}, 404),
        ({"code": 20042, "message": "x"}, None),
        ({"code": True}, None),
    ],
)
def test_the_status_that_a_body_states(body: object, status: int | None) -> None:
    """Of a success it is the status of the error; the start of a message is more exact than a gateway's own code."""
    failure = Failure(status=200, body=json.dumps(body).encode())
    assert failure.error.status == status
    assert failure.stated_status == (status or 200)
    assert Failure(status=418, body=failure.body).stated_status == 418


def test_the_parameter_of_a_validation_error() -> None:
    """The one with the texts is none: then a text may be at fault, and not the whole request."""
    for name, param in (("dimensions", "dimensions"), ("input", None)):
        body = json.dumps({"detail": [{"loc": ["body", name, 0], "msg": "no"}]}).encode()
        assert read_error_body(body).param == param


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(["error", "errors", "message", "msg", "detail", "code", "loc", "metadata", "raw", "status"])
        | st.text(max_size=6),
        inner,
        max_size=5,
    ),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=scaled(200, 5_000), deadline=None)
@given(json_values)
def test_any_json_is_read(value: object) -> None:
    """Nothing raises, in a response or in an event; fields have their types, and the message is one short line."""
    body = json.dumps(value)
    response = Failure.from_response(HttpResponse(status=200, body=body.encode("utf-8", "replace")))
    event = Failure.from_event(ServerEvent(data=body.encode("utf-8", "replace").decode()))
    for failure in (response, event):
        error = failure.error
        assert len(error.message) <= 500
        assert "\n" not in error.message
        assert all(isinstance(each, str | None) for each in (error.code, error.type, error.param))
        assert failure.stated_status == 200 or 400 <= failure.stated_status < 600


@settings(max_examples=scaled(200, 5_000), deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_read(body: bytes) -> None:
    """Nothing raises."""
    assert len(read_error_body(body).message) <= 500


@settings(max_examples=scaled(100, 2_000), deadline=None)
@given(st.sampled_from(sorted(LEAVES)), st.sampled_from(sorted(WRAPPERS)), st.data())
def test_a_body_that_is_cut_off_keeps_its_words(leaf: str, wrapper: str, data: st.DataObject) -> None:
    """Bodies end at 64 KiB, and connections anywhere."""
    body = shaped(leaf, wrapper)
    end = body.index(WORDS.encode()) + len(WORDS)
    cut = body[: data.draw(st.integers(end, len(body)))]
    assert WORDS in read_error_body(cut).message


@pytest.mark.parametrize("piece", ["<!--", "<script", '{"', '{"message": "', "[", '"a":', "data: ", "{" * 50])
def test_a_hostile_body_is_read(piece: str) -> None:
    """64 KiB of one piece end in a message; a search that is not linear would take minutes here."""
    body = (piece * (65_536 // len(piece))).encode()
    assert read_error_body(body).message
    assert read_error_body(b"<" + body).message
