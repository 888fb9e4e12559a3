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
from llmopt.engine.request import encode_request
from tests.plugins.helpers import answer, call, failure, hooks, page, rows, settings

LOCAL = hooks("local")
HOST = "http://127.0.0.1:8000"


def here(base: str = HOST, **options: Any) -> Settings:
    return settings("local", base, key=None, **options)


def sent(where: Settings, asked: Any = None) -> tuple[str, Any]:
    """Where a request goes, and its body."""
    request = LOCAL.build_request(asked or call(), where)
    return encode_request(request, where).url, request.json


# What is sent.


@pytest.mark.parametrize("base", [HOST, f"{HOST}/v1", "https://gw.example/team/llm/v1"])
def test_the_common_dialect_follows_the_base_url_as_it_stands(base: str) -> None:
    """Nobody knows an unknown server's paths better than its user."""
    where = here(base)
    assert sent(where) == (f"{base}/embeddings", {"model": "m", "input": ("one", "two")})
    assert sent(where, CatalogCall())[0] == f"{base}/models"
    assert sent(here(base, flavour="openai-compatible"))[0] == f"{base}/embeddings"


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
    where = here(base, flavour=flavour)
    assert sent(where)[0] == f"{HOST}{embed}"
    assert sent(where, CatalogCall())[0] == f"{HOST}{models}"
    if chat is not None:
        assert sent(where, ChatCall(model="m"))[0] == f"{HOST}{chat}"


def test_infinity_has_no_v1() -> None:
    """Unless it was started with such a prefix, which then stands in base_url."""
    assert sent(here(flavour="infinity"))[0] == f"{HOST}/embeddings"
    assert sent(here(f"{HOST}/v1", flavour="infinity"), CatalogCall())[0] == f"{HOST}/v1/models"


@pytest.mark.parametrize("base", ["http://v1", "http://api:8000", "https://x.example/v1"])
def test_a_host_called_v1_is_a_host(base: str) -> None:
    """Only a path is cut off."""
    url, _ = sent(here(base, flavour="tei"))
    assert url == f"{base.removesuffix('/v1') if base.count('/') > 2 else base}/embed"


def test_tei_is_told_not_to_cut() -> None:
    """Its own default is to cut silently. What a text is for selects a prompt."""
    asked = call(dimensions=128, input_type="query", extra={"normalize": False})
    assert sent(here(flavour="tei"), asked)[1] == {
        "inputs": ("one", "two"),
        "truncate": False,
        "dimensions": 128,
        "prompt_name": "query",
        "normalize": False,
    }
    assert sent(here(flavour="tei", truncate=True))[1]["truncate"] is True
    assert sent(here(flavour="tei"), call(extra={"truncate": True}))[1]["truncate"] is True


def test_ollama_is_told_not_to_cut() -> None:
    """Likewise."""
    assert sent(here(flavour="ollama"), call(dimensions=128, extra={"keep_alive": "1h"}))[1] == {
        "model": "m",
        "input": ("one", "two"),
        "truncate": False,
        "dimensions": 128,
        "keep_alive": "1h",
    }
    assert sent(here(flavour="ollama", truncate=True))[1]["truncate"] is True


@pytest.mark.parametrize(
    ("flavour", "asks"), [("vllm", True), ("llamacpp", True), ("infinity", True), ("lmstudio", False)]
)
def test_base64_is_asked_for_where_it_is_known(flavour: str, asks: bool) -> None:
    """A quarter of the bytes; of an unknown server it is not asked."""
    assert ("encoding_format" in sent(here(flavour=flavour))[1]) is asks


def test_vllm_cuts_on_request() -> None:
    """By a key of its own."""
    assert sent(here(flavour="vllm", truncate=True))[1]["truncate_prompt_tokens"] == -1
    assert "truncate_prompt_tokens" not in sent(here(flavour="vllm"))[1]


def test_a_key_is_sent_where_there_is_one() -> None:
    """Native requests too."""
    for flavour in ("tei", "ollama", "vllm"):
        where = settings("local", HOST, flavour=flavour, headers={"x-a": "b"})
        for asked in (call(), CatalogCall()):
            headers = LOCAL.build_request(asked, where).headers
            assert headers == {"authorization": "Bearer test-key-1", "x-a": "b"}


# What is answered.


def test_ollamas_vectors() -> None:
    """In the order of the texts, with the tokens read."""
    found = rows(
        "local", {"model": "m:latest", "embeddings": [[1, 0], [0, 2]], "prompt_eval_count": 7}, here()
    )
    np.testing.assert_array_equal(found.vectors, np.array([[1, 0], [0, 2]], dtype=np.float32))
    assert found.indices is None
    assert found.model == "m:latest"
    assert found.usage is not None
    assert found.usage.prompt_tokens == 7


@pytest.mark.parametrize("count", [None, -1, "7", 10**13, 1.5, True])
def test_a_count_that_cannot_be_is_none(count: object) -> None:
    """The vectors are good all the same."""
    found = rows("local", {"embeddings": [[1, 0]], "prompt_eval_count": count}, here())
    assert found.usage is None


def test_teis_bare_lists() -> None:
    """No index, no usage."""
    found = rows("local", [[0.5, 0.25], [1, 2]], here())
    assert found.vectors.dtype == np.float32
    assert found.vectors.tolist() == [[0.5, 0.25], [1.0, 2.0]]
    assert found.usage is None


def test_llamas_nested_lists() -> None:
    """What its /embeddings without /v1 answers, in any order."""
    found = rows("local", [{"index": 1, "embedding": [[3, 4]]}, {"index": 0, "embedding": [[1, 2]]}], here())
    assert found.vectors.tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_common_shape() -> None:
    """Whatever the flavour."""
    value = {"data": [{"index": 1, "embedding": [1]}, {"index": 0, "embedding": "AAAAQA=="}], "model": "m"}
    found = rows("local", value, here(flavour="tei"))
    assert found.vectors.tolist() == [[1.0], [2.0]]
    assert found.indices is not None
    assert found.indices.tolist() == [1, 0]


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
def test_wrong_answers_are_invalid_and_nothing_else(value: bytes) -> None:
    """Never a shifted row, never another exception."""
    with pytest.raises(InvalidResponse):
        LOCAL.parse_embeddings(call(), answer(value), here())


@pytest.mark.parametrize(
    "value", [{"error": "it failed"}, {"embeddings": [], "error": "x"}, {"error": {"message": "it failed"}}]
)
def test_a_failure_under_200_is_a_failure(value: object) -> None:
    """It goes to classify_error."""
    assert isinstance(LOCAL.parse_embeddings(call(), answer(value), here()), Failure)


# Lists.


def test_tei_has_one_model() -> None:
    """By the name that it is served under."""
    info = {
        "model_id": "BAAI/bge-small-en-v1.5",
        "served_model_name": "bge",
        "model_type": {"embedding": {"pooling": "cls"}},
        "max_input_length": 512,
    }
    (model,) = page("local", info, here()).models
    assert (model.id, model.name, model.kind) == ("bge", "BAAI/bge-small-en-v1.5", "embedding")
    assert (model.context_length, model.dimensions, model.known) == (512, 384, ("dimensions",))
    (ranker,) = page("local", {"model_id": "x", "model_type": {"reranker": {}}}, here()).models
    assert (ranker.id, ranker.kind) == ("x", "rerank")


def test_ollamas_tags() -> None:
    """Recent builds tell more than older ones, for which the table helps."""
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
    nomic, qwen, old = page("local", tags, here()).models
    assert (nomic.kind, nomic.context_length, nomic.dimensions, nomic.known) == ("embedding", 2_048, 768, ())
    assert nomic.aliases == ("nomic-embed-text",)
    assert (qwen.kind, qwen.context_length) == ("chat", 40_960)
    assert (old.kind, old.dimensions, old.known) == (
        "embedding",
        768,
        ("kind", "dimensions", "context_length"),
    )


def test_what_servers_add_to_the_common_list() -> None:
    """vLLM, llama.cpp, Infinity and LM Studio."""
    entries = [
        {"id": "a", "owned_by": "vllm", "max_model_len": 512},
        {"id": "b", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8_192, "n_embd": 576}},
        {"id": "c", "owned_by": "llamacpp", "meta": None},
        {"id": "d", "owned_by": "infinity", "capabilities": ["embed", "rerank"]},
        {"id": "e", "type": "embeddings", "max_context_length": 2_048, "loaded_context_length": 1_024},
        {"id": "f", "type": "vlm", "max_context_length": 2_048},
    ]
    a, b, c, d, e, f = page("local", {"data": entries}, here()).models
    assert a.context_length == 512
    assert (b.context_length, b.dimensions) == (8_192, 576)
    assert (c.context_length, c.dimensions) == (None, None)
    assert d.kind == "embedding"
    assert (e.kind, e.context_length) == ("embedding", 1_024)
    assert (f.kind, f.context_length) == ("chat", 2_048)


def test_llamas_two_lists_are_one() -> None:
    """The ids are those of `data`."""
    value = {"models": [{"name": "x"}], "data": [{"id": "/models/x.gguf"}]}
    assert [model.id for model in page("local", value, here()).models] == ["/models/x.gguf"]


def test_an_unknown_path_of_lm_studio() -> None:
    """Status 200, and no list."""
    found = LOCAL.parse_catalog(answer({"error": "Unexpected endpoint or method. (GET /models)"}), here())
    assert isinstance(found, Failure)
    verdict = LOCAL.classify_error(found, here())
    assert verdict.kind is VerdictKind.NOT_FOUND
    assert "/v1" in verdict.hint


# Limits.


@pytest.mark.parametrize(
    ("flavour", "limit"),
    [
        (None, BatchLimit(max_items=32)),
        ("tei", BatchLimit(max_items=32, max_bytes=2_000_000)),
        ("ollama", BatchLimit(max_items=32)),
        ("vllm", BatchLimit(max_items=256)),
        ("infinity", BatchLimit(max_items=256)),
        ("llamacpp", BatchLimit(max_items=32)),
        ("lmstudio", BatchLimit(max_items=32)),
    ],
)
def test_limits_that_need_no_question(flavour: str | None, limit: BatchLimit) -> None:
    """A size that the server surely takes."""
    where = here() if flavour is None else here(flavour=flavour)
    assert LOCAL.batch_limit(call(), where) == limit


def test_a_server_that_cuts_is_believed() -> None:
    """A text over the limit is then its business."""
    assert LOCAL.batch_limit(call(), here(flavour="tei", truncate=True)).truncates
    assert not LOCAL.batch_limit(call(), here(flavour="llamacpp", truncate=True)).truncates
    assert LOCAL.batch_limit(call(extra={"truncate": True}), here(flavour="ollama")).truncates


def test_the_embedded_engine_takes_large_batches() -> None:
    """There is no network to lose them on."""
    limit = LOCAL.batch_limit(call("default"), here(""))
    assert (limit.max_items, limit.max_item_tokens) == (1_024, None)
    assert LOCAL.batch_limit(call("minilm"), here("")).truncates
    assert LOCAL.limits_request(call("default"), here("")) is None


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
def test_who_is_asked_for_limits(flavour: str, url: str | None) -> None:
    """Without a flavour nobody is: a request that nobody asked for surprises."""
    where = here(f"{HOST}/v1", flavour=flavour)
    request = LOCAL.limits_request(call(), where)
    assert (None if request is None else encode_request(request, where).url) == url
    assert LOCAL.limits_request(call(), here()) is None


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
def test_what_servers_tell(value: object, limit: BatchLimit) -> None:
    """TEI's /info, vLLM's list, llama.cpp's /props; nonsense tells nothing."""
    assert LOCAL.parse_limits(call("m"), answer(value), here()) == limit


# Profile and hints.


def profile(base: str | None = None, **options: str) -> Any:
    return LOCAL.provider_profile(ProviderEntry(name="local", base_url=base, options=options))


def test_a_flavour_alone_is_an_address() -> None:
    """Each server has its usual port."""
    assert profile(flavour="ollama").base_url == "http://127.0.0.1:11434"
    assert profile(flavour="tei").base_url == "http://127.0.0.1:3000"
    assert not profile(flavour="ollama").in_process
    assert profile().in_process
    assert profile(flavour="openai-compatible").in_process


def test_near_and_far() -> None:
    """A server next door gets one retry, a far one four; no key is needed for either."""
    assert (profile(HOST).max_retries, profile("https://far.example").max_retries) == (1, 4)
    assert not profile(HOST).key_required


def test_a_path_that_is_not_there_says_what_to_check() -> None:
    """The commonest mistake is a base URL without /v1."""
    verdict = LOCAL.classify_error(failure(404, b"404 page not found"), here())
    assert "most servers want /v1" in verdict.hint
    model = LOCAL.classify_error(failure(404, {"error": "model 'x' not found"}), here())
    assert model.hint == ""


def test_a_packed_request_says_what_to_set() -> None:
    """Ollama takes the gzip for JSON."""
    body = {"error": r"invalid character '\x1f' looking for beginning of value"}
    assert "compress_requests = false" in LOCAL.classify_error(failure(400, body), here()).hint
