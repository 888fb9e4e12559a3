"""What a client remembers of a model from one call to the next."""

from __future__ import annotations

from typing import Final

from llmopt.policies.tokens import TokenEstimator


class ModelMemory:
    """One model of one provider.

    Attributes:
        estimator: tokens of a text, corrected by what answers report.
        length: length of the model's own vectors as first seen, None before.
    """

    def __init__(self) -> None:
        self.estimator: Final = TokenEstimator()
        self.length: int | None = None
