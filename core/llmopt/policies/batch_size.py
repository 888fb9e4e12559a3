"""How many texts to put into one request: as many as the server takes.

Starts at the declared limit; a refusal or repeated time-outs halve it, ten clean full batches in a row
add a tenth, and a size that was refused is not tried again until that memory expires
(docs/development/resilience.md). Two things are ours: after a refusal it goes back to the largest size that is known to
be good rather than to the half, if that is more, so that looking for the limit from below costs one
request, not the throughput of a halved batch; and a limit that the server states replaces all guesses.

What was learned is a plain dict (`AdaptiveBatchSize.state`), to be kept per provider, endpoint and model. Its
times are therefore the wall clock's: a monotonic clock means nothing to the next process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeGuard

_CLEAN_TO_GROW: Final = 10
_GROWTH: Final = 1.1
_TIMEOUTS_TO_SHRINK: Final = 2
_EXPIRY_S: Final = 86_400.0
_VERSION: Final = 1


class AdaptiveBatchSize:
    """The size of batches for one endpoint and model, in items (or tokens, or bytes: one each).

    Attributes:
        changes: grows with everything worth keeping that was learned, see `state`.
    """

    __slots__ = (
        "_clean",
        "_expiry_s",
        "_good",
        "_most",
        "_refused",
        "_refused_until",
        "_size",
        "_timeouts",
        "_wall",
        "changes",
    )

    def __init__(
        self,
        most: int,
        *,
        wall: Callable[[], float],
        state: Mapping[str, Any] | None = None,
        expiry_s: float = _EXPIRY_S,
    ) -> None:
        """Start at ``most``, the declared limit that is never passed, or where ``state`` left off.

        Args:
            most: the plugin's or the user's limit.
            wall: the calendar's clock.
            state: what `state` once returned; anything else is ignored.
            expiry_s: how long a refusal is remembered.
        """
        self._most = most
        self._wall = wall
        self._expiry_s = expiry_s
        self._size = most
        self._good = 0
        self._refused: int | None = None
        self._refused_until = 0.0
        self._clean = 0
        self._timeouts = 0
        self.changes = 0
        if state is not None:
            self._restore(state)

    def __repr__(self) -> str:
        return f"BatchSize({self._size}, most={self._most}, good={self._good}, refused={self._refused})"

    @property
    def size(self) -> int:
        """The most to put into the next batch, at least 1."""
        return self._size

    def clean(self, count: int) -> None:
        """A batch of so many came through."""
        self._timeouts = 0
        self._good = max(self._good, count)
        if self._refused is not None and count >= self._refused:
            self._refused = None  # the refusal was about something else than the count
            self.changes += 1
        if count < self._size:
            return  # a batch that was not full says nothing about a fuller one
        self._clean += 1
        if self._clean >= _CLEAN_TO_GROW:
            self._clean = 0
            self._grow()

    def refused(self, count: int, *, stated: int | None = None) -> bool:
        """A batch of so many was too large; whether anything was learned.

        Args:
            count: what it held. One alone is never split: nothing is learned from it.
            stated: the limit that the answer states, None when it states none. One that the batch
                kept to explains nothing and is taken for none.
        """
        self._clean = self._timeouts = 0
        before = (self._size, self._refused)
        if stated is not None and 1 <= stated < count:
            self._good = stated
            self._remember(stated + 1)
            self._size = min(self._most, stated)
        elif count > 1:
            if self._good >= count:
                self._good = 0  # it takes less than it did
            self._remember(min(count, self._barrier()))
            self._size = max(1, min(self._size, max(count // 2, self._good)))
        if (self._size, self._refused) == before:
            return False
        self.changes += 1
        return True

    def timed_out(self, count: int) -> bool:
        """A batch of so many got no answer in time; whether the size was lowered for it.

        Batches of no more than half the size do not count: theirs was not a time-out of being large.
        """
        if count * 2 <= self._size or count <= 1:
            return False
        self._clean = 0
        self._timeouts += 1
        if self._timeouts < _TIMEOUTS_TO_SHRINK:
            return False
        self._timeouts = 0
        return self._set(min(self._size, count // 2))

    def state(self) -> dict[str, Any]:
        """What was learned, as plain values for any file format."""
        return {
            "version": _VERSION,
            "size": self._size,
            "good": self._good,
            "refused": self._refused,
            "refused_until": self._refused_until,
        }

    def _grow(self) -> None:
        grown = max(self._size + 1, int(self._size * _GROWTH))
        self._set(max(self._size, min(grown, self._most, self._barrier() - 1)))

    def _set(self, size: int) -> bool:
        if size == self._size:
            return False
        self._size = size
        self.changes += 1
        return True

    def _remember(self, refused: int) -> None:
        self._refused = refused
        self._refused_until = self._wall() + self._expiry_s

    def _barrier(self) -> int:
        """The smallest size that is known to be refused, or one that no batch reaches."""
        if self._refused is None:
            return self._most + 1
        left = self._refused_until - self._wall()
        # More time left than there ever was: the calendar was set back, and nobody knows how old it is.
        if 0 < left <= self._expiry_s:
            return self._refused
        self._refused = None
        return self._most + 1

    def _restore(self, state: Mapping[str, Any]) -> None:
        size, good, refused = state.get("size"), state.get("good"), state.get("refused")
        until = state.get("refused_until")
        if state.get("version") != _VERSION or not _is_count(size, 1) or not _is_count(good, 0):
            return
        self._size = min(size, self._most)
        self._good = min(good, self._most)
        if _is_count(refused, 1) and isinstance(until, (int, float)):
            self._refused, self._refused_until = refused, float(until)
            self._size = max(1, min(self._size, self._barrier() - 1))


def _is_count(value: object, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


# How many tokens a text has, quickly and without a tokenizer.
#
# A tokenizer costs more time than the rest of a call, and the right one is rarely known. So: a factor per
# character and one per byte beyond it, then corrected by what answers report.
#
# Where the factors come from: cl100k counts of 3,400 pieces of real text (WordNet glosses, Python, JavaScript and JSON
# sources, manual pages in Chinese, Japanese and Russian). Characters per token: English 3.5 to 4.9, Python
# 4.1, JSON 3.8, JavaScript 3.0, numbers 2.2, Russian 2.5, Japanese 1.3, Chinese 1.0. With these factors the uncorrected
# estimate of a kind of text is 0.55 (numbers) to 1.35 (Russian) times the truth, and mostly within 15 %.

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
