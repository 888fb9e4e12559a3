"""What came of one contender in one case: counted by the server, checked vector by vector, said in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from attrs import field, frozen

from tests.faults import vector_for

WAITED_S = 0.9  # a pause between two requests that is a wait worth telling a caller of


@frozen(kw_only=True)
class Outcome:
    """One cell of the table.

    Attributes:
        requests: requests that reached the server, the warm-up not counted.
        seconds: from the call to its end, measured by the contender's process.
        good: vectors that are those of their texts.
        count: texts.
        wrong: rows given as good that are not the vector of their text.
        rows: how many rows were given, None without any.
        error: name of the exception, None without one.
        retry_after: seconds that the exception says to wait, None if it does not.
        still_waiting: whether the call was given up at the end of the window.
        longest_pause: seconds, the longest time without a request while the call was under way.
        events: waits that a call-back of the contender told of.
        logs: log records that spoke of waiting.
        exit_code: of the contender's process; None when it had to be killed.
        message: text of the exception.
        broken: why there is no outcome at all.
    """

    requests: int = 0
    seconds: float = 0.0
    good: int = 0
    count: int = 0
    wrong: int = 0
    rows: int | None = None
    error: str | None = None
    retry_after: float | None = None
    still_waiting: bool = False
    longest_pause: float = 0.0
    events: tuple[str, ...] = field(default=(), converter=tuple)
    logs: tuple[str, ...] = field(default=(), converter=tuple)
    exit_code: int | None = 0
    message: str = ""
    broken: str | None = None

    @property
    def correct(self) -> bool:
        """Whether every row that was given as good is right."""
        return not self.wrong and self.rows in (None, self.count)

    @property
    def visible(self) -> str:
        """How a wait could be seen while it lasted: "event", "log", "silent", or "" when there was none."""
        if self.longest_pause < WAITED_S:
            return ""
        return "event" if self.events else "log" if self.logs else "silent"


def outcome_of(
    report: dict[str, Any], texts: Sequence[str], times: Sequence[float], exit_code: int | None
) -> Outcome:
    """Judge a worker's report.

    Args:
        report: what the worker wrote.
        texts: what it was to embed.
        times: when its requests arrived, in seconds from the moment it was told to start.
        exit_code: how its process ended.
    """
    rows, seconds = report.get("rows"), report["seconds"]
    good = [text is not None and _is_right(text, row) for text, row in zip(texts, rows or (), strict=False)]
    given = sum(row is not None for row in rows or ())
    return Outcome(
        requests=len(times),
        seconds=seconds,
        good=sum(good),
        count=len(texts),
        wrong=given - sum(good),
        rows=None if rows is None else len(rows),
        error=report.get("error"),
        retry_after=report.get("retry_after"),
        still_waiting=report.get("still_waiting", False),
        longest_pause=_longest_pause(times, seconds),
        events=report["events"],
        logs=report["logs"],
        exit_code=exit_code,
        message=report.get("message", ""),
    )


def _is_right(text: str, row: Any) -> bool:
    return row is not None and np.array_equal(np.asarray(row, dtype=np.float32), vector_for(text))


def _longest_pause(times: Sequence[float], seconds: float) -> float:
    """The longest time without a request; before the first one nobody has been refused."""
    moments = [*times, seconds]
    pauses = [later - earlier for earlier, later in zip(moments, moments[1:], strict=False)]
    return max(pauses, default=0.0)
