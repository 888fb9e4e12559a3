"""A named fault of the fault matrix, ready to be played."""

from __future__ import annotations

from attrs import frozen

from tests.support.faults.script import Playable, Script
from tests.support.faults.server import FaultServer


@frozen
class Fault:
    """One injection of one row: a reply to a request, or a script for a new connection.

    `row` is the row's id in the fault matrix ("N05"), `name` says which of its variants this is.
    """

    row: str
    name: str
    reply: Playable | None = None
    on_accept: Script | None = None

    def __str__(self) -> str:
        return f"{self.row}: {self.name}"

    def inject(self, server: FaultServer, times: int = 1) -> None:
        """Let the next request, or the next connection, meet this fault, `times` times."""
        if self.reply is not None:
            server.play(*[self.reply] * times)
        if self.on_accept is not None:
            server.on_accept(*[self.on_accept] * times)
