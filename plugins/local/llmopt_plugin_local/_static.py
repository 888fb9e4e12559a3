"""The embedded default model: a table with one vector for each word piece.

The vector of a text is the mean of the vectors of its pieces, at unit length. The table comes with the package;
``data/NOTICE.txt`` says where it is from and ``scripts/make_static_table.py`` makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from llmopt_plugin_local._wordpiece import WordPiece

_TABLE = "static-minilm-256-int8.npz"
# 256 numbers of an int8 cannot overflow an int16, and 64 keep the loop over the pieces of a segment short.
_SEGMENT = 64
# Rows summed at a time: 1,024 rows of 512 bytes, twice, stay in the processor's cache.
_ROWS = 1024


def _read(member: str) -> NDArray[np.generic]:
    path = resources.files("llmopt_plugin_local") / "data" / _TABLE
    with path.open("rb") as file, np.load(file) as members:
        array: NDArray[np.generic] = members[member]
    return array


def read_vocabulary() -> list[str]:
    """The word pieces of the packaged table: row i of the table belongs to piece i."""
    text: bytes = _read("vocab").item()
    return text.decode().split("\n")


class StaticModel:
    """Embeds texts with numpy alone, some hundred thousand short ones a second.

    Several threads may use one instance. Use ``load``, which makes one instance per process.

    Attributes:
        name: the model's name.
        dimensions: numbers per vector, 256.
    """

    name: ClassVar[str] = "static-minilm-256"
    dimensions: ClassVar[int] = 256
    _loaded: ClassVar[dict[str, StaticModel]] = {}

    def __init__(self, table: NDArray[np.int8], vocabulary: Sequence[str]) -> None:
        # As int16 the rows add up without conversion, and exactly; float32 would be twice the memory to walk.
        self._table = table.astype(np.int16)
        ids = {piece: number for number, piece in enumerate(vocabulary)}
        # A word without known pieces says nothing about the text: it leaves no trace.
        self._words = WordPiece(ids, unknown=None, special={"[PAD]": ids["[PAD]"], "[UNK]": None})

    @classmethod
    def load(cls) -> StaticModel:
        """Give the process's model; the first call reads it from the package (15 MB in memory)."""
        # No lock: a child forked while another thread holds it would wait for ever. Of two first callers at once
        # both read the table, and one of the two models is kept.
        if cls.name not in cls._loaded:
            cls._loaded.setdefault(cls.name, cls(_read("emb").astype(np.int8, copy=False), read_vocabulary()))
        return cls._loaded[cls.name]

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Embed texts of any number and length.

        Args:
            texts: n strings.

        Returns:
            The vectors, float32, shape (n, 256), C-contiguous, row i for text i, each of unit length; and the
            number of word pieces that went into them. A text without any known piece, or with none but pieces
            that carry no weight (``!``, ``"``, ``#``, ``$``, ``%``, ``&``, ``'``, ``(``, ``)``, ``*``, ``+``),
            gives a row of zeros: its product with every other vector is 0.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        pieces = 0
        for start, rows in self._words.blocks(texts):
            ids = np.frombuffer(b"".join(rows), dtype=np.uint16)
            lengths = np.fromiter(map(len, rows), dtype=np.intp, count=len(rows)) // 2
            block = vectors[start : start + len(rows)]
            block[:] = self._sums(ids, lengths)
            _to_unit_length(block)
            pieces += len(ids)
        return vectors, pieces

    def _sums(self, ids: NDArray[np.uint16], lengths: NDArray[np.intp]) -> NDArray[np.int16 | np.int64]:
        """The sum of the rows of each text; ``ids`` are the texts' pieces one after another."""
        counts = np.maximum(-(-lengths // _SEGMENT), 1)
        if len(counts) == counts.sum():
            return self._segment_sums(ids, np.cumsum(lengths) - lengths, lengths)
        # A long text is several segments, the last of them shorter.
        owner = np.repeat(np.arange(len(counts)), counts)
        first = np.cumsum(counts) - counts
        offset = (np.arange(len(owner)) - first[owner]) * _SEGMENT
        starts = (np.cumsum(lengths) - lengths)[owner] + offset
        sums = self._segment_sums(ids, starts, np.minimum(lengths[owner] - offset, _SEGMENT))
        totals: NDArray[np.int64] = sums[first].astype(np.int64)
        for text in np.flatnonzero(counts > 1):
            totals[text] = sums[first[text] : first[text] + counts[text]].sum(axis=0, dtype=np.int64)
        return totals

    def _segment_sums(
        self, ids: NDArray[np.uint16], starts: NDArray[np.intp], lengths: NDArray[np.intp]
    ) -> NDArray[np.int16]:
        """The sum of the rows of ``ids[start : start + length]`` for each segment."""
        sums = np.zeros((len(starts), self.dimensions), dtype=np.int16)
        for begin in range(0, len(starts), _ROWS):
            part = slice(begin, begin + _ROWS)
            longest_first = np.argsort(-lengths[part], kind="stable")
            sums[begin + longest_first] = self._sorted_sums(
                ids, starts[part][longest_first], lengths[part][longest_first]
            )
        return sums

    def _sorted_sums(
        self, ids: NDArray[np.uint16], starts: NDArray[np.intp], lengths: NDArray[np.intp]
    ) -> NDArray[np.int16]:
        # Segments come longest first, so the segments with a k-th piece are always the first ones: step k adds the
        # k-th piece of all of them at once. That is ten times faster than np.add.reduceat over the rows.
        sums = np.zeros((len(starts), self.dimensions), dtype=np.int16)
        rows = np.empty_like(sums)
        having = len(lengths) - np.cumsum(np.bincount(lengths))[:-1]
        for k, many in enumerate(having.tolist()):
            # "clip" only because it writes straight into `rows`; every id is in the table.
            np.take(self._table, ids[starts[:many] + k], axis=0, out=rows[:many], mode="clip")
            sums[:many] += rows[:many]
        return sums


def _to_unit_length(vectors: NDArray[np.float32]) -> None:
    """Scale each row to unit length in place; a row of zeros stays unchanged."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    norms[norms == 0] = 1
    vectors /= norms[:, None]
