"""The word pieces of BERT's uncased vocabulary.

A text goes through BERT's steps: control characters out, white space to blanks, ideographs set apart, NFD
without combining marks, lower case, a split at white space and punctuation, and for every word the longest
known pieces from left to right. The steps act inside a run of characters without white space, so the pieces
of such a chunk are worked out once and then looked up: natural text repeats itself, and one dictionary look-up
per chunk is all that is left.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence


def _ranges(spans: str) -> list[range]:
    ends = [[int(end, 16) for end in span.split("-")] for span in spans.split()]
    return [range(pair[0], pair[-1] + 1) for pair in ends]


# The model's own tokenizer has the character classes of Unicode 8. What was assigned later is an ordinary
# letter to it. These are the ranges of such characters that a newer Unicode (up to 18) calls marks, punctuation
# or format; with them the pieces, and so the vectors, are the same on every version of Python.
_SINCE_UNICODE_8 = _ranges(
    "5c8-5c9 61d 7fd 890-8e2 9fd-9fe a76 afa-aff b53-b55 c04-c3c c77 c84 d00 d3b-d3c d81 eba ece 180f-1886 "
    "1abf-1af0 1b4e-1b4f 1b7d-1b7f 1df6-1dfb 2e43-2e63 a82c a8c5 a8ff a9bd 10d24-10f89 11070-11074 "
    "110c2-110cd 111cf 1123e-11241 1133b 113bb-1145e 11660-1166c 116b9 1182f-11fff 12ff1-1612f 16d6d-16f4f "
    "16fe2-16fe4 1cf00-1d128 1d25b-1d25c 1e000-1e6f5 1e944-1e95f"
)
# A few characters changed their Unicode class since, and BERT itself treats some differently.
_CATEGORIES = {0x1734: "Mn", 0x1171E: "Mn", 0x166D: "Po", 0x111C9: "Po", 0xFFFD: "Cc"}
_CATEGORIES |= dict.fromkeys(map(ord, "\t\n\r"), "Zs") | dict.fromkeys(map(ord, "$+<=>^`|~"), "Po")
_DROPPED = frozenset({"Cc", "Cf", "Co", "Cs", "Mn"})
# The hole between 2b81f and 2b920 is BERT's.
_IDEOGRAPHS = _ranges("3400-4dbf 4e00-9fff f900-faff 20000-2a6df 2a700-2b81f 2b920-2ceaf 2f800-2fa1f")

# str.split takes these for white space, BERT drops them as control characters.
_STRAY = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_stray = re.compile(f"[{_STRAY}]")
_ascii_words = re.compile(r"[a-z0-9]+|[^a-z0-9]").findall
# Before any of these a word ends in any case.
_safe_cut = re.compile(r"[\s!-/:-@\[-`{-~\u3001\u3002\u4e00-\u9fff]")

_MAX_WORD = 100  # characters; BERT does not look into longer ones
_BLOCK_TEXTS = 1024
_BLOCK_CHARACTERS = 1 << 20
_WINDOW = 1 << 16  # characters of a long text that are split at a time
_CACHED_CHUNKS = 1 << 16  # twice that with the older half: 20 MB for English, 70 MB at the very worst
_CACHED_CHUNK_LENGTH = 48
_CACHED_CHARACTERS = 1 << 16


def _rewrite(code: int) -> str | None:
    """What stands in a normalised text for a character: None, a blank, a separate word, or its lower case."""
    newer = any(code in span for span in _SINCE_UNICODE_8)
    category = "Lo" if newer else _CATEGORIES.get(code) or unicodedata.category(chr(code))
    if category in _DROPPED:
        return None
    if category.startswith("Z"):
        return " "
    if category.startswith("P") or any(code in span for span in _IDEOGRAPHS):
        return f" {chr(code)} "
    return chr(code).lower()


class _Characters(dict[int, str | None]):
    """A table for ``str.translate`` that fills itself."""

    def __missing__(self, code: int) -> str | None:
        if len(self) >= _CACHED_CHARACTERS:
            self.clear()
        self[code] = value = _rewrite(code)
        return value


class _Chunks(dict[str, bytes]):
    """The pieces of the chunks met lately: this dictionary, and the one before it when it was full.

    Each step is one operation on a dictionary, so threads can share it: at worst a chunk is worked out twice.
    """

    def __init__(self, spell: Callable[[str], bytes]) -> None:
        super().__init__()
        self._spell = spell
        self._older: dict[str, bytes] = {}

    def __missing__(self, chunk: str) -> bytes:
        pieces = self._older.get(chunk)
        if pieces is None:
            pieces = self._spell(chunk)
        if len(chunk) <= _CACHED_CHUNK_LENGTH:
            if len(self) >= _CACHED_CHUNKS:
                self._older = dict(self)
                self.clear()
            self[chunk] = pieces
        return pieces


class WordPiece:
    """Turns texts into ids of word pieces; several threads may use one instance.

    The ids of a text are ``bytes``, one uint16 in native byte order for each piece.

    Args:
        ids: the id of each piece, 0 to 65,535; a piece that continues a word starts with ``##``.
        unknown: the id of a word that has no pieces; with None such a word leaves nothing.
        special: the strings that are taken as they stand before anything else is done, such as ``[SEP]``,
            with their ids; None for one that leaves nothing.
    """

    def __init__(
        self, ids: Mapping[str, int], *, unknown: int | None, special: Mapping[str, int | None]
    ) -> None:
        self._starts = {piece: _packed(number) for piece, number in ids.items() if piece[:2] != "##"}
        self._continues = {piece[2:]: _packed(number) for piece, number in ids.items() if piece[:2] == "##"}
        self._longest = max(map(len, ids))
        self._unknown = _packed(unknown)
        self._special = {text: _packed(number) for text, number in special.items()}
        self._at_special = re.compile(f"({'|'.join(map(re.escape, special)) or '(?!)'})")
        self._characters = _Characters()
        self._chunks = _Chunks(self._spell)

    def blocks(self, texts: Sequence[str]) -> Iterator[tuple[int, list[bytes]]]:
        """Tokenise texts some at a time, so that memory does not grow with their number.

        Yields:
            The index of a block's first text, and the ids of each text of the block.
        """
        start = size = 0
        for end, text in enumerate(texts, start=1):
            size += len(text)
            if size >= _BLOCK_CHARACTERS or end - start == _BLOCK_TEXTS or end == len(texts):
                yield start, self._block(texts[start:end])
                start, size = end, 0

    def _block(self, texts: Sequence[str]) -> list[bytes]:
        if self._needs_care(texts):
            return list(map(self._with_care, texts))
        join, pieces = b"".join, self._chunks.__getitem__
        return [join(map(pieces, text.split())) for text in texts]

    def _needs_care(self, texts: Sequence[str]) -> bool:
        # One search of the whole block costs less than a look at each text.
        joined = "\n".join(texts)
        if len(joined) > 2 * _BLOCK_CHARACTERS:
            return True
        return any(stray in joined for stray in _STRAY) or any(text in joined for text in self._special)

    def _with_care(self, text: str) -> bytes:
        """The ids of a text that is very long or holds special strings or stray separators."""
        found = bytearray()
        for part in self._at_special.split(text):
            if part in self._special:
                found += self._special[part]
            elif part:
                for window in _windows(_stray.sub("", part)):
                    found += b"".join(map(self._chunks.__getitem__, window.split()))
        return bytes(found)

    def _spell(self, chunk: str) -> bytes:
        if chunk.isascii() and chunk.isprintable():
            words = _ascii_words(chunk.lower())
        else:
            words = unicodedata.normalize("NFD", chunk).translate(self._characters).split()
        return b"".join(map(self._word, words))

    def _word(self, word: str) -> bytes:
        """The longest known pieces of a word from left to right, or the unknown one if any of it is unknown."""
        known = self._starts.get(word)
        if known is not None:
            return known
        if len(word) > _MAX_WORD:
            return self._unknown
        found, start, table = bytearray(), 0, self._starts
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = table.get(word[start:end])
                if piece is not None:
                    break
            else:
                return self._unknown
            found += piece
            start, table = end, self._continues
        return bytes(found)


def _packed(number: int | None) -> bytes:
    return b"" if number is None else number.to_bytes(2, sys.byteorder)


def _windows(text: str) -> Iterator[str]:
    """Cut a text into windows where no word is cut."""
    start = 0
    while start < len(text):
        cut = _safe_cut.search(text, start + _WINDOW)
        end = cut.start() if cut else len(text)
        yield text[start:end]
        start = end
