"""Mistral's plugin: what it sends, what it reads, what it knows."""

from __future__ import annotations

from typing import Any

import pytest

from llmopt import CatalogCall, HttpResponse, Prices, ProviderEntry
from tests.plugins.helpers import KEY, call, hooks, page, settings

BASE = "https://api.mistral.ai/v1"
MISTRAL = hooks("mistral")
HERE = settings("mistral", BASE)
SPEC_KEYS = {"model", "input", "output_dimension", "output_dtype", "encoding_format", "metadata"}


def card(
    name: str, own: str | None = None, aliases: tuple[str, ...] = (), **more: object
) -> dict[str, object]:
    able = {"completion_chat": "embed" not in name, "completion_fim": False}
    fixed = {"object": "model", "created": 1, "owned_by": "mistralai", "max_context_length": 8192}
    return {"id": name, "name": own, "aliases": list(aliases), "capabilities": able, **fixed, **more}


def test_the_profile() -> None:
    """It also accepts the key variable of the `llm` tool."""
    profile = MISTRAL.provider_profile(ProviderEntry(name="mistral"))
    assert profile.base_url == BASE
    assert profile.key_env == ("MISTRAL_API_KEY", "LLM_MISTRAL_KEY")


def test_a_request_has_only_keys_that_mistral_accepts() -> None:
    """Any other key is a 422."""
    request = MISTRAL.build_request(call(dimensions=512, input_type="query"), HERE)
    assert request.json == {
        "model": "m",
        "input": ("one", "two"),
        "encoding_format": "base64",
        "output_dimension": 512,
    }
    assert request.json.keys() <= SPEC_KEYS
    assert (request.path, request.headers) == ("/embeddings", {"authorization": f"Bearer {KEY}"})


@pytest.mark.parametrize(
    ("dtype", "encoding"), [("float", "base64"), ("int8", "float"), ("ubinary", "float")]
)
def test_other_dtypes_are_requested_as_lists(dtype: str, encoding: str) -> None:
    """Their base64 has bytes, which would be read as float32."""
    body = MISTRAL.build_request(call(extra={"output_dtype": dtype}), HERE).json
    assert (body["encoding_format"], body["output_dtype"]) == (encoding, dtype)


def test_the_model_list_has_the_common_path() -> None:
    """And one page."""
    assert MISTRAL.build_request(CatalogCall(), HERE).path == "/models"


@pytest.mark.parametrize("model", ["mistral-embed", "codestral-embed-2505", "another"])
def test_the_limits_are_below_all_observed_ones(model: str) -> None:
    result = MISTRAL.batch_limit(call(model), HERE)
    assert (result.max_items, result.max_item_tokens, result.max_tokens) == (128, 8_192, 16_000)
    assert result.guesses == ("max_items", "max_tokens")


def test_one_model_for_all_its_aliases() -> None:
    """Under its own name as the id, at the position of its first card."""
    cards = [
        card("mistral-small-latest", "mistral-small-2506", ("mistral-small-2506",)),
        card("mistral-embed", "mistral-embed-2312", ("mistral-embed-2312",)),
        card("mistral-embed-2312", "mistral-embed-2312", ("mistral-embed",)),
        card("mistral-small-2506", "mistral-small-2506", ("mistral-small-latest",), deprecation="2026-12-31"),
    ]
    small, embed = page("mistral", {"object": "list", "data": cards}, HERE).models
    assert (small.id, small.aliases, small.kind) == ("mistral-small-2506", ("mistral-small-latest",), "chat")
    assert small.deprecated == "2026-12-31"
    assert (embed.id, embed.aliases, embed.kind) == ("mistral-embed-2312", ("mistral-embed",), "embedding")
    assert (embed.dimensions, embed.context_length, embed.prices) == (1_024, 8_192, Prices(input=0.1))
    assert set(embed.known) == {"kind", "dimensions", "prices"}
    assert (small.inputs, small.outputs, small.context_length) == (("text",), ("text",), 8_192)
    assert set(small.known) == {"max_output_tokens", "prices"}


def test_cards_are_merged_by_a_name_or_one_alias() -> None:
    """Also three cards in a chain."""
    cards = [card("a"), card("c", aliases=("b",)), card("b", "a"), card("d")]
    first, last = page("mistral", cards, HERE).models
    assert (first.id, first.aliases) == ("a", ("b", "c"))
    assert last.id == "d"


def test_a_display_name_is_no_alias() -> None:
    """A request accepts ids only."""
    (model,) = page("mistral", [card("a", "The Model A"), card("b", "The Model A")], HERE).models
    assert (model.id, model.aliases) == ("a", ("b",))


def test_a_plain_list_is_read_too() -> None:
    """The example of Mistral's API description is one."""
    assert [model.id for model in page("mistral", [card("a"), card("b")], HERE).models] == ["a", "b"]


def test_an_odd_card_is_dropped_alone() -> None:
    odd = [
        card("a", aliases=(), capabilities=None),
        card("b") | {"aliases": "x"},
        {"id": "c"},
        None,
        {"id": 7},
    ]
    odd += [card("d") | {"aliases": [None, 7, "e"], "max_context_length": "8192"}]
    models = page("mistral", odd, HERE).models
    assert [model.id for model in models] == ["a", "b", "c", "d"]
    assert models[3].aliases == ("e",)
    assert models[3].context_length is None


def test_a_long_list_is_read_in_linear_time() -> None:
    """5,000 models with an alias each."""
    cards = [card(f"m-{number}-{form}", f"m-{number}-0") for form in (0, 1) for number in range(5_000)]
    assert len(page("mistral", cards, HERE).models) == 5_000


@pytest.mark.parametrize(
    ("headers", "requests", "tokens"),
    [
        ({}, None, None),
        (
            {"x-ratelimitbysize-limit-minute": "500", "x-ratelimitbysize-remaining-minute": "400"},
            None,
            (500, 400, 45),
        ),
        (
            {
                "ratelimitbysize-limit": "500",
                "ratelimitbysize-remaining": "400",
                "ratelimitbysize-reset": "7",
            },
            None,
            (500, 400, 7),
        ),
        (
            {
                "x-ratelimit-limit-tokens-minute": "5000000",
                "x-ratelimit-remaining-tokens-minute": "4999948",
                "x-ratelimit-tokens-query-cost": "52",
                "x-ratelimit-limit-req-minute": "720",
                "x-ratelimit-remaining-req-minute": "0",
            },
            (720, 0, 45),
            (5_000_000, 4_999_948, 45),
        ),
        ({"x-ratelimit-limit-tokens-minute": "-1", "x-ratelimit-remaining-req-minute": "many"}, None, None),
    ],
)
def test_three_generations_of_rate_headers(headers: dict[str, str], requests: Any, tokens: Any) -> None:
    """The newest has no reset: it is the next minute."""
    result = MISTRAL.rate_limits(HttpResponse(status=200, headers=headers, received=75.0), HERE)
    limits = [
        None if limit is None else (limit.limit, limit.remaining, limit.reset_s)
        for limit in (result.requests, result.tokens)
    ]
    assert limits == [requests, tokens]
