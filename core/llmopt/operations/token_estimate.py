"""Token estimates: how many tokens a text has, without a tokenizer.

No I/O, no awaiting, no clock and no lock. All calls with a model share a `TokenEstimator`; of two threads at once one
may overwrite what the other learned, which costs accuracy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

# cl100k counts of 3,400 pieces of real text (WordNet glosses, Python, JavaScript and JSON sources, manual pages in
# Chinese, Japanese and Russian) gave these factors. Characters per token: English 3.5 to 4.9, Python 4.1, JSON 3.8,
# JavaScript 3.0, numbers 2.2, Russian 2.5, Japanese 1.3, Chinese 1.0. Before any correction the estimate of a kind of
# text is 0.55 (numbers) to 1.35 (Russian) times the truth, and mostly within 15 %.
_PER_CHARACTER: Final = 0.25
_PER_FURTHER_BYTE: Final = 0.4
"""For UTF-8 bytes beyond one for each character: 2 for a Chinese character, 1 for a Cyrillic letter."""
_MEMORY: Final = 0.2
_MIN_RATIO: Final = 0.1
_MAX_RATIO: Final = 8.0
"""Bounds of the correction, because a server may report any usage."""


class TokenEstimator:
    """Estimates the tokens of texts for one model at one endpoint, without a tokenizer.

    A tokenizer takes more time than the rest of a call, and the right one is rarely known. So tokens are
    estimated from characters and bytes, and the estimate is corrected by the usage that responses report.
    """

    __slots__ = ("_factor", "_ratio")

    def __init__(self) -> None:
        self._ratio = 1.0
        self._factor = _PER_CHARACTER

    def __repr__(self) -> str:
        return f"TokenEstimator(ratio={self._ratio:.2f})"

    def estimate(self, text: str) -> int:
        """The tokens of a text, at least 1."""
        if text.isascii():
            return int(len(text) * self._factor) + 1
        characters = len(text)
        # A lone surrogate is refused elsewhere; it must not raise UnicodeEncodeError here.
        further = len(text.encode(errors="surrogatepass")) - characters
        return int((characters * _PER_CHARACTER + further * _PER_FURTHER_BYTE) * self._ratio) + 1

    def total(self, texts: Sequence[str]) -> int:
        """The tokens of several texts: the sum of their estimates."""
        if all(map(str.isascii, texts)):
            factor = self._factor
            return sum([int(length * factor) for length in map(len, texts)]) + len(texts)
        return sum(map(self.estimate, texts))

    def learn(self, estimated: int, actual: int) -> None:
        """Correct the estimate: texts estimated at ``estimated`` tokens had ``actual`` ones."""
        if estimated <= 0 or actual <= 0:
            return
        ratio = self._ratio * (actual / estimated)
        self._ratio += _MEMORY * (min(_MAX_RATIO, max(_MIN_RATIO, ratio)) - self._ratio)
        self._factor = _PER_CHARACTER * self._ratio
