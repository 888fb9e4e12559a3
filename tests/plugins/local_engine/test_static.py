"""The embedded default model: it agrees with model2vec, and its rows depend on nothing but their texts."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt_plugin_local import _static, _wordpiece
from llmopt_plugin_local._static import StaticModel, read_vocabulary

MODEL = StaticModel.load()
ANY_TEXT = st.text(st.characters(codec=None)) | st.text(st.sampled_from("the quick fox é\u0301\t\x0b中!🎉Σ"))

# The first eight numbers that model2vec 0.10.0 gives with the same table, unlimited in length.
EXPECTED = {
    "The quick brown fox jumps over the lazy dog.": (
        -0.0625375, -0.1991937, -0.078751, -0.259415, -0.2084585, -0.0810672, -0.0440079, -0.0092648,
    ),
    "Crème brûlée, NAÏVE façade & Ångström": (
        0.2815098, -0.0870858, 0.0202525, 0.040505, -0.0506313, -0.0749343, -0.0344293, -0.32404,
    ),
    "Cre\u0300me bru\u0302le\u0301e": (
        0.3477677, -0.1364319, 0.1819092, -0.0642033, -0.1150308, -0.0160508, -0.0321016, -0.3076406,
    ),
    "東京は日本の首都です": (
        0.3443955, 0.0720304, 0.1958327, 0.2138403, 0.2003346, 0.1463118, -0.1913308, 0.0292624,
    ),
    "party 🎉 time 👩\u200d💻!": (
        -0.1686579, -0.199323, -0.0153325, -0.0919952, -0.1379928, -0.0689964, -0.1533254, 0.0,
    ),
    "tab\there\x00 nul\x0bvertical\x1cfile\x85next\u200bzero": (
        0.4451199, -0.0966859, 0.1769534, -0.1131042, -0.0638492, -0.11128, -0.0437823, -0.4068103,
    ),
    "[UNK] and [PAD] and [SEP] and [unk]": (
        0.1439341, -0.149809, 0.1439341, -0.0558112, 0.0851855, -0.3143051, 0.0323117, -0.0822481,
    ),
    "ΟΔΥΣΣΕΥΣ Σίσυφος": (
        0.475874, -0.0621671, 0.0592067, 0.1428362, 0.0310835, 0.0828894, -0.1110126, -0.061427,
    ),
    "supercalifragilisticexpialidocious " + "x" * 101 + " " + "y" * 100: (
        0.1834078, -0.2704624, 0.1441927, -0.1198012, -0.1121199, -0.3215363, 0.045953, -0.1219574,
    ),
    "one two three four five six seven eight nine ten " * 700: (
        -0.0286965, -0.2323046, 0.2172731, -0.271933, -0.010932, 0.024597, -0.1653462, 0.1175188,
    ),
}  # fmt: skip


WORDS = [word for word in read_vocabulary() if word.isascii() and word.isalpha()]


def some_texts(number: int) -> list[str]:
    """Different texts of 0 to 300 words, each word one piece."""
    lengths = [0, 1, 63, 64, 65, 128, 129, 300, 5, 9, 12]
    return [
        " ".join(WORDS[(index * 31 + place * 17) % len(WORDS)] for place in range(lengths[index % 11]))
        for index in range(number)
    ]


def test_the_table_is_the_published_one() -> None:
    """The package data are the bytes that ``make_static_table.py`` and the notice name."""
    data = resources.files("llmopt_plugin_local") / "data"
    found = hashlib.sha256((data / "static-minilm-256-int8.npz").read_bytes()).hexdigest()
    assert found in (data / "NOTICE.txt").read_text()


@pytest.mark.parametrize("text", EXPECTED)
def test_vectors_are_those_of_model2vec(text: str) -> None:
    """For odd and long texts too."""
    [vector], _ = MODEL.encode([text])
    assert vector[:8] == pytest.approx(EXPECTED[text], abs=1e-6)


def test_a_vector_is_the_mean_of_its_rows() -> None:
    """The sums in steps and segments equal a plain mean in all 256 numbers."""
    row = {piece: MODEL._table[number] for number, piece in enumerate(read_vocabulary())}
    for text in some_texts(22):
        [vector], pieces = MODEL.encode([text])
        rows = [row[word] for word in text.split()]
        assert pieces == len(rows)
        mean = np.mean(rows, axis=0) if rows else np.zeros(256)
        np.testing.assert_allclose(vector, mean / (np.linalg.norm(mean) or 1), atol=1e-6)


@given(st.lists(ANY_TEXT, max_size=6))
def test_any_text_gives_a_unit_vector_or_zeros(texts: list[str]) -> None:
    """Rows are float32, C-contiguous, finite, and of length one or zero."""
    vectors, pieces = MODEL.encode(texts)
    assert vectors.shape == (len(texts), 256)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert np.isfinite(vectors).all()
    lengths = np.linalg.norm(vectors, axis=1)
    assert all(length == 0 or length == pytest.approx(1, abs=1e-5) for length in lengths)
    assert pieces >= 0


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\x0b\u200b", "🎉", "x" * 500, "!!! (#$%&)", "[PAD][UNK]"])
def test_a_text_without_weighted_pieces_is_zeros(text: str) -> None:
    """Also between other texts."""
    vectors, _ = MODEL.encode(["fox", text, "dog"])
    assert not vectors[1].any()
    assert vectors[0].any()
    assert vectors[2].any()


def test_only_known_pieces_are_counted() -> None:
    assert MODEL.encode(["unbelievably 🎉 good! [UNK]", "", "fox"])[1] == 8


def test_an_empty_list_gives_no_row() -> None:
    vectors, pieces = MODEL.encode([])
    assert vectors.shape == (0, 256)
    assert pieces == 0


@pytest.mark.parametrize("number", [1, 2, 1023, 1024, 1025, 2500])
def test_rows_are_in_the_order_of_their_texts(number: int) -> None:
    """Each row equals, bit for bit, that of its text alone, also at the boundaries of blocks and segments."""
    texts = some_texts(number)
    vectors, _ = MODEL.encode(texts)
    for index in {*range(0, number, 97), number - 1, min(number, 1024) - 1}:
        np.testing.assert_array_equal(vectors[index], MODEL.encode([texts[index]])[0][0])


@given(st.lists(ANY_TEXT, max_size=6))
def test_a_batch_has_the_vectors_of_its_texts_one_by_one(texts: list[str]) -> None:
    """And the sum of their counts."""
    vectors, pieces = MODEL.encode(texts)
    alone = [MODEL.encode([text]) for text in texts]
    assert pieces == sum(count for _, count in alone)
    for row, (single, _) in zip(vectors, alone, strict=True):
        np.testing.assert_array_equal(row, single[0])


def test_any_sequence_of_texts_is_accepted() -> None:
    np.testing.assert_array_equal(MODEL.encode(("fox", "dog"))[0], MODEL.encode(["fox", "dog"])[0])


def test_the_size_of_groups_and_segments_does_not_change_a_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = some_texts(60)
    vectors, pieces = MODEL.encode(texts)
    monkeypatch.setattr(_static, "_SEGMENT", 3)
    monkeypatch.setattr(_static, "_ROWS", 7)
    monkeypatch.setattr(_wordpiece, "_BLOCK_TEXTS", 11)
    again, pieces_again = MODEL.encode(texts)
    np.testing.assert_array_equal(vectors, again)
    assert pieces == pieces_again


def test_the_heaviest_rows_do_not_overflow() -> None:
    """The piece with the largest number, thousands of times, gives the vector of one."""
    heights = dict(zip(read_vocabulary(), np.abs(MODEL._table).max(axis=1).tolist(), strict=True))
    heaviest = max(WORDS, key=heights.__getitem__)
    once, often = MODEL.encode([heaviest, f"{heaviest} " * 50_000])[0]
    np.testing.assert_allclose(once, often, atol=1e-6)


def test_a_text_of_ten_megabytes_is_read_to_its_end() -> None:
    """Its vector is that of the sentence which it repeats."""
    sentence = "the quick brown fox jumps over the lazy dog and naïve résumés "
    vectors, pieces = MODEL.encode([sentence, sentence * 160_000])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert pieces == 160_001 * MODEL.encode([sentence])[1]


def test_similar_texts_are_nearer_than_others() -> None:
    cat, kitten, tax = MODEL.encode(
        ["a cat sleeps on the sofa", "the kitten naps on a couch", "income tax law for companies"]
    )[0]
    assert cat @ kitten > 0.4
    assert abs(cat @ tax) < 0.2


def test_threads_can_share_one_model() -> None:
    """Concurrent threads get the rows of a single thread."""
    texts = some_texts(1500)
    alone, pieces = MODEL.encode(texts)
    with ThreadPoolExecutor(6) as pool:
        for vectors, count in pool.map(lambda _: MODEL.encode(texts), range(12)):
            np.testing.assert_array_equal(vectors, alone)
            assert count == pieces


def test_concurrent_first_callers_get_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process has one instance."""
    monkeypatch.setattr(StaticModel, "_loaded", {})
    with ThreadPoolExecutor(4) as pool:
        models = set(pool.map(lambda _: StaticModel.load(), range(8)))
    assert models == {StaticModel.load()}


def test_name_and_dimensions_of_the_model() -> None:
    assert StaticModel.name == "static-minilm-256"
    assert StaticModel.dimensions == 256
