"""Token estimates: how many tokens texts have, by the user's counter or without a tokenizer.

A tokenizer takes more time than the rest of a call, and the right one is rarely known. So tokens are estimated from
characters and bytes, and the estimate is corrected by the usage that responses report, for each class of scripts by
itself: a vocabulary that has whole English words may have single bytes of Tamil.

No I/O, no awaiting, no clock and no lock. All calls with a model share a `TokenEstimator`; of two threads at once one
may overwrite what the other learned, which costs accuracy only. A counter of the user's runs wherever an estimate is
needed, on the event loop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from llmopt.errors import ConfigError

TokenCounter = Callable[[str], int]
"""The user's function: the tokens of a text."""

# cl100k counts of 3,400 pieces of real text (WordNet glosses, Python, JavaScript and JSON sources, manual pages in
# Chinese, Japanese and Russian) gave these factors. Characters per token: English 3.5 to 4.9, Python 4.1, JSON 3.8,
# JavaScript 3.0, numbers 2.2, Russian 2.5, Japanese 1.3, Chinese 1.0. Before any correction the estimate of a kind of
# text is 0.55 (numbers) to 1.35 (Russian) times the truth, and mostly within 15 %.
_PER_CHARACTER: Final = 0.25
_PER_FURTHER_BYTE: Final = 0.4
"""For UTF-8 bytes beyond one for each character: 2 for a Chinese character, 1 for a Cyrillic letter."""
_SCRIPTS: Final = (0.0, 0.35, 1.05, 1.85)
"""Bounds between the classes of scripts, in further bytes for each character: ASCII; Latin letters with accents;
Cyrillic, Greek, Hebrew and Arabic; the scripts of India and Thai; Chinese, Japanese and Korean."""
_MEMORY: Final = 0.2
_MIN_RATIO: Final = 0.1
_MAX_RATIO: Final = 8.0
"""Bounds of the correction, because a server may report any usage."""
_MAX_COUNTED: Final = 16_384
"""Texts whose counts are remembered: a text is estimated once for its batch, and once for each request with it."""

Scripts = Mapping[int, float]
"""Estimated tokens of texts by the class of their script, before correction."""


class TokenEstimator:
    """The tokens of texts for one model of one provider.

    Args:
        counter: counts them exactly; None to estimate, and to learn from the usage that responses report.
    """

    def __init__(self, counter: TokenCounter | None = None) -> None:
        self._counter: Final = counter
        self._counted: dict[tuple[int, int], int] = {}
        self._ratios: Final = [1.0] * (len(_SCRIPTS) + 1)
        self._factor = _PER_CHARACTER

    def __repr__(self) -> str:
        if self._counter is not None:
            return "TokenEstimator(counter)"
        return f"TokenEstimator(ratios={', '.join(f'{ratio:.2f}' for ratio in self._ratios)})"

    def estimate(self, text: str) -> int:
        """The tokens of a text, at least 1.

        Raises:
            ConfigError: the counter returned no whole number, or raised.
        """
        if self._counter is not None:
            return self._count(self._counter, text)
        if text.isascii():
            return int(len(text) * self._factor) + 1
        script, tokens = _measure(text)
        return int(tokens * self._ratios[script]) + 1

    def total(self, texts: Sequence[str]) -> int:
        """The tokens of several texts: the sum of their estimates."""
        if self._counter is None and all(map(str.isascii, texts)):
            factor = self._factor
            return sum([int(length * factor) for length in map(len, texts)]) + len(texts)
        return sum(map(self.estimate, texts))

    def learn(self, texts: Sequence[str], actual: int) -> None:
        """Correct the estimate: texts had ``actual`` tokens.

        They are estimated again. The estimate from before the request was sent knows nothing of the corrections since:
        behind a rate limit, a hundred responses then repeated the same correction, and estimates swung between 6 and
        1,200 tokens for texts of 100.

        In a mix of scripts each class is corrected by its part in the error. This is the normalised least mean squares
        filter (Widrow and Hoff, 1960; Haykin, "Adaptive Filter Theory"), which for a single class is an exponential
        average.
        """
        if actual <= 0 or not texts or self._counter is not None:
            return
        if all(map(str.isascii, texts)):
            # What the filter comes to for this class alone, written out: it is the usual case of every response.
            ratio = self._ratios[0]
            wanted = ratio * actual / self.total(texts)
            ratio += _MEMORY * (min(_MAX_RATIO, max(_MIN_RATIO, wanted)) - ratio)
            self._ratios[0] = ratio
            self._factor = _PER_CHARACTER * ratio
        else:
            self._learn_mix(texts, actual)

    def _learn_mix(self, texts: Sequence[str], actual: int) -> None:
        parts = [0.0] * len(self._ratios)
        for text in texts:
            script, tokens = _measure(text)
            parts[script] += tokens
        plain = sum(parts)
        wanted = min(_MAX_RATIO * plain, max(_MIN_RATIO * plain, float(actual - len(texts))))
        error = wanted - sum(ratio * part for ratio, part in zip(self._ratios, parts, strict=True))
        step = _MEMORY * error / sum(part * part for part in parts)
        for script, part in enumerate(parts):
            self._ratios[script] = min(_MAX_RATIO, max(_MIN_RATIO, self._ratios[script] + step * part))
        self._factor = _PER_CHARACTER * self._ratios[0]

    def _count(self, counter: TokenCounter, text: str) -> int:
        # By hash, so that no text is kept alive.
        key = (len(text), hash(text))
        tokens = self._counted.get(key)
        if tokens is None:
            tokens = _checked_count(counter, text)
            if len(self._counted) >= _MAX_COUNTED:
                self._counted.clear()
            self._counted[key] = tokens
        return tokens


def _measure(text: str) -> tuple[int, float]:
    """The class of a text's script, and its tokens before correction."""
    characters = len(text)
    if text.isascii():
        return 0, characters * _PER_CHARACTER
    # A lone surrogate is refused elsewhere; it must not raise UnicodeEncodeError here.
    further = len(text.encode(errors="surrogatepass")) - characters
    return bisect_left(
        _SCRIPTS, further / characters
    ), characters * _PER_CHARACTER + further * _PER_FURTHER_BYTE


def _checked_count(counter: TokenCounter, text: str) -> int:
    try:
        tokens = counter(text)
    except Exception as error:  # noqa: BLE001 - whatever it is, the counter is at fault
        # Without its text, which may quote the input.
        raise ConfigError(
            f"token_counter raised {type(error).__name__} for a text of {len(text)} characters; it must return the "
            "number of its tokens."
        ) from None
    if type(tokens) is not int or tokens < 0:
        wrong = tokens if type(tokens) in (int, float, bool) else type(tokens).__name__
        raise ConfigError(
            f"token_counter must return a whole number of tokens, 0 or more, and returned {wrong!r:.40}; "
            "for a tokenizer write lambda text: len(tokenizer.encode(text))."
        )
    return max(1, tokens)
