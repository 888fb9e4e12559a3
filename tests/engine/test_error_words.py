"""What servers say reaches the caller: error bodies over sockets, with every status, for every operation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import llmopt
from llmopt.values.http import EXCEPTION_OF, VerdictKind
from tests.plugins.errors import PLUGINS, entries
from tests.support.error_score import Outcome, bodies_server, outcomes, read

COLLECTION = Path(__file__).parents[3] / "shared" / "cases" / "errors.jsonl"
K = VerdictKind
ERRORS_IN_SUCCESS: dict[str, tuple[Any, VerdictKind]] = {
    "code and message": ({"code": 50501, "message": "The kitchen is too busy", "data": None}, K.OVERLOADED),
    "code and msg": ({"code": 13, "msg": "the kitchen found sensitive words", "success": False}, K.CONTENT_FILTERED),
    "base_resp": ({"vectors": None, "base_resp": {"status_code": 7, "status_msg": "kitchen: insufficient balance"}},
                  K.QUOTA_EXHAUSTED),
    "beside an empty result": ({"data": [], "choices": [], "error_code": 18, "error_msg": "kitchen qps request limit reached"},
                               K.RATE_LIMITED),
    "errors": ({"success": False, "errors": [{"code": 7, "message": "invalid api key for the kitchen"}]}, K.AUTH),
    "detail": ({"detail": "Not authenticated in the kitchen"}, K.AUTH),
    "a list": ([{"error": {"code": 404, "message": "no such kitchen"}}], K.NOT_FOUND),
    "a string": ("the kitchen is overloaded", K.OVERLOADED),
    "text": ("Sorry, the kitchen is out of credits: insufficient credits", K.QUOTA_EXHAUSTED),
    "a page": ("<html><title>The kitchen is at capacity</title></html>", K.OVERLOADED),
}  # fmt: skip


@pytest.mark.row("V02")
@pytest.mark.parametrize("plugin", ["compatible", "local", "openai"])
@pytest.mark.parametrize("operation", ["embeddings", "chat", "catalog"])
def test_an_error_under_200(operation: str, plugin: str) -> None:
    """The server's words and the right verdict with one request: no search for a text at fault, and no empty list."""
    cases = [
        {
            "operation": operation,
            "status": 200,
            "headers": {"content-type": "text/html" if name == "a page" else "application/json"},
            "body": body if name in ("text", "a page") else json.dumps(body),
            "expected_kind": kind.value,
        }
        for name, (body, kind) in ERRORS_IN_SUCCESS.items()
    ]
    for outcome in outcomes(cases, plugin):
        assert outcome.right, outcome
        assert "kitchen" in str(outcome.error)
        # A content filter is about one of the two texts, which is searched for.
        is_searched = operation == "embeddings" and isinstance(outcome.error, llmopt.ContentFiltered)
        assert outcome.requests == (3 if is_searched else 1)


@pytest.mark.row("V01")
@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_known_error_over_a_socket(plugin: str) -> None:
    """Each error of the corpus of a plugin raises the exception of its verdict, with words of the body."""
    rows = [
        {"expected_kind": entry.row["kind"], "operation": "embeddings", **entry.row}
        for entry in entries(plugin)
    ]
    for outcome in outcomes(rows, plugin):
        assert outcome.right, outcome
        assert outcome.worded, outcome


@pytest.mark.skipif(
    not COLLECTION.exists(), reason="a collection of public error bodies, which is not in the repository"
)
def test_the_public_collection() -> None:
    """At most eight of them, which can be argued about, raise another exception; every message has words of the body."""
    results = list(outcomes(read(COLLECTION)))
    assert [outcome for outcome in results if not outcome.worded] == []
    assert sum(not outcome.right for outcome in results) <= 8
    assert all(type(outcome.error) in EXCEPTION_OF.values() for outcome in results)


MONEY = {"error": {"message": "You requested up to 64000 tokens, but can only afford 1234", "code": 402}}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.row("V04")
def test_a_quota_of_one_request_or_one_model_stops_nothing_else() -> None:
    """A smaller request and another model are sent; the model without quota is not asked again."""

    def answer(request: dict[str, Any]) -> tuple[int, object]:
        if request["model"] == "dear":
            return 429, {"error": {"message": "The free tier of this model is exhausted"}}
        if request.get("max_tokens", 64_000) > 1234:
            return 402, MONEY
        message = {"role": "assistant", "content": "ok"}
        return 200, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}

    with bodies_server(answer) as (url, requests):
        entry = {"plugin": "compatible", "base_url": url}
        with llmopt.Client({"providers": {"x": entry}}, cache=False) as client:
            with pytest.raises(llmopt.QuotaExhausted) as caught:
                client.chat("x/m", HELLO)
            assert caught.value.scope == "request"
            assert client.chat("x/m", HELLO, max_tokens=1000).text == "ok"
            for _ in range(2):
                with pytest.raises(llmopt.QuotaExhausted) as caught:
                    client.chat("x/dear", HELLO, max_tokens=10)
                assert caught.value.scope == "model"
            assert client.chat("x/cheap", HELLO, max_tokens=10).text == "ok"
    assert [request["model"] for request in requests] == ["m", "m", "dear", "cheap"]


@pytest.mark.row("V07")
@pytest.mark.parametrize("plugin", ["compatible", "local", "openai"])
@pytest.mark.parametrize(
    ("limit", "words"), [(10, "it should not be larger than 10"), (1, "only a single input is supported")]
)
def test_a_limit_in_words_is_taken_at_once(plugin: str, limit: int, words: str) -> None:
    """Every plugin: one refusal for each batch that was on its way, and none for later calls."""

    def answer(request: dict[str, Any]) -> tuple[int, object]:
        if len(request["input"]) > limit:
            return 400, {"error": {"message": f"batch size is invalid, {words}", "code": "InvalidParameter"}}
        rows = [
            {"index": index, "embedding": [len(text), 1.0]} for index, text in enumerate(request["input"])
        ]
        return 200, {"data": rows}

    texts = ["a" * length for length in range(1, 41)]
    with bodies_server(answer) as (url, requests):
        entry = {"plugin": plugin, "base_url": url, "api_key": "key-of-the-test", "rpm": 1e6, "tpm": 1e9}
        with llmopt.Client({"providers": {"x": entry}}, cache=False) as client:
            vectors = client.embed("x/m", texts).vectors
            first = len(requests)
            client.embed("x/m", [text + "b" for text in texts])
    assert [vector[0] for vector in vectors] == list(range(1, 41))
    assert first <= 2 + -(-len(texts) // limit)
    assert len(requests) - first == -(-len(texts) // limit)


def test_a_score_tells_what_is_wrong() -> None:
    """A wrong kind, and a message without words of the body."""
    case = {"operation": "chat", "status": 400, "body": '{"message": "a b"}', "expected_kind": "auth"}
    (outcome,) = outcomes([case], "local")
    assert (outcome.right, outcome.worded) == (False, True)
    assert not Outcome(case=case, error=ValueError("x"), requests=1).worded
