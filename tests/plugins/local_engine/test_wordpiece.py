"""The word pieces are those of BERT's uncased tokenizer, for odd texts too."""

from __future__ import annotations

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt_plugin_local import _wordpiece
from llmopt_plugin_local._static import read_vocabulary
from llmopt_plugin_local._wordpiece import WordPiece, _Characters, _Chunks

SPECIAL = ("[PAD]", "[UNK]", "[SEP]")
NAMES = [*read_vocabulary(), "[SEP]"]
IDS = {name: number for number, name in enumerate(NAMES)}
ODD = [*"aZé\u0301 \t\x0b\x1c\x85\u200b\u3000中!#[]Σß", *SPECIAL]
ANY_TEXT = st.text(st.characters(codec=None)) | st.lists(st.sampled_from(ODD)).map("".join)

# What the tokenizer of all-MiniLM-L6-v2 (package tokenizers 0.22.2) gives.
EXPECTED = [
    ("", ""),
    ("   \t\n", ""),
    ("The quick brown fox jumps over the lazy dog.", "the quick brown fox jumps over the lazy dog ."),
    ("unbelievably", "un ##bel ##ie ##va ##bly"),
    ("don't-stop... £1 $5 3.14%", "don ' t - stop . . . £1 $ 5 3 . 14 %"),
    ("##ing", "# # ing"),
    # accents, written in one character or in two
    ("Crème brûlée, NAÏVE façade & Ångström", "cr ##eme br ##ule ##e , naive facade & ang ##strom"),
    ("Cre\u0300me bru\u0302le\u0301e", "cr ##eme br ##ule ##e"),
    ("x\u0301\u0302\u0303y", "x ##y"),
    # no case rule looks at the neighbours: a capital sigma at a word's end is an ordinary one
    ("ΟΔΥΣΣΕΥΣ Σίσυφος", "ο ##δ ##υ ##σ ##σ ##ε ##υ ##σ σ ##ι ##σ ##υ ##φ ##ος"),  # noqa: RUF001
    ("ẞtraße İstanbul", "ß ##tra ##ße istanbul"),
    ("ﬁne Ⅷ ½", "ﬁ ##ne [UNK] ½"),
    # ideographs stand alone, kana and hangul do not
    ("東京は日本の首都です", "東 京 は 日 本 の [UNK] 都 て ##す"),
    ("한국어", "ᄒ ##ᅡ ##ᆫ ##ᄀ ##ᅮ ##ᆨ ##ᄋ ##ᅥ"),
    ("party 🎉 time 👩\u200d💻!", "party [UNK] time [UNK] !"),
    # controls vanish, also those that Python's split takes for white space
    ("tab\there\x00 nul\x0bver\x1cfi\x85next\u200bzero\ufffd", "tab here nu ##lver ##fine ##xt ##zer ##o"),
    ("a\u00a0b\u3000c\u2028d\r\ne", "a b c d e"),
    # a dash that came with Unicode 6 divides words, one that came with Unicode 15 is a letter to BERT
    ("mot\u2e3amot", "mo ##t [UNK] mo ##t"),
    ("mot\u2e5dmot", "[UNK]"),
    ("[UNK] and [PAD]and [SEP] and [unk]", "[UNK] and [PAD] and [SEP] and [ un ##k ]"),
    ("x" * 101 + " " + "y" * 100, "[UNK] y" + " ##y" * 99),
]


@cache
def prototype(unknown: int | None) -> WordPiece:
    return WordPiece(IDS, unknown=unknown, special={name: IDS[name] for name in SPECIAL})


def make(unknown: int | None = IDS["[UNK]"]) -> WordPiece:
    """A tokenizer with empty caches; all share the tables of the vocabulary, which take 25 ms to build."""
    tokenizer = copy.copy(prototype(unknown))
    tokenizer._characters = _Characters()
    tokenizer._chunks = _Chunks(tokenizer._spell)
    return tokenizer


def names_of(row: bytes) -> list[str]:
    numbers = memoryview(row).cast("H")
    return [NAMES[number] for number in numbers]


def pieces(tokenizer: WordPiece, texts: list[str]) -> list[list[str]]:
    return [names_of(row) for _, rows in tokenizer.blocks(texts) for row in rows]


@pytest.mark.parametrize(("text", "expected"), EXPECTED)
def test_pieces_are_those_of_the_reference_tokenizer(text: str, expected: str) -> None:
    """The first time, and again from the cache."""
    tokenizer = make()
    assert pieces(tokenizer, [text]) == [expected.split()]
    assert pieces(tokenizer, [text]) == [expected.split()]


def test_texts_of_one_block_do_not_affect_each_other() -> None:
    """Odd texts among plain ones have the pieces that they have alone."""
    assert pieces(make(), [text for text, _ in EXPECTED]) == [expected.split() for _, expected in EXPECTED]


def test_without_an_unknown_id_unknown_words_are_dropped() -> None:
    assert pieces(make(unknown=None), ["party 🎉 time " + "x" * 101]) == [["party", "time"]]


def test_ids_are_two_bytes_in_native_order() -> None:
    [(start, [row])] = make().blocks(["the fox"])
    assert start == 0
    assert row == IDS["the"].to_bytes(2, sys.byteorder) + IDS["fox"].to_bytes(2, sys.byteorder)


@given(st.lists(ANY_TEXT, max_size=8))
def test_a_batch_has_the_pieces_of_its_texts_one_by_one(texts: list[str]) -> None:
    """Neighbours and caches change nothing, for any text, lone surrogates included."""
    shared = make()
    assert pieces(shared, texts) == [row for text in texts for row in pieces(make(), [text])]


@given(ANY_TEXT, ANY_TEXT)
def test_two_texts_joined_by_a_blank_have_the_pieces_of_both(left: str, right: str) -> None:
    tokenizer = make()
    [joined] = pieces(tokenizer, [f"{left} {right}"])
    first, second = pieces(tokenizer, [left, right])
    assert joined == first + second


@pytest.mark.parametrize("number", [0, 1, 1023, 1024, 1025, 3000])
def test_blocks_cover_every_text_once_and_in_order(number: int) -> None:
    """Also with as many texts as a block holds, and one more or less."""
    texts = [f"{index}" for index in range(number)]
    seen: list[str] = []
    for start, rows in make().blocks(texts):
        assert start == len(seen)
        seen += ["".join(names_of(row)).replace("##", "") for row in rows]
    assert seen == texts


def test_long_texts_end_a_block_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has a limit of characters as well as of texts."""
    monkeypatch.setattr(_wordpiece, "_BLOCK_CHARACTERS", 10)
    texts = ["fox", "a dog and a fox", "dog", "fox dog", ""]
    blocks = list(make().blocks(texts))
    assert [(start, len(rows)) for start, rows in blocks] == [(0, 2), (2, 2), (4, 1)]


@given(st.text(st.sampled_from("ab é\u0301\n.,中国\x0b。한"), min_size=1, max_size=80))
def test_windows_of_a_long_text_do_not_split_a_word(text: str) -> None:
    """A text read in windows of a few characters has the pieces of the whole text."""
    whole = pieces(make(), [text])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_wordpiece, "_WINDOW", 3)
        patch.setattr(_wordpiece, "_BLOCK_CHARACTERS", 0)
        assert pieces(make(), [text]) == whole


def test_caches_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """New words neither grow the caches without limit nor change the pieces of old words."""
    monkeypatch.setattr(_wordpiece, "_CACHED_CHUNKS", 50)
    monkeypatch.setattr(_wordpiece, "_CACHED_CHARACTERS", 50)
    tokenizer = make()
    before = pieces(tokenizer, ["a résumé of 東京"])
    pieces(tokenizer, [f"w{number} {chr(0x4E00 + number)}" for number in range(1000)])
    assert len(tokenizer._chunks) <= 50
    assert len(tokenizer._chunks._older) <= 50
    assert len(tokenizer._characters) <= 50
    assert pieces(tokenizer, ["a résumé of 東京"]) == before


def test_long_chunks_are_not_cached() -> None:
    """A chunk longer than any word of natural text would only take memory."""
    tokenizer = make()
    pieces(tokenizer, ["中" * 1000])
    assert len(tokenizer._chunks) == 0


def test_threads_can_share_one_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that fill, empty and read one cache all get the right pieces."""
    monkeypatch.setattr(_wordpiece, "_CACHED_CHUNKS", 100)
    texts = [f"naïve{number % 300} 東京 {number % 7}!" for number in range(2000)]
    expected, tokenizer = pieces(make(), texts), make()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: pieces(tokenizer, texts), range(16)):
            assert result == expected


def test_a_number_instead_of_a_text_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        pieces(make(), ["fox", 3])  # type: ignore[list-item]
