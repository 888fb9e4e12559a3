"""Leave to send one request through a circuit, and the answer when there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

from attrs import frozen

Result = Literal["success", "failure", "neutral"]
"""What a request says of the server's health; neutral is nothing."""


@frozen
class Refusal:
    """No permit now. ``retry_after`` is in seconds, ``math.inf`` when an operator holds the circuit open."""

    name: str
    retry_after: float


class Permit:
    """Leave to send one request. The first report counts, later ones do nothing.

    Leaving the ``with`` block without a report is neutral: a cancelled call says nothing of the server.
    """

    __slots__ = ("_report", "_ticket")

    def __init__(self, report: Callable[[int, Result], None], ticket: int) -> None:
        self._report: Callable[[int, Result], None] | None = report
        self._ticket = ticket

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.settle("neutral")

    def success(self) -> None:
        """The server answered as it should."""
        self.settle("success")

    def failure(self) -> None:
        """The server failed."""
        self.settle("failure")

    def neutral(self) -> None:
        """Nothing was learned of the server: a refusal for cause, a 429, a cancellation."""
        self.settle("neutral")

    def settle(self, result: Result) -> None:
        """Report a result; only the first report counts."""
        report = self._report
        if report is not None:
            self._report = None
            report(self._ticket, result)
