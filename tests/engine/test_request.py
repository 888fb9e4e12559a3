"""Where a plugin's request may go, and what the engine learns from responses to compressed requests."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt.engine.request import CompressionSupport
from llmopt.errors import PluginContractError
from llmopt.testing.harness import encode_request
from llmopt.values.calls import Settings
from llmopt.values.http import HttpRequest


def url_of(path: str, base_url: str = "https://api.acme.test/v1") -> str:
    return encode_request(
        HttpRequest(method="POST", path=path), Settings(provider="acme", base_url=base_url)
    ).url


@pytest.mark.parametrize(
    "url", ["https://api.acme.test/v2/a?b=c", "HTTPS://API.acme.test/a", "https://api.acme.test:443/a"]
)
def test_an_absolute_url_of_the_endpoint_is_sent_unchanged(url: str) -> None:
    """An origin has several spellings."""
    assert url_of(url) == url


def test_a_path_is_appended_to_the_base_url() -> None:
    """A query may contain any URL."""
    assert url_of("models?from=https://evil.test") == "https://api.acme.test/v1/models?from=https://evil.test"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.test/v1",
        "http://api.acme.test/v1",
        "https://api.acme.test:8443/v1",
        "https://api.acme.test.evil.test/v1",
        "https://evil.test\\@api.acme.test/v1",
        "https://api.acme.test@evil.test/v1",
        "https://user:canary@api.acme.test/v1",
        "https://api.acme.test:99999/v1",
        "https:///v1",
        "ftp://api.acme.test/v1",
    ],
)
def test_an_absolute_url_of_another_origin_is_refused(url: str) -> None:
    """The key would go there. No part of the URL but its host is shown."""
    with pytest.raises(PluginContractError, match="acme") as caught:
        url_of(url)
    assert "canary" not in str(caught.value)
    assert "/v1" not in str(caught.value)


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("method", "body", "what"),
    [
        ("PUT", None, "built a 'PUT' request, not GET or POST"),
        ("get", None, "built a 'get' request, not GET or POST"),
        (["GET"], None, "built a ['GET'] request, not GET or POST"),
        ("POST", b"{}", "gave bytes as json, not the value that they encode"),
        (
            "POST",
            {"model": "m", "input": [{"text": "canary"}, {"text": object()}]},
            "JSON cannot express: json['input'][1]['text']: object cannot be expressed in JSON",
        ),
        ("POST", {"a": {"b": "half \ud800"}}, "cannot express: json['a']['b']: UnicodeEncodeError"),
        ("POST", {"a": {(1, 2): 3}}, "cannot express: json['a']: "),
        ("POST", {"a": CYCLE}, "cannot express: json['a'][0][0]"),
    ],
    ids=["method", "case", "list", "bytes", "object", "surrogate", "key", "cycle"],
)
def test_a_request_that_cannot_be_sent_is_the_plugins_error(method: Any, body: Any, what: str) -> None:
    """The message has the place of what cannot be encoded, and no other part of the body."""
    request = HttpRequest(method=method, path="/v1", json=body)
    with pytest.raises(PluginContractError, match="the plugin of 'acme'") as caught:
        encode_request(request, Settings(provider="acme", base_url="https://api.acme.test"))
    assert what in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("status", [400, 415, 422])
def test_a_refusal_of_compressed_bodies_only_switches_compression_off(status: int) -> None:
    """Whatever words it comes in; told once, though several requests were under way."""
    support = CompressionSupport()
    assert support.should_resend(status)
    assert support.should_resend(status)
    assert support.record_resend(status, 200)
    assert not support.record_resend(status, 200)
    assert not support.enabled


@pytest.mark.parametrize("status", [401, 403, 404, 408, 413, 429, 500, 503, 304])
def test_other_statuses_do_not_affect_compression(status: int) -> None:
    """They have policies of their own."""
    support = CompressionSupport()
    assert not support.should_resend(status)
    assert support.should_resend(400)


def test_a_request_refused_uncompressed_keeps_compression_on() -> None:
    """Nothing is concluded, so that the next refusal is looked at as well."""
    support = CompressionSupport()
    for _ in range(3):
        assert support.should_resend(400)
        assert not support.record_resend(400, 400)
    assert support.enabled


@pytest.mark.parametrize("plain", [401, 403, 408, 429, 500, 503])
@pytest.mark.parametrize("compressed", [400, 415, 422])
def test_unrelated_failures_keep_compression_on(compressed: int, plain: int) -> None:
    """A rate limit, a refused key, an outage in the moment of the second sending."""
    support = CompressionSupport()
    assert support.should_resend(compressed)
    assert not support.record_resend(compressed, plain)
    assert support.enabled


def test_a_body_read_only_uncompressed_switches_compression_off() -> None:
    """415 for how it came, 400 for what stands in it; a 400 that becomes another 4xx may have any cause."""
    assert CompressionSupport().record_resend(415, 400)
    assert not CompressionSupport().record_resend(400, 404)


def test_an_endpoint_that_accepted_compressed_bodies_is_trusted() -> None:
    """Eight times in a row; each body that is taken begins that anew."""
    support = CompressionSupport()
    assert not support.should_resend(200)
    assert [support.should_resend(400) for _ in range(5)] == [False] * 5
    assert not support.should_resend(200)
    assert [support.should_resend(422) for _ in range(9)] == [False] * 8 + [True]
    # Somebody else stands in front of it now.
    assert support.record_resend(422, 200)
    assert not support.enabled


def test_status_415_always_questions_compression() -> None:
    """415 can hardly mean anything else."""
    support = CompressionSupport()
    assert not support.should_resend(200)
    assert support.should_resend(415)


def test_requests_in_flight_when_compression_ends_are_sent_again() -> None:
    """Its refusal is no news, and is not believed either."""
    support = CompressionSupport()
    support.should_resend(200)
    assert support.should_resend(415)
    assert support.record_resend(415, 200)
    assert support.should_resend(400)
    assert not support.should_resend(200)
    assert support.should_resend(400)


def test_the_configured_query_is_sent_with_every_request() -> None:
    """It replaces a parameter of the plugin's, and is added to the URL of the next page of a list too."""
    settings = Settings(
        provider="acme", base_url="https://api.acme.test/v1", query={"api-version": "2", "key": "a&b"}
    )
    for path in ("/models?api-version=1&after=x", "https://api.acme.test/v1/models?key=old&after=x"):
        request = encode_request(HttpRequest(method="GET", path=path), settings)
        assert request.url == "https://api.acme.test/v1/models?after=x&api-version=2&key=a%26b"
