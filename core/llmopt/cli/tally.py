"""What an embedding run came to, in numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from llmopt.cli.text import count, number
from llmopt.errors import LLMOptError
from llmopt.values.embeddings import EmbeddedPart

_MOST_ERRORS: Final = 1_000
_MOST_TOLD: Final = 5


@frozen(kw_only=True)
class FailedText:
    """A text that could not be embedded.

    Attributes:
        index: its row.
        line: its line in the input.
        error: why.
    """

    index: int
    line: int
    error: LLMOptError


class Tally:
    """Counts texts, failures, requests and tokens as parts arrive.

    Args:
        now: a clock in seconds.

    Attributes:
        texts: texts answered, well or not.
        failed: those that failed.
        errors: the first of them, with their lines.
        requests: HTTP requests made, whatever became of them.
        tokens: tokens of the texts, as the provider counted them.
        dimensions: numbers in a vector, 0 while no vector is there.
        model: who answered.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now: Final = now
        self._started: Final = now()
        self.texts = 0
        self.failed = 0
        self.errors: Final[list[FailedText]] = []
        self.requests = 0
        self.tokens = 0
        self.dimensions = 0
        self.model = ""

    @property
    def good(self) -> int:
        """Texts that have their vector."""
        return self.texts - self.failed

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return self._now() - self._started

    def take(self, part: EmbeddedPart, lines: list[int]) -> None:
        """Count a part whose texts stand in these lines."""
        self.texts += len(lines)
        self.failed += len(part.errors)
        room = _MOST_ERRORS - len(self.errors)
        for index in sorted(part.errors)[: max(0, room)]:
            line = lines[index - part.start]
            self.errors.append(FailedText(index=index, line=line, error=part.errors[index]))
        self.tokens += part.usage.prompt_tokens or part.usage.total_tokens
        self.dimensions = self.dimensions or int(part.vectors.shape[1])
        self.model = self.model or part.model

    def sent(self, stats: Mapping[str, Any]) -> None:
        """Count the requests by a client's ``stats()``."""
        self.requests = sum(at["requests"] for entry in stats.values() for at in entry.values())

    def line(self, file: str, skipped: int) -> str:
        """The closing line for people."""
        seconds = self.seconds
        parts = [
            f"{count(self.texts, 'text')} -> float32 {self.texts:,} x {self.dimensions:,} in {file}",
            count(self.requests, "request"),
            count(self.tokens, "token"),
            f"{seconds:.1f} s",
            f"{number(self.good / seconds if seconds else 0)} texts/s",
        ]
        if skipped:
            parts.append(f"{count(skipped, 'blank line')} skipped")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        return ", ".join(parts)

    def failures(self) -> list[str]:
        """The first failures, each in one line, and how many more there are."""
        told = [f"line {each.line}: {each.error.message}" for each in self.errors[:_MOST_TOLD]]
        more = self.failed - len(told)
        return [*told, f"and {more:,} more."] if more else told

    def table(self) -> dict[str, Any]:
        """The same for machines."""
        seconds = self.seconds
        return {
            "texts": self.texts,
            "shape": [self.texts, self.dimensions],
            "failed": self.failed,
            "requests": self.requests,
            "tokens": self.tokens,
            "seconds": round(seconds, 3),
            "texts_per_second": round(self.good / seconds) if seconds else 0,
            "errors": [
                {"index": each.index, "line": each.line, **error_table(each.error)} for each in self.errors
            ],
        }


def error_table(error: BaseException) -> dict[str, Any]:
    """An error for machines."""
    from llmopt.cli.exits import sentence_of

    return {"type": type(error).__name__, "message": sentence_of(error)}
