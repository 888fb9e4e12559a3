"""What a client remembers of a model from one call to the next."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from llmopt.operations.learned import LearnedFile
from llmopt.operations.sizes import LearnedSizes
from llmopt.policies.tokens import TokenEstimator
from llmopt.values.limits import BatchLimit

Kind = tuple[int | None, str | None, bytes]
"""The options of a call that change its vectors: dimensions, type of input, everything else as JSON."""


class ModelMemory:
    """One model of one provider.

    Args:
        name: provider, endpoints and model, under which sizes are kept for the next process.
        file: where they are kept.

    Attributes:
        estimator: tokens of a text, corrected by what answers report.
        length: length of the model's own vectors as first seen, None before.
        answering: which model answers and when that was written down, by the key under which it is kept.
        declared: limits as plugin, server and configuration declare them, by the options of the call.
    """

    def __init__(self, name: str, file: LearnedFile) -> None:
        self._name: Final = name
        self._file: Final = file
        self._sizes: LearnedSizes | None = None
        self.estimator: Final = TokenEstimator()
        self.length: int | None = None
        self.answering: Final[dict[bytes, tuple[str, float]]] = {}
        self.declared: Final[dict[Kind, BatchLimit]] = {}

    def sizes(self, declared: BatchLimit) -> LearnedSizes:
        """What was learned of sizes, in this process or in one before."""
        if self._sizes is None:
            self._sizes = LearnedSizes(
                declared, wall=time.time, state=self._file.get(self._name), keep=self._keep
            )
        return self._sizes

    def _keep(self, state: Mapping[str, Any]) -> None:
        self._file.put(self._name, state)
