"""Lists of models encoded as bytes, and decoded."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import Catalog, Model, Prices
from llmopt.cache.models import StoredModels, decode_models, encode_models
from llmopt.values.catalog import LazyJsonObject, ModelKind

_WORDS = st.lists(st.text(max_size=5), max_size=3).map(tuple)
_COUNTS = st.none() | st.integers(min_value=1, max_value=1 << 60)
_COSTS = st.none() | st.floats(min_value=0, max_value=1e5)
_MODELS = st.builds(
    Model,
    id=st.text(min_size=1),
    provider=st.just("p"),
    kind=st.sampled_from(get_args(ModelKind)),
    name=st.text(),
    context_length=_COUNTS,
    max_output_tokens=_COUNTS,
    dimensions=_COUNTS,
    inputs=_WORDS,
    outputs=_WORDS,
    prices=st.none() | st.builds(Prices, input=_COSTS, output=_COSTS, currency=st.just("EUR")),
    aliases=_WORDS,
    created=_COUNTS,
    deprecated=st.none() | st.text(),
    shutdown=st.none() | st.text(),
    replacement=st.none() | st.text(),
    known=_WORDS,
    raw=st.dictionaries(st.text(), st.none() | st.integers(0, 9) | st.text()),
)


@settings(deadline=None)
@given(st.lists(_MODELS, max_size=5))
def test_encoded_models_are_decoded_unchanged(models: list[Model]) -> None:
    """Field by field, with the provider's own entry."""
    decoded = decode_models(encode_models(models), provider="p")
    assert decoded == models
    assert list(decoded) == models
    assert [dict(model.raw) for model in decoded] == [dict(model.raw) for model in models]


def models_of(count: int) -> list[Model]:
    return [Model(id=f"m{number}", provider="p", raw={"n": number}) for number in range(count)]


def test_a_model_is_decoded_at_its_first_access() -> None:
    """Each model is decoded once."""
    decoded = decode_models(encode_models(models_of(1000)), provider="p")
    assert len(decoded) == 1000
    made = [model for model in decoded._models if model is not None]
    assert len(made) <= 1
    assert decoded[500] is decoded[500]
    assert decoded[-1].id == "m999"
    assert len([model for model in decoded._models if model is not None]) <= 3
    assert [model.id for model in decoded[10:12]] == ["m10", "m11"]
    assert decoded[5].raw == {"n": 5}


def test_a_list_with_a_known_count_is_decoded_at_its_first_access() -> None:
    """The count is known without decoding."""
    models = models_of(3)
    decoded = decode_models(memoryview(encode_models(models)), provider="p", count=3)
    assert (len(decoded), decoded._encoded) == (3, None)
    assert (decoded[-1].id, list(decoded)) == ("m2", models)
    assert pickle.loads(pickle.dumps(decoded)) == models
    with pytest.raises(IndexError):
        _ = decoded[-4]


def test_the_providers_entry_is_stored_byte_by_byte() -> None:
    text = b'{ "id" : "a", "n" : 1e400 }'
    for raw in (text, msgspec.Raw(text)):
        (decoded,) = decode_models(encode_models([Model(id="a", raw=LazyJsonObject(raw))]), provider="p")
        assert isinstance(decoded.raw, LazyJsonObject)
        assert decoded.raw.text == text


def test_decoded_models_are_a_sequence() -> None:
    """As in a catalog."""
    models = models_of(3)
    decoded = decode_models(encode_models(models), provider="p")
    catalog = Catalog(provider="p", models=decoded)
    assert catalog == Catalog(provider="p", models=tuple(models))
    assert hash(decoded) == hash(tuple(models))
    assert catalog[0] == models[0]
    assert catalog[1:] == tuple(models[1:])
    assert models[2] in decoded
    assert decoded != models[:2]
    assert decoded != "m0"
    assert pickle.loads(pickle.dumps(decoded)) == models
    assert encode_models(decoded) is decoded.data
    with pytest.raises(IndexError):
        _ = decoded[3]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"null",
        b"[1]",
        b'[{"kind": "chat"}]',
        b'[{"id": 7}]',
        b'[{"id": "a"',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_bytes_that_are_no_list_are_refused(data: bytes) -> None:
    """A store can treat the ValueError as a cache miss."""
    with pytest.raises(ValueError, match="not an encoded list of models"):
        decode_models(data, provider="p")


@pytest.mark.parametrize("wrong", [{"id": 7}, {"id": "a", "created": "x"}, {"id": "a", "kind": "odd"}])
def test_invalid_models_are_not_encoded(wrong: dict[str, Any]) -> None:
    """A plugin may have put anything into a field."""
    with pytest.raises(ValueError, match="cannot be encoded"):
        encode_models([Model(id="fine"), Model(**wrong)])


def test_a_raw_entry_that_is_no_json_is_left_out() -> None:
    """The model stays."""
    (decoded,) = decode_models(encode_models([Model(id="a", raw={"x": object()})]), provider="p")
    assert (decoded.id, decoded.raw) == ("a", {})


def test_an_empty_list_is_valid() -> None:
    assert list(StoredModels(b"[]", "p")) == []
