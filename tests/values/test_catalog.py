"""Lists of models as bytes, and back."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmopt import Catalog, Model, Prices
from llmopt.values.catalog import LazyJsonObject, ModelKind, StoredModels, decode_models, encode_models

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
def test_what_was_packed_comes_back(models: list[Model]) -> None:
    """Field by field, the provider's own entry too."""
    found = decode_models(encode_models(models), provider="p")
    assert found == models
    assert list(found) == models
    assert [dict(model.raw) for model in found] == [dict(model.raw) for model in models]


def some(count: int) -> list[Model]:
    return [Model(id=f"m{number}", provider="p", raw={"n": number}) for number in range(count)]


def test_a_model_is_made_when_it_is_looked_at() -> None:
    """And once."""
    found = decode_models(encode_models(some(1000)), provider="p")
    assert len(found) == 1000
    made = [model for model in found._models if model is not None]
    assert len(made) <= 1
    assert found[500] is found[500]
    assert found[-1].id == "m999"
    assert len([model for model in found._models if model is not None]) <= 3
    assert [model.id for model in found[10:12]] == ["m10", "m11"]
    assert found[5].raw == {"n": 5}


def test_what_was_just_packed_is_not_looked_into() -> None:
    """Before somebody looks; then it is as any other."""
    models = some(3)
    found = decode_models(memoryview(encode_models(models)), provider="p", count=3)
    assert (len(found), found._encoded) == (3, None)
    assert (found[-1].id, list(found)) == ("m2", models)
    assert pickle.loads(pickle.dumps(found)) == models
    with pytest.raises(IndexError):
        _ = found[-4]


def test_the_provider_s_entry_goes_in_as_it_came() -> None:
    """Letter by letter."""
    text = b'{ "id" : "a", "n" : 1e400 }'
    for raw in (text, msgspec.Raw(text)):
        (found,) = decode_models(encode_models([Model(id="a", raw=LazyJsonObject(raw))]), provider="p")
        assert isinstance(found.raw, LazyJsonObject)
        assert found.raw.text == text


def test_it_is_a_sequence_like_any() -> None:
    """Of a catalogue's."""
    models = some(3)
    found = decode_models(encode_models(models), provider="p")
    catalogue = Catalog(provider="p", models=found)
    assert catalogue == Catalog(provider="p", models=tuple(models))
    assert hash(found) == hash(tuple(models))
    assert catalogue[0] == models[0]
    assert catalogue[1:] == tuple(models[1:])
    assert models[2] in found
    assert found != models[:2]
    assert found != "m0"
    assert pickle.loads(pickle.dumps(found)) == models
    assert encode_models(found) is found.data
    with pytest.raises(IndexError):
        _ = found[3]


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
def test_what_is_no_list_is_refused(data: bytes) -> None:
    """So that a store can take it for a miss."""
    with pytest.raises(ValueError, match="not an encoded list of models"):
        decode_models(data, provider="p")


@pytest.mark.parametrize("wrong", [{"id": 7}, {"id": "a", "created": "x"}, {"id": "a", "kind": "odd"}])
def test_what_cannot_come_back_is_not_packed(wrong: dict[str, Any]) -> None:
    """A plugin may have put anything into a field."""
    with pytest.raises(ValueError, match="cannot be encoded"):
        encode_models([Model(id="fine"), Model(**wrong)])


def test_a_raw_entry_that_json_has_not() -> None:
    """Is left out; the model stays."""
    (found,) = decode_models(encode_models([Model(id="a", raw={"x": object()})]), provider="p")
    assert (found.id, found.raw) == ("a", {})


def test_an_empty_list() -> None:
    """Is one."""
    assert list(StoredModels(b"[]", "p")) == []
