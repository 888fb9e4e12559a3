"""Parsing of OpenAI-compatible lists of models, entry by entry."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import CatalogPage, Failure, HttpResponse, InvalidResponse, Model, Prices, compatible
from llmopt.compatible import models as models_module
from llmopt.compatible.models import ListedModels
from llmopt.values.catalog import LazyJsonObject
from tests.support.scale import scaled


def parsed(body: bytes) -> CatalogPage:
    result = compatible.parse_catalog(HttpResponse(status=200, body=body), "here")
    assert isinstance(result, CatalogPage)
    return result


def page(*entries: object) -> CatalogPage:
    return parsed(json.dumps({"object": "list", "data": entries}).encode())


def one(**entry: object) -> Model:
    (model,) = page({"id": "m", **entry}).models
    return model


def test_an_entry_of_openrouter() -> None:
    """A price for one token becomes the exact price for a million."""
    model = one(
        name="Vendor: M",
        created=1_778_613_011,
        context_length=1_000_000,
        architecture={"modality": "text+image->text", "input_modalities": ["text", "image"], "output_modalities": ["text"]},
        pricing={"prompt": "0.00003", "completion": "0.00015", "input_cache_read": "0.000003", "input_cache_write": "0.0000375"},
        top_provider={"context_length": 1, "max_completion_tokens": 128_000},
        expiration_date="2026-06-01",
    )  # fmt: skip
    assert model == Model(
        id="m",
        provider="here",
        kind="chat",
        name="Vendor: M",
        context_length=1_000_000,
        max_output_tokens=128_000,
        inputs=("text", "image"),
        outputs=("text",),
        prices=Prices(input=30.0, output=150.0, cached_input=3.0, cache_write=37.5),
        created=1_778_613_011,
        shutdown="2026-06-01",
    )
    assert model.raw["pricing"]["prompt"] == "0.00003"


@pytest.mark.parametrize(
    ("text", "cost"),
    [
        ("0", 0.0),
        ("0.0000001", 0.1),
        ("1e-7", 0.1),
        ("0.00000015", 0.15),
        (".0001", 100.0),
        ("-1", None),
        ("-0.000001", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("", None),
        ("free", None),
        ("0.5", None),  # half a dollar for a token: for a million, rather
        ("0." + "0" * 60 + "1", None),
        (0.0000001, None),  # the unit of a number is unknown
        (3, None),
        (None, None),
        (["0"], None),
    ],
)
def test_prices_are_decimal_strings_for_one_token(text: object, cost: float | None) -> None:
    """Any other value is ignored."""
    result = one(pricing={"prompt": text, "completion": "0.000001"}).prices
    assert result == Prices(input=cost, output=1.0)
    assert one(pricing={"prompt": text}).prices == (None if cost is None else Prices(input=cost))


@pytest.mark.parametrize(
    "pricing", [None, [], "0.1", {}, {"prompt": "-1", "completion": "-1"}, {"request": "1"}]
)
def test_variable_or_absent_prices_are_unknown(pricing: object) -> None:
    assert one(pricing=pricing).prices is None


@pytest.mark.parametrize(
    ("entry", "kind"),
    [
        ({"type": "chat"}, "chat"),
        ({"type": "embedding"}, "embedding"),
        ({"type": ["text-to-score"]}, "rerank"),
        ({"type": ["text-to-image", "text-to-text"]}, "chat"),
        ({"type": "moderation"}, "moderation"),
        ({"type": "transcribe"}, "audio"),
        ({"type": "model"}, "unknown"),
        ({"type": {"a": 1}}, "unknown"),
        ({"type": [[], {}]}, "unknown"),
        ({"output_modalities": ["image"]}, "image"),
        ({"output_modalities": ["image", "text"]}, "chat"),
        ({"architecture": {"modality": "text->embedding"}}, "embedding"),
        ({"architecture": {"modality": "text+image->text"}}, "chat"),
        ({"architecture": {"modality": "text"}}, "unknown"),
        ({"architecture": "transformer"}, "unknown"),
        ({"type": "video"}, "other"),
    ],
)
def test_the_kind_of_a_model(entry: dict[str, Any], kind: str) -> None:
    """By type, then by output modality; the field known is empty."""
    model = one(**entry)
    assert (model.kind, model.known) == (kind, ())


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("text-embedding-3-small", "embedding"),
        ("BAAI/bge-reranker-v2-m3", "rerank"),
        ("Rerank-Embed", "rerank"),
        ("whisper-1", "audio"),
        ("tts-1-hd", "audio"),
        ("gpt-4o-mini-transcribe", "audio"),
        ("omni-moderation-latest", "moderation"),
        ("dall-e-3", "image"),
        ("potts-model", "unknown"),
        ("gpt-4o", "unknown"),
    ],
)
def test_a_kind_by_name_is_marked_as_known(name: str, kind: str) -> None:
    """It does not come from the provider."""
    (model,) = page({"id": name}).models
    assert (model.kind, model.known) == (kind, ("kind",) if kind != "unknown" else ())


def test_the_type_in_a_list_overrides_the_name() -> None:
    assert one(id="embedding-chat", type="chat").kind == "chat"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"max_model_len": 512}, {"context_length": 512}),
        ({"context_window": 8192, "max_completion_tokens": 448}, {"context_length": 8192, "max_output_tokens": 448}),
        ({"context_size": 4096, "max_output_length": 5}, {"context_length": 4096, "max_output_tokens": 5}),
        ({"context_length": 0, "max_context_length": 7}, {"context_length": 7}),
        ({"context_length": True, "created": -5}, {}),
        ({"context_length": "8192", "created": "yesterday", "max_output_tokens": 1.5}, {}),
        ({"deprecation_date": "2026-05-12T00:00:00Z", "eol_date": "2026-06-12", "replacement_model": "n"},
         {"deprecated": "2026-05-12T00:00:00Z", "shutdown": "2026-06-12", "replacement": "n"}),
        ({"deprecated": 1_788_824_437, "replaced_by": "n"}, {"deprecated": "2026-09-07", "replacement": "n"}),
        ({"deprecated": True, "shutdown_date": "soon", "deprecation": {"inference": 1}}, {}),
        ({"deprecated": 1 << 60, "eol_date": 0}, {}),
        ({"aliases": ["m", "n", 7, ""]}, {"aliases": ("n",)}),
        ({"aliases": "n"}, {}),
        ({"display_name": "M the model", "name": "m"}, {"name": "M the model"}),
        ({"name": "m"}, {}),
        ({"input_modalities": ["text", 5], "output_modalities": "text"}, {"inputs": ("text",)}),
        ({"top_provider": ["x"], "top_k": 3}, {}),
    ],
)  # fmt: skip
def test_other_fields(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    """Under each of their names; a value of another type is ignored."""
    assert one(**entry) == Model(id="m", provider="here", **expected)


@pytest.mark.parametrize("key", ["id", "model_id", "name", "key"])
def test_the_id_is_the_first_key_with_text(key: str) -> None:
    (model,) = page({"id": None, "key": "", key: "found"}).models
    assert (model.id, model.name) == ("found", "")


def test_a_key_of_a_wrong_type_is_ignored_alone() -> None:
    entry: dict[str, Any] = {
        "name": "M", "context_length": 5, "pricing": {"prompt": "0.000001"}, "aliases": ["n"],
        "architecture": {"input_modalities": ["text"], "output_modalities": ["image"]},
        "top_provider": {"max_completion_tokens": 7}, "replacement_model": "o",
    }  # fmt: skip
    whole = one(**entry)
    assert (whole.kind, whole.prices, whole.max_output_tokens) == ("image", Prices(input=1.0), 7)
    assert one(**entry, display_name=7) == whole
    assert one(**{**entry, "aliases": ["n", 7]}) == whole
    assert one(**entry, replaced_by=["x"]) == whole
    assert one(**{**entry, "architecture": {**entry["architecture"], "modality": 7}}) == whole
    assert one(**{**entry, "top_provider": 7}) == evolve(whole, max_output_tokens=None)
    assert one(**{**entry, "pricing": "free"}) == evolve(whole, prices=None)


def test_a_bad_entry_is_dropped_alone() -> None:
    """And counted."""
    bad = [None, 7, "kit", [], {}, {"id": None}, {"id": 7}, {"object": "model"}, {"id": {"a": "b"}}]
    result = page({"id": "a"}, *bad, {"id": "b"})
    assert [model.id for model in result.models] == ["a", "b"]
    assert result.dropped == len(bad)


@pytest.mark.parametrize(
    ("entry", "kept"),
    [
        (b'{"id": "x", "note": 1e999}', True),
        (b'{"id": "x", "note": "\xff\xfe"}', True),
        (b'{"id": "x", "note": 123456789012345678901234567890}', True),
        (b'{"id": "x", "context_length": 1e999}', False),
        (b'{"id": "\xff"}', False),
        (b'{"id": 1e999}', False),
    ],
)
def test_an_unreadable_value_drops_an_entry_only_in_a_key_that_is_read(entry: bytes, kept: bool) -> None:
    result = parsed(b'{"data": [{"id": "a"}, ' + entry + b', {"id": "b"}]}')
    assert [model.id for model in result.models] == (["a", "x", "b"] if kept else ["a", "b"])
    assert result.dropped == (0 if kept else 1)
    for model in result.models:
        assert model.raw["id"] == model.id


@pytest.mark.parametrize(
    "body",
    [
        b'[{"id": "a"}]',
        b' \n\t[{"id": "a"}]',
        b" " * 100 + b'[{"id": "a"}]',
        b'{"data": [{"id": "a"}]}',
        b'{"models": [{"name": "a"}]}',
        b'{"models": [{"name": "other"}], "object": "list", "data": [{"id": "a"}]}',
        b'{"data": [{"id": "a"}], "has_more": false, "last_id": "a"}',
        b'{"data": [{"id": "a"}], "has_more": true}',
        b'{"data": [{"id": "a"}], "error": null}',
    ],
)
def test_every_known_shape_of_a_list_is_read(body: bytes) -> None:
    result = parsed(body)
    assert ([model.id for model in result.models], result.next_cursor) == (["a"], None)


_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_KEYS = st.sampled_from([
    "id", "name", "type", "pricing", "architecture", "top_provider", "aliases", "created", "deprecated",
    "input_modalities", "output_modalities", "context_length", "max_output_tokens", "shutdown_date", "prompt",
])  # fmt: skip


NOT_JSON: tuple[tuple[str, Any], ...] = (
    ("NaN", None), ("-Infinity", None), ('"\\ud83d"', "\N{REPLACEMENT CHARACTER}"), ('"NaN \\" \\ude00"', 'NaN " \N{REPLACEMENT CHARACTER}'),
    ('{"prompt":NaN,"completion":"0.000001"}', {"prompt": None, "completion": "0.000001"}),
    ('"\\ud83d\\ude00 \\\\ud83d"', "\U0001f600 \\ud83d"),
)  # fmt: skip
"""Values that Python and JavaScript write and JSON lacks, and what is read in their place."""


@given(
    st.lists(st.tuples(_KEYS | st.just("novel"), st.sampled_from(NOT_JSON)), min_size=1, max_size=5),
    st.booleans(),
)
def test_values_that_are_no_json_cost_no_entry(members: list[tuple[str, tuple[str, Any]]], bom: bool) -> None:
    """They become null, or text with a replacement; a byte order mark is nothing."""
    entry = ",".join(f'"{key}":{text}' for key, (text, _) in members if key != "id")
    body = '{"data":[{"id":"a"},{"id":"b"%s},{"id":"c"}]}' % (entry and f",{entry}")
    result = parsed(b"\xef\xbb\xbf" * bom + body.encode())
    assert [model.id for model in result.models] == ["a", "b", "c"]
    expected = {key: value for key, (_, value) in members if key != "id"}
    assert dict(result.models[1].raw) == {"id": "b", **expected}


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        (b'["a", "b"]', ["a", "b"]),
        (b'{"data": ["a"]}', ["a"]),
        (b'{"models": ["a", "b/c"]}', ["a", "b/c"]),
        (b'{"data": [{"slug": "a", "name": "Model A"}]}', ["a"]),
        (b'{"data": [{"model": "a"}]}', ["a"]),
        (b'{"data": [{"name": "a", "model": "b"}]}', ["a"]),
        (b'{"data": null}', []),
        (b'{"models": null}', []),
        (b'{"data": null, "models": [{"id": "a"}]}', ["a"]),
        (b'{"data": [], "object": "list"}', []),
    ],
)
def test_lists_of_names_and_null_lists(body: bytes, ids: list[str]) -> None:
    result = parsed(body)
    assert [model.id for model in result.models] == ids
    assert [model.raw.get("id", model.id) for model in result.models] == ids


@pytest.mark.parametrize(
    "error",
    [
        {"code": 401, "msg": "bad key"},
        {"success": False, "message": "no"},
        {"base_resp": {"status_code": 1004}},
    ],
)
@pytest.mark.parametrize("models", [{"data": None}, {"data": []}, {"models": None}])
def test_no_models_beside_an_error_are_a_failure(error: dict[str, Any], models: dict[str, Any]) -> None:
    """An empty list in its place would be a wrong answer."""
    body = json.dumps({**error, **models}).encode()
    assert isinstance(compatible.parse_catalog(HttpResponse(status=200, body=body)), Failure)


def test_the_cursor_of_the_next_page_is_the_last_id() -> None:
    assert parsed(b'{"data": [], "has_more": true, "last_id": "z"}').next_cursor == "z"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"7", b'"x"', b"{}", b'{"data": {"id": "a"}}', b'{"data": [{}]}', b'[7, null, {"a": 1}]', b"NaN", b"[NaN]", b'{"object": "list"}',
        b"<html>502</html>", b'[{"id": "a"}', b'{"data": [{"id": "a"},]}', b'{"data": [tru]}', b"\xff[]",
        b"[" * 100_000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_list_is_invalid(body: bytes) -> None:
    with pytest.raises(InvalidResponse):
        compatible.parse_catalog(HttpResponse(status=200, body=body))


@pytest.mark.parametrize("body", [b'{"error": "no"}', b'{"error": {"code": 429}, "data": []}'])
def test_an_error_with_status_200_is_a_failure(body: bytes) -> None:
    """It is not taken for an empty list."""
    assert isinstance(compatible.parse_catalog(HttpResponse(status=200, body=body)), Failure)


def test_model_from_entry_reads_one_entry() -> None:
    """For plugins whose lists have another format."""
    model = compatible.model_from_entry({"id": "m", "context_length": 5, "pricing": {"prompt": "0.000001"}})
    assert model == Model(id="m", context_length=5, prices=Prices(input=1.0))
    assert compatible.model_from_entry(["m"]) is None
    assert compatible.model_from_entry({"object": "model"}) is None


def test_raw_is_a_mapping_that_parses_when_it_is_needed() -> None:
    raw = one(owned_by="me", nested={"a": [1]}).raw
    assert isinstance(raw, LazyJsonObject)
    assert raw == {"id": "m", "owned_by": "me", "nested": {"a": [1]}}
    assert (len(raw), list(raw), "id" in raw, raw.get("none")) == (
        3,
        ["id", "owned_by", "nested"],
        True,
        None,
    )
    assert pickle.loads(pickle.dumps(raw)) == raw
    assert "me" not in repr(raw)
    assert json.loads(raw.text)["owned_by"] == "me"


@settings(max_examples=scaled(50, nightly=200), deadline=None)
@given(st.lists(st.dictionaries(_KEYS | st.text(), _VALUES, max_size=8), max_size=5))
def test_no_entry_breaks_the_list(entries: list[dict[str, Any]]) -> None:
    """Every entry is a model or is counted as dropped, and raw is the entry; a list without any model is none."""
    try:
        result = page(*entries)
    except InvalidResponse:
        assert entries
        assert not any(isinstance(entry.get("id"), str) and entry["id"] for entry in entries)
        return
    assert len(result.models) + result.dropped == len(entries)
    ids = {entry["id"] for entry in entries if isinstance(entry.get("id"), str) and entry["id"]}
    assert ids <= {model.id for model in result.models}
    for model in result.models:
        assert dict(model.raw) in entries


# Real lists of hundreds and thousands of models. They are not part of the repository.

SAMPLES = Path(__file__).parents[3] / "shared" / "samples" / "catalogues"
RECORDED = SAMPLES.parent / "recorded"
MAX_PEAK_BYTES = 50 << 20


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


def recorded_page(body: bytes) -> CatalogPage:
    result = compatible.parse_catalog(HttpResponse(status=200, body=body), "here")
    assert isinstance(result, CatalogPage)
    return result


def test_the_list_of_openrouter() -> None:
    """Every model has limits and modalities, and prices unless they vary."""
    result = recorded_page(sample("openrouter-models-response.json"))
    assert (len(result.models), result.dropped, result.next_cursor) == (364, 0, None)
    assert all(model.context_length and model.inputs and model.name for model in result.models)
    assert Counter(model.kind for model in result.models) == {"chat": 364}
    unpriced = {model.id for model in result.models if model.prices is None}
    assert unpriced == {"openrouter/pareto-code", "openrouter/bodybuilder", "openrouter/auto"}
    free = [model.prices for model in result.models if model.id.endswith(":free")]
    assert free == [Prices(input=0.0, output=0.0)] * len(free)
    assert sum(model.shutdown is not None for model in result.models) == 11
    opus = next(model for model in result.models if model.id == "anthropic/claude-opus-4.7-fast")
    assert opus.prices == Prices(input=30.0, output=150.0, cached_input=3.0, cache_write=37.5)
    assert opus.max_output_tokens == 128_000


@pytest.mark.parametrize(("make", "count"), [(models_dev, 5_276), (litellm, 4_552)])
def test_thousands_of_models_are_read_in_little_memory(make: Any, count: int) -> None:
    """Before they are looked at."""
    body = make()
    tracemalloc.start()
    try:
        result = recorded_page(body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (len(result.models), result.dropped) == (count, 0)
    assert peak < MAX_PEAK_BYTES
    assert json.loads(body)["data"][7] == result.models[7].raw


def test_recorded_lists() -> None:
    """The common shape, and a gateway's plain list with dates and types."""
    exchanges = json.loads(sample("catalogues-openai-shape-and-bare-list.json", RECORDED))["exchanges"]
    plain, gateway = (
        recorded_page(json.dumps(each["response"]["body"]).encode()).models for each in exchanges
    )
    assert [model.id for model in plain] == ["gemma-4-31b", "gpt-oss-120b", "zai-glm-4.7"]
    assert {model.created for model in plain} == {None}
    kinds = Counter(model.kind for model in gateway)
    assert kinds == {"chat": len(gateway) - 5, "embedding": 2, "rerank": 2, "image": 1}
    haiku = next(model for model in gateway if model.id == "claude-3-5-haiku")
    assert (haiku.deprecated, haiku.shutdown) == ("2026-05-12T00:00:00Z", "2026-06-12T00:00:00Z")
    assert haiku.replacement == "claude-4-5-haiku"


def test_a_very_long_list_with_a_long_description() -> None:
    """Neither the number of models nor the size of an entry is limited."""
    count = scaled(20_000, nightly=100_000)
    long = "x" * (10 << 20)
    result = recorded_page(
        listed([{"id": f"m{number}"} for number in range(count)] + [{"id": "long", "description": long}])
    )
    assert len(result.models) == count + 1
    assert result.models[-1].raw["description"] == long


@pytest.mark.parametrize(
    ("body", "is_list"),
    [
        (b'{"data": []}', True),
        (b'{"code": 200, "message": "success", "data": []}', True),
        (b'{"message": "successful", "models": []}', True),
        (b"[]", True),
        (b'{"data": [], "error_code": 7, "error_msg": "no"}', False),
        (b'{"code": 7, "msg": "no", "data": []}', False),
    ],
)
def test_an_empty_list_beside_an_error_is_an_error(body: bytes, is_list: bool) -> None:
    """A list without models is one, unless the response says that something is wrong."""
    assert isinstance(compatible.parse_catalog(HttpResponse(status=200, body=body)), CatalogPage) is is_list


def whole(count: int, **more: Any) -> CatalogPage:
    return page(*({"id": f"m{number}", "n": number, **more} for number in range(count)))


def test_a_model_is_made_when_it_is_looked_at() -> None:
    """Each model once, with the entry that is its own."""
    models = whole(1000).models
    assert isinstance(models, ListedModels)
    assert len(models) == 1000
    assert [models[17], models[-1]] == [models[17], models[999]]
    assert [each is not None for each in models._models].count(True) == 2
    assert models[17] is models[17]
    assert [model.raw["n"] for model in models] == list(range(1000))


def test_the_models_of_a_list_are_used_like_a_tuple() -> None:
    """By plugins and by users."""
    models, other = whole(3).models, Model(id="other")
    plain = tuple(models)
    assert models == plain
    assert plain == models
    assert models != plain[:2]
    assert models != list(models)
    assert hash(models) == hash(plain)
    assert models[1:] == plain[1:]
    assert models + (other,) == (*plain, other)  # type: ignore[operator] # noqa: RUF005 - as plugins may write it
    assert (other,) + models == (other, *plain)  # type: ignore[operator] # noqa: RUF005
    assert models.index(plain[2]) == 2
    assert plain[0] in models
    assert "m0" not in repr(models)
    assert pickle.loads(pickle.dumps(models)) == plain
    with pytest.raises(IndexError):
        models[3]


def test_a_change_of_each_model_is_made_with_it() -> None:
    """One after the other; of a page with its models already made, at once."""
    seen: list[str] = []

    def renamed(model: Model) -> Model:
        seen.append(model.id)
        return evolve(model, name=f"{model.name}!")

    changed = compatible.map_models(compatible.map_models(whole(3), renamed), renamed)
    assert seen == []
    assert changed.models[1].name == "!!"
    assert seen == ["m1", "m1"]
    at_once = compatible.map_models(CatalogPage(models=(Model(id="a"),), dropped=1), renamed)
    assert seen[2:] == ["a"]
    assert at_once == CatalogPage(models=(Model(id="a", name="!"),), dropped=1)


ENTRIES = st.sampled_from(
    [
        '{"id":"a"}',
        '{"id":"a","context_length":5,"n":1}',
        '{"id":"b","pricing":{"prompt":"0.1"},"aliases":["x",""]}',
        '{"model":"c","name":"C","input_modalities":["text"]}',
        '{"id":"d","aliases":[1]}',
        '{"id":"d","pricing":"free"}',
        '{"id":"e","id":"f"}',
        '{"id":7}',
        '{"id":""}',
        "{}",
        "7",
        '"name"',
        "null",
        '{"id":"\\ud800"}',
        '{"id":"g","x":NaN}',
        '{"id":"h","x":"\\ud800"}',
        '{"id":"i"',
    ]
)


@given(
    st.lists(ENTRIES, max_size=4),
    st.sampled_from(['{"data":%s}', "%s", ' {"models":%s}', '{"data":[],"models":%s}', '{"data":[{"id":"z"}],"models":%s}']),
    st.sampled_from(["", ',"error":{"message":"no"}', ',"has_more":true,"last_id":"d"', ',"data":null']),
)  # fmt: skip
def test_a_list_decoded_at_once_is_that_decoded_entry_by_entry(
    entries: list[str], form: str, more: str
) -> None:
    """Whatever a server sends: the same models, cursors and counts, or the same words."""
    body = (form % f"[{','.join(entries)}]").encode()
    body = body.replace(b"]}", f"]{more}}}".encode()) if body.endswith(b"]}") else body

    def outcome() -> object:
        try:
            result = compatible.parse_catalog(HttpResponse(status=200, body=body), "here")
        except InvalidResponse as error:
            return error.reason, error.message
        if isinstance(result, Failure):
            return result.error
        raws = [dict(model.raw) for model in result.models]
        return tuple(result.models), repr(raws), result.next_cursor, result.dropped

    found = outcome()
    with patch.object(models_module, "_listed", lambda *_: None):
        assert outcome() == found
