"""What came of one contender in one case: counted by the server, checked vector by vector."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from attrs import field, frozen

from tests.support.faults import vector_for

WAITED_S = 1.5  # a pause that is a wait worth telling a caller of
LEAD_S = 0.5  # seconds before the end of a pause at which a caller must know of it
NOISE_S = 0.05  # between two processes' looks at one clock

Told = tuple[float, str]  # seconds from the start, and what was said


@frozen(kw_only=True)
class Outcome:
    """One cell of the table.

    Attributes:
        requests: requests that reached the server, the warm-up not counted.
        seconds: from the call to its end, as the contender's process measures it.
        count: texts.
        rows: how many rows were given, failed ones included; None without any.
        good: rows that are the vector of their text.
        wrong: rows given as good that are not.
        sorted_right: whether all would be right if the caller sorted them by the `index` beside each.
        error: name of the exception, None without one.
        retry_after: seconds that the exception says to wait, None if it does not.
        still_waiting: whether the call was given up at the end of the window.
        pause: start and end of the longest time without a request while the call was under way.
        events: waits that a call-back of the contender told of.
        logs: log records that spoke of waiting.
        exit_code: of the contender's process; None when it had not ended after some seconds.
        message: text of the exception.
        broken: why there is no outcome at all.
    """

    requests: int = 0
    seconds: float = 0.0
    count: int = 0
    rows: int | None = None
    good: int = 0
    wrong: int = 0
    sorted_right: bool = False
    error: str | None = None
    retry_after: float | None = None
    still_waiting: bool = False
    pause: tuple[float, float] = (0.0, 0.0)
    events: tuple[Told, ...] = ()
    logs: tuple[Told, ...] = ()
    exit_code: int | None = 0
    message: str = ""
    broken: str | None = field(default=None)

    @property
    def correct(self) -> bool:
        """Whether every row that was given as good is right."""
        return not self.wrong and self.rows in (None, self.count)

    @property
    def visible(self) -> str:
        """How the longest wait could be seen while it lasted: "event", "log", "silent"; "" when there was none."""
        begin, end = self.pause
        if end - begin < WAITED_S:
            return ""

        def seen(told: Iterable[Told]) -> bool:
            return any(begin - NOISE_S <= when <= end - LEAD_S for when, _ in told)

        return "event" if seen(self.events) else "log" if seen(self.logs) else "silent"


def outcome_of(
    report: dict[str, Any], texts: Sequence[str], arrivals: Sequence[float], exit_code: int | None
) -> Outcome:
    """Judge a worker's report.

    Args:
        report: what the worker wrote; its moments are on the monotonic clock, which all processes share.
        texts: what it was to embed.
        arrivals: when its requests arrived, on that clock.
        exit_code: how its process ended.
    """
    start, rows = report["start"], report.get("rows")
    good = 0 if rows is None else _good(texts, rows)
    return Outcome(
        requests=len(arrivals),
        seconds=report["seconds"],
        count=len(texts),
        rows=None if rows is None else len(rows),
        good=good,
        wrong=sum(row is not None for row in rows or ()) - good,
        sorted_right=_good(texts, _sorted(rows, report.get("indices"))) == len(texts),
        error=report.get("error"),
        retry_after=report.get("retry_after"),
        still_waiting=report.get("still_waiting", False),
        pause=_longest_pause([when - start for when in arrivals], report["seconds"]),
        events=tuple((when - start, text) for when, text in report["events"]),
        logs=tuple((when - start, text) for when, text in report["logs"]),
        exit_code=exit_code,
        message=report.get("message", ""),
    )


def _good(texts: Sequence[str], rows: Sequence[Any]) -> int:
    """How many rows are, bit for bit, the vector of the text in the same place."""
    return sum(
        row is not None and np.array_equal(np.asarray(row, dtype=np.float32), vector_for(text))
        for text, row in zip(texts, rows, strict=False)
    )


def _sorted(rows: Sequence[Any] | None, indices: Sequence[int] | None) -> Sequence[Any]:
    if rows is None or indices is None:
        return ()
    return [row for _, row in sorted(zip(indices, rows, strict=True), key=lambda pair: pair[0])]


def _longest_pause(arrivals: Sequence[float], seconds: float) -> tuple[float, float]:
    """The longest time without a request, from the first one to the end of the call."""
    return max(pairwise([*arrivals, seconds]), key=lambda pause: pause[1] - pause[0], default=(0.0, 0.0))
