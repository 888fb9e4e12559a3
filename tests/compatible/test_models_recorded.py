"""Real lists of hundreds and thousands of models. They are not part of the repository."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmopt import CatalogPage, HttpResponse, Prices, compatible
from llmopt.values.catalog import decode_models, encode_models

SAMPLES = Path(__file__).parents[3] / "shared" / "samples" / "catalogues"
RECORDED = SAMPLES.parent / "recorded"
_MOST = 50 << 20


def sample(name: str, folder: Path = SAMPLES) -> bytes:
    path = folder / name
    if not path.is_file():
        pytest.skip("the sample lists are not here")
    return path.read_bytes()


def listed(entries: list[Any]) -> bytes:
    return json.dumps({"object": "list", "data": entries}).encode()


def models_dev() -> bytes:
    providers = json.loads(sample("models-dev-providers.json")).values()
    return listed([model for provider in providers for model in provider["models"].values()])


def litellm() -> bytes:
    models = json.loads(sample("litellm-model-prices.json"))
    return listed([{"id": name, **facts} for name, facts in models.items() if name != "sample_spec"])


def page(body: bytes) -> CatalogPage:
    found = compatible.parse_catalog(HttpResponse(status=200, body=body), "here")
    assert isinstance(found, CatalogPage)
    return found


def test_openrouter() -> None:
    """Every model has limits, modalities and, unless it varies, prices."""
    found = page(sample("openrouter-models-response.json"))
    assert (len(found.models), found.dropped, found.next_cursor) == (364, 0, None)
    assert all(model.context_length and model.inputs and model.name for model in found.models)
    assert Counter(model.kind for model in found.models) == {"chat": 364}
    unpriced = {model.id for model in found.models if model.prices is None}
    assert unpriced == {"openrouter/pareto-code", "openrouter/bodybuilder", "openrouter/auto"}
    free = [model.prices for model in found.models if model.id.endswith(":free")]
    assert free == [Prices(input=0.0, output=0.0)] * len(free)
    assert sum(model.shutdown is not None for model in found.models) == 11
    opus = next(model for model in found.models if model.id == "anthropic/claude-opus-4.7-fast")
    assert opus.prices == Prices(input=30.0, output=150.0, cached_input=3.0, cache_write=37.5)
    assert opus.max_output_tokens == 128_000


@pytest.mark.parametrize(("make", "count"), [(models_dev, 5_276), (litellm, 4_552)])
def test_thousands(make: Any, count: int) -> None:
    """All are read, in little memory, and come back from bytes."""
    body = make()
    tracemalloc.start()
    try:
        found = page(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(found.models), found.dropped) == (count, 0)
    assert peak < _MOST
    assert decode_models(encode_models(found.models), provider="here") == found.models
    assert json.loads(body)["data"][7] == found.models[7].raw


def test_recorded_lists() -> None:
    """The common shape, and a gateway's bare list with dates and types."""
    exchanges = json.loads(sample("catalogues-openai-shape-and-bare-list.json", RECORDED))["exchanges"]
    plain, gateway = (page(json.dumps(each["response"]["body"]).encode()).models for each in exchanges)
    assert [model.id for model in plain] == ["gemma-4-31b", "gpt-oss-120b", "zai-glm-4.7"]
    assert {model.created for model in plain} == {None}
    kinds = Counter(model.kind for model in gateway)
    assert kinds == {"chat": len(gateway) - 5, "embedding": 2, "rerank": 2, "image": 1}
    haiku = next(model for model in gateway if model.id == "claude-3-5-haiku")
    assert (haiku.deprecated, haiku.shutdown) == ("2026-05-12T00:00:00Z", "2026-06-12T00:00:00Z")
    assert haiku.replacement == "claude-4-5-haiku"


def test_a_hundred_thousand_models_and_a_long_description() -> None:
    """A list is as large as it is; what nobody looks at is not made."""
    long = "x" * (10 << 20)
    found = page(
        listed([{"id": f"m{number}"} for number in range(100_000)] + [{"id": "long", "description": long}])
    )
    assert len(found.models) == 100_001
    assert found.models[-1].raw["description"] == long
