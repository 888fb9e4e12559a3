"""The local plugin: flavours, shapes of answers and lists, limits that servers tell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmopt import (
    BatchLimit,
    CatalogCall,
    ChatCall,
    Failure,
    InvalidResponse,
    ProviderEntry,
    Settings,
    VerdictKind,
)
from llmopt.testing.harness import encode_request
from tests.plugins.helpers import answer, call, failure, hooks, page, rows, settings

LOCAL = hooks("local")
HOST = "http://127.0.0.1:8000"


def at(base: str = HOST, **options: Any) -> Settings:
    return settings("local", base, key=None, **options)


def request_of(where: Settings, asked: Any = None) -> tuple[str, Any]:
    """Path and body of a request."""
    request = LOCAL.build_request(asked or call(), where)
    return encode_request(request, where).url, request.json


# What is request_of.


@pytest.mark.parametrize("base", [HOST, f"{HOST}/v1", "https://gw.example/team/llm/v1"])
def test_the_common_dialect_keeps_the_base_url(base: str) -> None:
    """Only the user knows the paths of an unknown server."""
    where = at(base)
    assert request_of(where) == (f"{base}/embeddings", {"model": "m", "input": ("one", "two")})
    assert request_of(where, CatalogCall())[0] == f"{base}/models"
    assert request_of(at(base, flavour="openai-compatible"))[0] == f"{base}/embeddings"


@pytest.mark.parametrize("base", [HOST, f"{HOST}/v1", f"{HOST}/api"])
@pytest.mark.parametrize(
    ("flavour", "embed", "models", "chat"),
    [
        ("tei", "/embed", "/info", None),
        ("ollama", "/api/embed", "/api/tags", "/api/chat"),
        ("vllm", "/v1/embeddings", "/v1/models", "/v1/chat/completions"),
        ("llamacpp", "/v1/embeddings", "/v1/models", "/v1/chat/completions"),
        ("lmstudio", "/v1/embeddings", "/api/v0/models", "/v1/chat/completions"),
    ],
)
def test_a_flavour_finds_its_paths_from_any_base_url(
    base: str, flavour: str, embed: str, models: str, chat: str | None
) -> None:
    """With /v1 or without."""
    where = at(base, flavour=flavour)
    assert request_of(where)[0] == f"{HOST}{embed}"
    assert request_of(where, CatalogCall())[0] == f"{HOST}{models}"
    if chat is not None:
        assert request_of(where, ChatCall(model="m"))[0] == f"{HOST}{chat}"


def test_infinity_paths_have_no_v1() -> None:
    """Unless the server has such a prefix, which base_url then contains."""
    assert request_of(at(flavour="infinity"))[0] == f"{HOST}/embeddings"
    assert request_of(at(f"{HOST}/v1", flavour="infinity"), CatalogCall())[0] == f"{HOST}/v1/models"


@pytest.mark.parametrize("base", ["http://v1", "http://api:8000", "https://x.example/v1"])
def test_a_host_named_v1_stays(base: str) -> None:
    """Only a path is removed."""
    url, _ = request_of(at(base, flavour="tei"))
    assert url == f"{base.removesuffix('/v1') if base.count('/') > 2 else base}/embed"


def test_tei_is_told_not_to_truncate() -> None:
    """By default it truncates silently. The input type selects a prompt."""
    asked = call(dimensions=128, input_type="query", extra={"normalize": False})
    assert request_of(at(flavour="tei"), asked)[1] == {
        "inputs": ("one", "two"),
        "truncate": False,
        "dimensions": 128,
        "prompt_name": "query",
        "normalize": False,
    }
    assert request_of(at(flavour="tei", truncate=True))[1]["truncate"] is True
    assert request_of(at(flavour="tei"), call(extra={"truncate": True}))[1]["truncate"] is True


def test_ollama_is_told_not_to_truncate() -> None:
    assert request_of(at(flavour="ollama"), call(dimensions=128, extra={"keep_alive": "1h"}))[1] == {
        "model": "m",
        "input": ("one", "two"),
        "truncate": False,
        "dimensions": 128,
        "keep_alive": "1h",
    }
    assert request_of(at(flavour="ollama", truncate=True))[1]["truncate"] is True


@pytest.mark.parametrize(
    ("flavour", "asks"), [("vllm", True), ("llamacpp", True), ("infinity", True), ("lmstudio", False)]
)
def test_base64_is_requested_from_servers_that_have_it(flavour: str, asks: bool) -> None:
    """It needs a quarter of the bytes; an unknown server may not have it."""
    assert ("encoding_format" in request_of(at(flavour=flavour))[1]) is asks


def test_vllm_truncates_if_configured() -> None:
    assert request_of(at(flavour="vllm", truncate=True))[1]["truncate_prompt_tokens"] == -1
    assert "truncate_prompt_tokens" not in request_of(at(flavour="vllm"))[1]


def test_a_configured_key_is_sent() -> None:
    """In native requests too."""
    for flavour in ("tei", "ollama", "vllm"):
        where = settings("local", HOST, flavour=flavour, headers={"x-a": "b"})
        for asked in (call(), CatalogCall()):
            headers = LOCAL.build_request(asked, where).headers
            assert headers == {"authorization": "Bearer test-key-1", "x-a": "b"}


# What is answered.


def test_ollama_vectors() -> None:
    """In the order of the texts, with usage."""
    result = rows(
        "local", {"model": "m:latest", "embeddings": [[1, 0], [0, 2]], "prompt_eval_count": 7}, at()
    )
    np.testing.assert_array_equal(result.vectors, np.array([[1, 0], [0, 2]], dtype=np.float32))
    assert result.indices is None
    assert result.model == "m:latest"
    assert result.usage is not None
    assert result.usage.prompt_tokens == 7


@pytest.mark.parametrize("count", [None, -1, "7", 10**13, 1.5, True])
def test_an_implausible_count_is_ignored(count: object) -> None:
    """The vectors are still valid."""
    result = rows("local", {"embeddings": [[1, 0]], "prompt_eval_count": count}, at())
    assert result.usage is None


def test_tei_plain_lists() -> None:
    """They have neither index nor usage."""
    result = rows("local", [[0.5, 0.25], [1, 2]], at())
    assert result.vectors.dtype == np.float32
    assert result.vectors.tolist() == [[0.5, 0.25], [1.0, 2.0]]
    assert result.usage is None


def test_llamacpp_nested_lists() -> None:
    """Of its /embeddings without /v1, in any order."""
    result = rows("local", [{"index": 1, "embedding": [[3, 4]]}, {"index": 0, "embedding": [[1, 2]]}], at())
    assert result.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_common_shape_with_any_flavour() -> None:
    value = {"data": [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": "AAAAQA=="}], "model": "m"}
    result = rows("local", value, at(flavour="tei"))
    assert result.vectors.tolist() == [[1.0], [2.0]]
    assert result.indices is not None
    assert result.indices.tolist() == [1, 0]


@pytest.mark.parametrize(
    "value",
    [
        b"[",
        b"[1, 2]",
        b'[{"index": 0, "embedding": [[1], [2]]}]',
        b'[{"index": 1, "embedding": [[1]]}]',
        b'[{"embedding": [[1]]}]',
        b"[[1, 2], [1]]",
        b"[null]",
        b'[["a"]]',
        b'{"embeddings": 7}',
        b'{"embeddings": [[1], null]}',
        b'{"embeddings": [[1, [2]]]}',
        b'{"model": "\\"embeddings\\""',
        b"",
        b"null",
    ],
)
def test_a_wrong_response_is_invalid(value: bytes) -> None:
    """It never shifts a row or raises another exception."""
    with pytest.raises(InvalidResponse):
        LOCAL.parse_embeddings(call(), answer(value), at())


@pytest.mark.parametrize(
    "value", [{"error": "it failed"}, {"embeddings": [], "error": "x"}, {"error": {"message": "it failed"}}]
)
def test_an_error_with_status_200_is_a_failure(value: object) -> None:
    assert isinstance(LOCAL.parse_embeddings(call(), answer(value), at()), Failure)


# Lists.


def test_tei_has_one_model() -> None:
    """With the name that it is served under."""
    info = {
        "model_id": "BAAI/bge-small-en-v1.5",
        "served_model_name": "bge",
        "model_type": {"embedding": {"pooling": "cls"}},
        "max_input_length": 512,
    }
    (model,) = page("local", info, at()).models
    assert (model.id, model.name, model.kind) == ("bge", "BAAI/bge-small-en-v1.5", "embedding")
    assert (model.context_length, model.dimensions, model.known) == (512, 384, ("dimensions",))
    (ranker,) = page("local", {"model_id": "x", "model_type": {"reranker": {}}}, at()).models
    assert (ranker.id, ranker.kind) == ("x", "rerank")


def test_ollama_tags() -> None:
    """Recent versions have more data than older ones, for which the table helps."""
    tags = {
        "models": [
            {
                "name": "nomic-embed-text:latest",
                "details": {"context_length": 2_048, "embedding_length": 768},
                "capabilities": ["embedding"],
            },
            {
                "name": "qwen3:0.6b",
                "details": {"context_length": 40_960},
                "capabilities": ["completion", "tools"],
            },
            {"name": "nomic-embed-text:v1.5", "details": {"family": "nomic-bert"}},
        ]
    }
    nomic, qwen, old = page("local", tags, at()).models
    assert (nomic.kind, nomic.context_length, nomic.dimensions, nomic.known) == ("embedding", 2_048, 768, ())
    assert nomic.aliases == ("nomic-embed-text",)
    assert (qwen.kind, qwen.context_length) == ("chat", 40_960)
    assert (old.kind, old.dimensions, old.known) == (
        "embedding",
        768,
        ("kind", "dimensions", "context_length"),
    )


def test_additional_keys_in_the_common_list() -> None:
    """Of vLLM, llama.cpp, Infinity and LM Studio."""
    entries = [
        {"id": "a", "owned_by": "vllm", "max_model_len": 512},
        {"id": "b", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8_192, "n_embd": 576}},
        {"id": "c", "owned_by": "llamacpp", "meta": None},
        {"id": "d", "owned_by": "infinity", "capabilities": ["embed", "rerank"]},
        {"id": "e", "type": "embeddings", "max_context_length": 2_048, "loaded_context_length": 1_024},
        {"id": "f", "type": "vlm", "max_context_length": 2_048},
    ]
    a, b, c, d, e, f = page("local", {"data": entries}, at()).models
    assert a.context_length == 512
    assert (b.context_length, b.dimensions) == (8_192, 576)
    assert (c.context_length, c.dimensions) == (None, None)
    assert d.kind == "embedding"
    assert (e.kind, e.context_length) == ("embedding", 1_024)
    assert (f.kind, f.context_length) == ("chat", 2_048)


def test_llamacpp_merges_two_lists() -> None:
    """The ids are those of `data`."""
    value = {"models": [{"name": "x"}], "data": [{"id": "/models/x.gguf"}]}
    assert [model.id for model in page("local", value, at()).models] == ["/models/x.gguf"]


def test_an_unknown_path_of_lm_studio() -> None:
    """It answers 200 without a list."""
    result = LOCAL.parse_catalog(answer({"error": "Unexpected endpoint or method. (GET /models)"}), at())
    assert isinstance(result, Failure)
    verdict = LOCAL.classify_error(result, at())
    assert verdict.kind is VerdictKind.NOT_FOUND
    assert "/v1" in verdict.hint


# Limits.


@pytest.mark.parametrize(
    ("flavour", "limit"),
    [
        (None, BatchLimit(max_items=32, guesses=("max_items",))),
        ("tei", BatchLimit(max_items=32, max_bytes=2_000_000, guesses=("max_items",))),
        ("ollama", BatchLimit(max_items=32, guesses=("max_items",))),
        ("vllm", BatchLimit(max_items=256, guesses=("max_items",))),
        ("infinity", BatchLimit(max_items=256, guesses=("max_items",))),
        ("llamacpp", BatchLimit(max_items=32, guesses=("max_items",))),
        ("lmstudio", BatchLimit(max_items=32, guesses=("max_items",))),
    ],
)
def test_default_limits(flavour: str | None, limit: BatchLimit) -> None:
    """A size that every server accepts."""
    where = at() if flavour is None else at(flavour=flavour)
    assert LOCAL.batch_limit(call(), where) == limit


def test_no_item_limit_if_the_server_truncates() -> None:
    assert LOCAL.batch_limit(call(), at(flavour="tei", truncate=True)).truncates
    assert not LOCAL.batch_limit(call(), at(flavour="llamacpp", truncate=True)).truncates
    assert LOCAL.batch_limit(call(extra={"truncate": True}), at(flavour="ollama")).truncates


def test_the_in_process_engine_has_large_batches() -> None:
    limit = LOCAL.batch_limit(call("default"), at(""))
    assert (limit.max_items, limit.max_item_tokens) == (1_024, None)
    assert LOCAL.batch_limit(call("minilm"), at("")).truncates
    assert LOCAL.limits_request(call("default"), at("")) is None


@pytest.mark.parametrize(
    ("flavour", "url"),
    [
        ("tei", f"{HOST}/info"),
        ("vllm", f"{HOST}/v1/models"),
        ("llamacpp", f"{HOST}/props"),
        ("ollama", None),
        ("infinity", None),
        ("lmstudio", None),
        ("openai-compatible", None),
    ],
)
def test_limits_are_requested_by_flavour(flavour: str, url: str | None) -> None:
    """Without a flavour there is no such request."""
    where = at(f"{HOST}/v1", flavour=flavour)
    request = LOCAL.limits_request(call(), where)
    assert (None if request is None else encode_request(request, where).url) == url
    assert LOCAL.limits_request(call(), at()) is None


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (
            {"max_client_batch_size": 64, "max_concurrent_requests": 512, "max_input_length": 512},
            BatchLimit(max_items=64, max_item_tokens=512),
        ),
        ({"max_client_batch_size": 64, "max_concurrent_requests": 16}, BatchLimit(max_items=16)),
        ({"max_input_length": 512}, BatchLimit(max_item_tokens=512)),
        ({"max_client_batch_size": 0, "max_input_length": "512"}, BatchLimit()),
        (
            {"data": [{"id": "m", "max_model_len": 512}, {"id": "n", "max_model_len": 9}]},
            BatchLimit(max_item_tokens=512),
        ),
        ({"data": [{"id": "other", "max_model_len": 512}]}, BatchLimit(max_item_tokens=512)),
        ({"data": [{"id": "n", "max_model_len": 1}, {"id": "o", "max_model_len": 2}]}, BatchLimit()),
        ({"data": [None, {"id": "m"}]}, BatchLimit()),
        (
            {"default_generation_settings": {"n_ctx": 4_096}, "total_slots": 4},
            BatchLimit(max_item_tokens=4_096),
        ),
        ({"default_generation_settings": None}, BatchLimit()),
        ([], BatchLimit()),
        (b"<html>", BatchLimit()),
        (b"", BatchLimit()),
    ],
)
def test_limits_of_servers(value: object, limit: BatchLimit) -> None:
    """TEI's /info, vLLM's list, llama.cpp's /props; invalid data gives no limits."""
    assert LOCAL.parse_limits(call("m"), answer(value), at()) == limit


# Profile and hints.


def profile(base: str | None = None, **options: str) -> Any:
    return LOCAL.provider_profile(ProviderEntry(name="local", base_url=base, options=options))


def test_a_flavour_has_a_default_base_url() -> None:
    """Each server has its usual port."""
    assert profile(flavour="ollama").base_url == "http://127.0.0.1:11434"
    assert profile(flavour="tei").base_url == "http://127.0.0.1:3000"
    assert not profile(flavour="ollama").in_process
    assert profile().in_process
    assert profile(flavour="openai-compatible").in_process


def test_retries_of_a_local_and_a_remote_server() -> None:
    """One on loopback, four elsewhere; neither needs a key."""
    assert (profile(HOST).max_retries, profile("https://far.example").max_retries) == (1, 4)
    assert not profile(HOST).key_required


def test_the_error_of_an_unknown_path_has_a_hint() -> None:
    """The most frequent mistake is a base URL without /v1."""
    verdict = LOCAL.classify_error(failure(404, b"404 page not found"), at())
    assert "most servers want /v1" in verdict.hint
    model = LOCAL.classify_error(failure(404, {"error": "model 'x' not found"}), at())
    assert model.hint == ""


def test_the_error_of_a_compressed_request_names_the_option() -> None:
    """Ollama reads the gzip as JSON."""
    body = {"error": r"invalid character '\x1f' looking for beginning of value"}
    assert "compress_requests = false" in LOCAL.classify_error(failure(400, body), at()).hint
