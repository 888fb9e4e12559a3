"""What the server does in each case, and the texts that are embedded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from attrs import frozen

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

LONG_S = 60.0  # seconds of patience with a client that retries
DEADLINE_S = 30.0  # seconds that a caller has
SHORT_S = 10.0  # seconds after which a client that waits for 90 has shown that it does


@frozen
class Case:
    """One row of the table.

    Attributes:
        name: for --only.
        title: for the table.
        count: how many texts are embedded in one call.
        arm: prepares the server, after the warm-up.
        window: seconds after which the call is given up.
        deadline: seconds that the contender is told to take at most, by whatever it has for that.
        again: whether a first call is made by an earlier process, whose requests are not counted.
    """

    name: str
    title: str
    count: int
    arm: Callable[[FaultServer], None]
    window: float = LONG_S
    deadline: float | None = None
    again: bool = False

    @property
    def texts(self) -> list[str]:
        """The texts, no two alike."""
        return [f"text {number} of {self.name}" for number in range(self.count)]


def _once(reply: Playable) -> Callable[[FaultServer], None]:
    return lambda server: server.play(reply)


def _always(reply: Playable) -> Callable[[FaultServer], None]:
    return lambda server: server.default(reply)


def _payload(change: Callable[[Payload], object]) -> Callable[[FaultServer], None]:
    """Answer once with a changed payload, in the encoding that was asked for."""
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
    """One number of the second vector is NaN."""
    second = request.json()["input"][1]

    def vector(text: str, dimensions: int) -> Vector:
        numbers = vector_for(text, dimensions).copy()
        numbers[-1] = np.nan if text == second else numbers[-1]
        return numbers

    return embeddings_answer(request, vectors=vector)


def _twice_the_first(payload: Payload) -> None:
    payload["data"][1] = payload["data"][0]


def _half(request: Request) -> Script:
    """The first half of a good answer, and then the end of the connection."""
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
        "retry-after-90", "429 with Retry-After 90, for ever", 4, _always(retry_after("90")), window=SHORT_S
    ),
    Case(
        "retry-after-90-in-30",
        "the same, and the caller has 30 s",
        4,
        _always(retry_after("90")),
        window=DEADLINE_S + 5,
        deadline=DEADLINE_S,
    ),
    Case("503", "503 for ever", 4, _always(_server_error())),
    Case("429", "429 for ever, no Retry-After", 4, _always(rate_limited())),
    Case("quota", "429 insufficient_quota", 4, _always(_quota())),
    Case("reset", "connection reset, once", 4, _once(Script([Reset()]))),
    Case("max-64", "200 texts, server takes 64 and does not say so", 200, _MAX_64),
    Case("max-64-again", "the same in a new process", 200, _MAX_64, again=True),
    Case("poison", "300 texts, 1 refused without saying which", 300, _poison),
    Case("parameter", "300 texts, 400 that names a parameter", 300, _always(_bad_parameter())),
    Case("count", "answer lacks the last vector, once", 4, _payload(lambda value: value["data"].pop())),
    Case(
        "order", "answer in reverse order, indices right", 4, _payload(lambda value: value["data"].reverse())
    ),
    Case("duplicate", "answer has vector 0 twice, not 1; once", 4, _payload(_twice_the_first)),
    Case("nan", "NaN in one vector, once", 4, _once(_with_nan)),
    Case("truncated", "body ends half way, once", 4, _once(_half)),
)
