"""OpenAI's plugin: what it sends, what it reads, what it knows."""

from __future__ import annotations

import pytest

from llmopt import BatchLimit, CatalogCall, ChatCall, Prices, ProviderEntry, VerdictKind
from llmopt.compatible.refusals import stated_wait
from tests.plugins.helpers import KEY, call, failure, hooks, page, settings

BASE = "https://api.openai.com/v1"
OPENAI = hooks("openai")


def test_the_profile() -> None:
    """A key of the environment may be sent to OpenAI's own hosts, regional ones included."""
    profile = OPENAI.provider_profile(ProviderEntry(name="openai"))
    assert profile.base_url == BASE
    assert profile.key_env == ("OPENAI_API_KEY",)
    assert profile.base_url_env == ("OPENAI_BASE_URL",)
    assert profile.own_hosts == ("*.api.openai.com",)
    assert {option.name: option.env for option in profile.options} == {
        "organization": ("OPENAI_ORG_ID",),
        "project": ("OPENAI_PROJECT_ID",),
    }


def test_a_request_has_base64_and_no_other_key() -> None:
    """OpenAI's API description allows five keys."""
    request = OPENAI.build_request(call("text-embedding-3-small"), settings("openai", BASE))
    assert (request.method, request.path) == ("POST", "/embeddings")
    assert request.json == {
        "model": "text-embedding-3-small",
        "input": ("one", "two"),
        "encoding_format": "base64",
    }
    assert request.headers == {"authorization": f"Bearer {KEY}"}


def test_dimensions_and_extra_keys_are_sent() -> None:
    asked = call("text-embedding-3-large", dimensions=256, extra={"user": "u-1"})
    body = OPENAI.build_request(asked, settings("openai", BASE)).json
    assert (body["dimensions"], body["user"]) == (256, "u-1")


def test_an_input_type_is_not_sent() -> None:
    """OpenAI would refuse it."""
    body = OPENAI.build_request(call(input_type="query"), settings("openai", BASE)).json
    assert "input_type" not in body


def test_organisation_and_project_are_headers() -> None:
    """In addition to the configured headers."""
    where = settings("openai", BASE, headers={"x-team": "a"}, organization="org-1", project="proj_1")
    headers = OPENAI.build_request(CatalogCall(), where).headers
    assert headers["OpenAI-Organization"] == "org-1"
    assert headers["OpenAI-Project"] == "proj_1"
    assert headers["x-team"] == "a"
    alone = OPENAI.build_request(CatalogCall(), settings("openai", BASE, organization="org-1"))
    assert "OpenAI-Project" not in alone.headers


def test_a_chat_has_no_encoding() -> None:
    """Base64 is for embeddings only."""
    body = OPENAI.build_request(
        ChatCall(model="m", messages=({"role": "user"},)), settings("openai", BASE)
    ).json
    assert "encoding_format" not in body


@pytest.mark.parametrize("model", ["text-embedding-3-small", "text-embedding-ada-002", "one-of-tomorrow"])
def test_the_limits_hold_for_every_model(model: str) -> None:
    """2,048 inputs, 8,192 tokens each, 300,000 in all."""
    limit = OPENAI.batch_limit(call(model), settings("openai", BASE))
    assert limit == BatchLimit(max_items=2_048, max_item_tokens=8_192, max_tokens=300_000)


def test_models_are_filled_in_from_the_table() -> None:
    """OpenAI's list has neither kind nor dimensions; added fields are marked."""
    entries = [
        {"id": "text-embedding-3-large", "object": "model", "created": 1705953180, "owned_by": "system"},
        {"id": "gpt-4o-mini", "object": "model", "created": 1721172741, "shutdown_date": "2026-10-23"},
    ]
    embedding, chat = page("openai", {"object": "list", "data": entries}, settings("openai", BASE)).models
    assert (embedding.kind, embedding.dimensions, embedding.context_length) == ("embedding", 3_072, 8_192)
    assert set(embedding.known) == {"kind", "dimensions", "context_length", "prices"}
    # What OpenAI says itself stays, and is not called known.
    assert (chat.kind, chat.shutdown, chat.max_output_tokens) == ("chat", "2026-10-23", 16_384)
    assert chat.prices == Prices(input=0.15, output=0.6, cached_input=0.075)
    assert {"kind", "prices"} <= set(chat.known)
    assert "shutdown" not in chat.known


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Please try again in 644ms.", 0.644),
        ("Please try again in 18.642s.", 18.642),
        ("Please try again in 6m0s.", 360.0),
        ("Please try again in 1m30.951s. Visit the page.", 90.951),
        ("Please try again in 2h.", 7_200.0),
        ("try again in 0s", None),
        ("try again in a while", None),
        ("", None),
    ],
)
def test_retry_after_is_read_from_the_message(text: str, seconds: float | None) -> None:
    """As a duration of Go."""
    result = stated_wait(text)
    assert result == (None if seconds is None else pytest.approx(seconds))


def test_limits_in_a_message() -> None:
    """With commas; 0 and numbers of thirty digits are ignored."""
    where = settings("openai", BASE)
    body = {"error": {"message": "Request too large for m: Limit 30,000, Requested 40,000.", "code": None}}
    assert OPENAI.classify_error(failure(429, body), where).limit == BatchLimit(max_tokens=30_000)
    for number in ("0", "9" * 30):
        body["error"]["message"] = f"Request too large for m: Limit {number}, Requested 5"
        verdict = OPENAI.classify_error(failure(429, body), where)
        assert (verdict.kind, verdict.limit) == (VerdictKind.BATCH_TOO_LARGE, None)
