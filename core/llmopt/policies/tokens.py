"""How many tokens a text has, quickly and without a tokenizer.

A tokenizer costs more time than the rest of a call, and the right one is rarely known. So: a factor per
character and one per byte beyond it, then corrected by what answers report.

Where the factors come from: cl100k counts of 3,400 pieces of real text (WordNet glosses, Python, JavaScript and JSON
sources, manual pages in Chinese, Japanese and Russian). Characters per token: English 3.5 to 4.9, Python
4.1, JSON 3.8, JavaScript 3.0, numbers 2.2, Russian 2.5, Japanese 1.3, Chinese 1.0. With these factors the uncorrected
estimate of a kind of text is 0.55 (numbers) to 1.35 (Russian) times the truth, and mostly within 15 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_PER_CHARACTER: Final = 0.25
_PER_FURTHER_BYTE: Final = 0.4
"""For bytes of UTF-8 beyond one to a character: 2 for a Chinese character, 1 for a Cyrillic letter."""
_MEMORY: Final = 0.2
_FORGET: Final = 0.05
_LEAST: Final = 0.1
_MOST: Final = 8.0
"""Bounds of the correction: usage is what a server says."""


class TokenEstimator:
    """Tokens of texts for one model at one endpoint, corrected by what answers report."""

    __slots__ = ("_factor", "_high", "_ratio")

    def __init__(self) -> None:
        self._ratio = 1.0
        self._high = 1.0
        self._factor = _PER_CHARACTER

    def __repr__(self) -> str:
        return f"TokenEstimator(ratio={self._ratio:.2f}, high={self._high:.2f})"

    def estimate(self, text: str) -> int:
        """Tokens of a text, at least 1, as they are on average."""
        if text.isascii():
            return int(len(text) * self._factor) + 1
        characters = len(text)
        # A lone surrogate cannot be sent, but must not raise here.
        further = len(text.encode(errors="surrogatepass")) - characters
        return int((characters * _PER_CHARACTER + further * _PER_FURTHER_BYTE) * self._ratio) + 1

    def total(self, texts: Sequence[str]) -> int:
        """Tokens of all of these texts: the sum of their estimates."""
        if all(map(str.isascii, texts)):
            factor = self._factor
            return sum([int(length * factor) for length in map(len, texts)]) + len(texts)
        return sum(map(self.estimate, texts))

    def estimate_high(self, text: str) -> int:
        """Tokens of a text, rarely exceeded: for limits that a request must keep."""
        return int(self.estimate(text) * self._high) + 1

    def learn(self, estimated: int, actual: int) -> None:
        """Texts estimated at so many tokens together had so many."""
        if estimated <= 0 or actual <= 0:
            return
        found = actual / estimated
        ratio = self._ratio * found
        self._ratio += _MEMORY * (min(_MOST, max(_LEAST, ratio)) - self._ratio)
        self._factor = _PER_CHARACTER * self._ratio
        # Up at once, down slowly: near the highest of the last twenty answers.
        self._high = max(1.0, min(_MOST, found), self._high - _FORGET * (self._high - 1.0))
