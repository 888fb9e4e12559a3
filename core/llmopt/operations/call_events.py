"""The events of one call of the user's: its start, and its end with what came of it.

No I/O: events go through the engine's telemetry to the log and to the user's listener. Durations are measured by the clock
that is passed in. `observed` awaits the work of the call, in the caller's task; nothing is shared.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sized
from operator import length_hint
from typing import Any, Final, Self, TypeVar

from llmopt.engine.attempt import CallScope
from llmopt.engine.telemetry import CANCELLED, OK
from llmopt.errors import LLMOptError, PartialFailure
from llmopt.policies.clock import Clock
from llmopt.values.events import CallEnd, CallStart

R = TypeVar("R")
_TOLD: Final = {"response_model": "model", "response_id": "id", "finish_reason": "finish_reason"}


class CallEvents:
    """Emits `CallStart` when it is made, and `CallEnd` when its ``with`` block ends, or by `end`.

    Args:
        scope: the call.
        clock: the time.
        asked: what the call asks for; without a length its number is not known yet.
        stream: whether the result is returned in parts.
    """

    def __init__(self, scope: CallScope, clock: Clock, asked: object = (), *, stream: bool = False) -> None:
        self._scope: Final = scope
        self._clock: Final = clock
        self._started: Final = clock.now()
        self._facts: Final[dict[str, Any]] = {"items": 0, "failures": 0}
        scope.emit(CallStart, operation=scope.operation, items=length_hint(asked), stream=stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.end(error or OK)

    def add(self, result: object) -> None:
        """Note what the result, or a part of it, tells of itself."""
        errors = result if isinstance(result, Mapping) else getattr(result, "errors", {})
        self._facts["items"] += len(result) if isinstance(result, Sized) else 1
        self._facts["failures"] += sum(isinstance(each, LLMOptError) for each in errors.values())
        if (usage := getattr(result, "usage", None)) is not None:
            before = self._facts.get("usage")
            self._facts["usage"] = usage if before is None else before + usage
        self._facts.update(
            (name, getattr(result, told)) for name, told in _TOLD.items() if hasattr(result, told)
        )

    def end(self, outcome: str | BaseException) -> None:
        """The call has ended, in one of the outcomes of a request or with an exception, which may have a part of the result."""
        if isinstance(outcome, PartialFailure):
            self.add(outcome.result)
        if isinstance(outcome, BaseException):
            outcome = type(outcome).__name__ if isinstance(outcome, Exception) else CANCELLED
        told = {"operation": self._scope.operation, "requests": self._scope.requests, **self._facts}
        self._scope.emit(CallEnd, outcome=outcome, seconds=self._clock.now() - self._started, **told)


async def observed(scope: CallScope, clock: Clock, work: Awaitable[R], asked: object = ()) -> R:
    """The result of the work, with the events of its call around those of its requests."""
    with scope.bound(), CallEvents(scope, clock, asked) as events:
        result = await work
        events.add(result)
        return result
