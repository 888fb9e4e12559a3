"""Exchanges with real servers, recorded by others: asked for alike, read rightly, judged rightly.

The recordings are next to the repository (../shared/samples/recorded); without them
these tests are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from llmopt import CatalogCall, CatalogPage, ChatCall, EmbedCall, Failure, HttpResponse, Settings, VerdictKind
from llmopt.testing.harness import encode_request
from tests.plugins.errors import REPOSITORY
from tests.plugins.helpers import hooks, settings

FOLDER = REPOSITORY.parent / "shared" / "samples" / "recorded"
PLUGIN_OF = {
    "api.openai.com": "openai",
    "api.mistral.ai": "mistral",
    "example-resource.openai.azure.com": "azure",
    # These servers speak the common dialect, as the local plugin does.
    "localhost": "local",
    "us.inference.heroku.com": "local",
    "api.cerebras.ai": "compatible",
    "api.groq.com": "compatible",
    "openrouter.ai": "compatible",
    "api.voyageai.com": "compatible",
}
ELSEWHERE = {
    # test_anthropic.py and test_google.py read them.
    "api.anthropic.com",
    "generativelanguage.googleapis.com",
    # No plugin here.
    "api.cohere.com",
    "bedrock-runtime.us-east-1.amazonaws.com",
}
ERRORS = {
    "groq-404-model": VerdictKind.NOT_FOUND,
    "openai-chat-400-unsupported-value": VerdictKind.BAD_REQUEST,
    "openai-embeddings-404-model": VerdictKind.NOT_FOUND,
    "voyage-embeddings-400-model": VerdictKind.NOT_FOUND,
}
SUFFIXES = ("/embeddings", "/chat/completions", "/models", "/available-models")
ASYMMETRIC = {"input_type", "truncation", "output_dimension", "output_dtype", "encoding_format"}


def exchanges() -> Iterator[Any]:
    for path in sorted(FOLDER.glob("*.json")):
        for number, exchange in enumerate(json.loads(path.read_text())["exchanges"]):
            yield pytest.param(path.stem, exchange, id=f"{path.stem}-{number}")


def host(exchange: Any) -> str:
    return urlsplit(exchange["request"]["url"]).hostname or ""


def settings_for(exchange: Any) -> tuple[str, Settings]:
    """The plugin, and settings as a user would configure them."""
    url = urlsplit(exchange["request"]["url"])
    plugin = PLUGIN_OF[host(exchange)]
    path = next(url.path.removesuffix(end) for end in SUFFIXES if url.path.endswith(end))
    options = dict(part.split("=", 1) for part in url.query.split("&") if part)
    version = {"api_version": options["api-version"]} if "api-version" in options else {}
    base = f"{url.scheme}://{url.netloc}{path}"
    return plugin, settings(plugin, base, auth="api-key" if plugin == "azure" else "bearer", **version)


def call_from(exchange: Any) -> Any:
    request = exchange["request"]
    body = request.get("body")
    if request["method"] == "GET":
        return CatalogCall()
    if "input" in body:
        return EmbedCall(model=body["model"], texts=tuple(body["input"]))
    extra = {key: value for key, value in body.items() if key not in ("model", "messages", "stream")}
    return ChatCall(
        model=body["model"], messages=tuple(body["messages"]), stream=body.get("stream", False), extra=extra
    )


def response_from(exchange: Any) -> HttpResponse:
    result = exchange["response"]
    text = result["body_text"] if "body_text" in result else json.dumps(result["body"])
    return HttpResponse(status=result["status"], headers=result["headers"], body=text.encode())


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the recordings are not there")
def test_every_recording_has_a_plugin_or_is_listed() -> None:
    result = {host(parameters.values[1]) for parameters in exchanges()}
    assert result <= PLUGIN_OF.keys() | ELSEWHERE


@pytest.mark.parametrize(("name", "exchange"), list(exchanges()))
def test_a_request_has_the_recorded_url_and_body(name: str, exchange: Any) -> None:
    if host(exchange) in ELSEWHERE:
        pytest.skip("no plugin here, or a format of its own")
    if name.startswith("catalogues"):
        pytest.skip("a gateway's own path")
    plugin, there = settings_for(exchange)
    request = hooks(plugin).build_request(call_from(exchange), there)
    assert encode_request(request, there).url == exchange["request"]["url"]
    body = json.loads(encode_request(request, there).body or b"null")
    recorded = exchange["request"].get("body")
    if plugin == "compatible" and "input" in recorded:
        body, recorded = ({k: v for k, v in each.items() if k not in ASYMMETRIC} for each in (body, recorded))
    assert body == {"stream": False, **recorded} if "messages" in recorded else body == recorded


@pytest.mark.parametrize(("name", "exchange"), list(exchanges()))
def test_a_recorded_response_is_parsed_or_classified(name: str, exchange: Any) -> None:
    """Vectors, lists and errors; another hook parses chats."""
    if host(exchange) in ELSEWHERE:
        pytest.skip("no plugin here, or a format of its own")
    plugin, there = settings_for(exchange)
    call, answer = call_from(exchange), response_from(exchange)
    if answer.status >= 400:
        failure = Failure.from_response(answer, operation=call.operation, model=call.model)
        verdict = hooks(plugin).classify_error(failure, there)
        assert verdict.kind is ERRORS[name]
        assert verdict.message
        return
    if isinstance(call, ChatCall):
        pytest.skip("a chat")
    if isinstance(call, CatalogCall):
        page = hooks(plugin).parse_catalog(answer, there)
        assert isinstance(page, CatalogPage)
        entries = answer.json if isinstance(answer.json, list) else answer.json["data"]
        assert [model.id for model in page.models] == [each.get("id") or each["model_id"] for each in entries]
        return
    rows = hooks(plugin).parse_embeddings(call, answer, there)
    assert not isinstance(rows, Failure)
    assert rows.vectors.shape == (len(call.texts), 1536)
    np.testing.assert_allclose(np.linalg.norm(rows.vectors, axis=1), 1.0, atol=1e-5)
    assert rows.usage is not None
    assert rows.usage.prompt_tokens == answer.json["usage"]["prompt_tokens"]
