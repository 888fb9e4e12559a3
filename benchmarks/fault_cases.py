"""The cases of the faults benchmark: what the server does, and how the result of a client is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
from attrs import field, frozen

from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    MaxItems,
    Playable,
    Poison,
    Request,
    Reset,
    Script,
    changed,
    cut,
    embeddings_answer,
    error_answer,
    json_answer,
    rate_limited,
    retry_after,
    vector_for,
)
from tests.support.faults.openai import Payload, Vector

MAX_WAIT_S: Final = 60.0
"""A call that takes longer is stopped."""
DEADLINE_S: Final = 30.0
"""The deadline of a caller who has one."""
SHORT_WAIT_S: Final = 10.0
"""Enough to see that a client waits for the 90 s that the server asks for."""
MIN_WAIT_S: Final = 1.5
"""A pause that is long enough to be reported to the caller."""
MIN_LEAD_S: Final = 0.5
"""The caller must know of a wait this long before its end."""
CLOCK_NOISE_S: Final = 0.05
"""Difference between the clock readings of two processes."""


@frozen
class Case:
    """One row of the table.

    Attributes:
        name: its name on the command line.
        title: its name in the table.
        count: number of texts that are embedded in one call.
        prepare: prepares the server, after the warm-up.
        window: seconds after which the call is stopped.
        deadline: the deadline or timeout that the client is given, in seconds.
        again: whether an earlier process makes the same call first; its requests are not counted.
    """

    name: str
    title: str
    count: int
    prepare: Callable[[FaultServer], None]
    window: float = MAX_WAIT_S
    deadline: float | None = None
    again: bool = False

    @property
    def texts(self) -> list[str]:
        """The texts, all different."""
        return [f"text {number} of {self.name}" for number in range(self.count)]


def _once(reply: Playable) -> Callable[[FaultServer], None]:
    return lambda server: server.play(reply)


def _always(reply: Playable) -> Callable[[FaultServer], None]:
    return lambda server: server.default(reply)


def _payload(change: Callable[[Payload], object]) -> Callable[[FaultServer], None]:
    """Respond once with a changed payload, in the requested encoding."""
    return lambda server: server.play(changed(change, encoding=None))


def _bad_parameter() -> Answer:
    error = {
        "message": "This model does not support specifying dimensions.",
        "type": "invalid_request_error",
        "param": "dimensions",
        "code": None,
    }
    return json_answer({"error": error}, status=400)


def _quota() -> Answer:
    text = "You exceeded your current quota, please check your plan and billing details."
    return error_answer(429, text, kind="insufficient_quota", code="insufficient_quota")


def _server_error() -> Answer:
    return error_answer(503, "The server is overloaded or not ready yet.", kind="server_error")


def _with_nan(request: Request) -> Answer:
    """A response in which one number of the second vector is NaN."""
    second = request.json()["input"][1]

    def vector(text: str, dimensions: int) -> Vector:
        numbers = vector_for(text, dimensions).copy()
        numbers[-1] = np.nan if text == second else numbers[-1]
        return numbers

    return embeddings_answer(request, vectors=vector)


def _duplicate_first(payload: Payload) -> None:
    payload["data"][1] = payload["data"][0]


def _half(request: Request) -> Script:
    """The first half of a good response, then the end of the connection."""
    whole = embeddings_answer(request)
    reply = cut(len(bytes(whole)) // 2, Close(), whole)(request)
    assert isinstance(reply, Script)
    return reply


def _poison(server: FaultServer) -> None:
    server.default(Poison("text 137 of poison"))


_MAX_64 = _always(MaxItems(64, state_limit=False))

CASES = (
    Case("retry-after-2", "429 with Retry-After 2, once", 4, _once(retry_after("2"))),
    Case(
        "retry-after-90",
        "429 with Retry-After 90, always",
        4,
        _always(retry_after("90")),
        window=SHORT_WAIT_S,
    ),
    Case(
        "retry-after-90-in-30",
        "the same, and the caller has 30 s",
        4,
        _always(retry_after("90")),
        window=DEADLINE_S + 5,
        deadline=DEADLINE_S,
    ),
    Case("503", "503 always", 4, _always(_server_error())),
    Case("429", "429 always, no Retry-After", 4, _always(rate_limited())),
    Case("quota", "429 insufficient_quota", 4, _always(_quota())),
    Case("reset", "connection reset, once", 4, _once(Script([Reset()]))),
    Case("max-64", "200 texts, the server accepts 64 and does not say so", 200, _MAX_64),
    Case("max-64-again", "the same in a new process", 200, _MAX_64, again=True),
    Case("poison", "300 texts, 1 rejected without saying which", 300, _poison),
    Case("parameter", "300 texts, 400 that names a parameter", 300, _always(_bad_parameter())),
    Case("count", "the last vector is missing, once", 4, _payload(lambda value: value["data"].pop())),
    Case(
        "order",
        "response in reverse order, indices correct",
        4,
        _payload(lambda value: value["data"].reverse()),
    ),
    Case("duplicate", "vector 0 twice instead of vector 1, once", 4, _payload(_duplicate_first)),
    Case("nan", "NaN in one vector, once", 4, _once(_with_nan)),
    Case("truncated", "body ends halfway, once", 4, _once(_half)),
)


# ---- outcomes

Notice = tuple[float, str]
"""Seconds from the start of the call, and a text."""


@frozen(kw_only=True)
class Outcome:
    """One cell of the table: what a client did in one case.

    Attributes:
        requests: requests that reached the server, without the warm-up.
        seconds: duration of the call, measured in the contender's process.
        count: number of texts.
        rows: number of rows returned, including failed ones; None without a result.
        good: rows that are the vector of their text.
        wrong: rows returned as good that are not.
        sorted_right: whether all rows would be correct if the caller sorted them by their `index`.
        error: name of the exception, None without one.
        retry_after: seconds to wait, as stated by the exception; None if it states none.
        still_waiting: whether the call was stopped at the end of the window.
        pause: start and end of the longest time without a request during the call.
        events: waits that a callback of the client reported.
        logs: log records about waiting.
        exit_code: of the contender's process; None if it had not ended after some seconds.
        message: text of the exception.
        not_run: why there is no outcome.
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
    events: tuple[Notice, ...] = ()
    logs: tuple[Notice, ...] = ()
    exit_code: int | None = 0
    message: str = ""
    not_run: str | None = field(default=None)

    @property
    def correct(self) -> bool:
        """Whether every row that was returned as good is correct."""
        return not self.wrong and self.rows in (None, self.count)

    @property
    def visible(self) -> str:
        """How the longest wait was reported while it lasted: "event", "log", "silent", or "" without a wait."""
        begin, end = self.pause
        if end - begin < MIN_WAIT_S:
            return ""

        def reported(notices: Iterable[Notice]) -> bool:
            return any(begin - CLOCK_NOISE_S <= when <= end - MIN_LEAD_S for when, _ in notices)

        return "event" if reported(self.events) else "log" if reported(self.logs) else "silent"


def outcome_of(
    report: dict[str, Any], texts: Sequence[str], arrivals: Sequence[float], exit_code: int | None
) -> Outcome:
    """Judge the report of a contender's process.

    Args:
        report: what the process wrote; its times are of the monotonic clock, which all processes share.
        texts: the texts of the call.
        arrivals: when its requests arrived, on the same clock.
        exit_code: exit code of the process.
    """
    start, rows = report["start"], report.get("rows")
    good = 0 if rows is None else _count_correct(texts, rows)
    return Outcome(
        requests=len(arrivals),
        seconds=report["seconds"],
        count=len(texts),
        rows=None if rows is None else len(rows),
        good=good,
        wrong=sum(row is not None for row in rows or ()) - good,
        sorted_right=_count_correct(texts, _sorted_by_index(rows, report.get("indices"))) == len(texts),
        error=report.get("error"),
        retry_after=report.get("retry_after"),
        still_waiting=report.get("still_waiting", False),
        pause=_longest_pause([when - start for when in arrivals], report["seconds"]),
        events=tuple((when - start, text) for when, text in report["events"]),
        logs=tuple((when - start, text) for when, text in report["logs"]),
        exit_code=exit_code,
        message=report.get("message", ""),
    )


def _count_correct(texts: Sequence[str], rows: Sequence[Any]) -> int:
    """Count the rows that are, bit for bit, the vector of the text at the same position."""
    return sum(
        row is not None and np.array_equal(np.asarray(row, dtype=np.float32), vector_for(text))
        for text, row in zip(texts, rows, strict=False)
    )


def _sorted_by_index(rows: Sequence[Any] | None, indices: Sequence[int] | None) -> Sequence[Any]:
    if rows is None or indices is None:
        return ()
    return [row for _, row in sorted(zip(indices, rows, strict=True), key=lambda pair: pair[0])]


def _longest_pause(arrivals: Sequence[float], seconds: float) -> tuple[float, float]:
    """Return the longest time without a request, from the first one to the end of the call."""
    return max(pairwise([*arrivals, seconds]), key=lambda pause: pause[1] - pause[0], default=(0.0, 0.0))
