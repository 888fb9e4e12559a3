"""Texts that another call is embedding right now are waited for, not sent again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final

from attrs import evolve

from llmopt.engine.flights import Flight, Flights, Table
from llmopt.errors import DeadlineExceeded, LLMOptError, LocalRejection
from llmopt.operations.recover import Recovered
from llmopt.operations.together import together
from llmopt.policies.deadline import Deadline

Work = Callable[[tuple[str, ...]], Coroutine[Any, Any, Recovered]]
"""Embeds some texts, whatever it takes."""

_Places = list[tuple[int, int]]
"""Pairs: where a text stands here, and where it stands in somebody's flight."""


class SharedWork:
    """Embeds texts for one call, together with all other calls of the same kind.

    Args:
        flights: the client's.
        key: provider, model and every option that changes a vector.
        deadline: of this call; it bounds this call's waiting only.
    """

    def __init__(self, flights: Flights, key: tuple[object, ...], deadline: Deadline) -> None:
        self._flights: Final = flights
        self._key: Final = key
        self._deadline: Final = deadline

    def run(self, texts: tuple[str, ...], work: Work) -> Awaitable[Recovered]:
        """What can be had of distinct texts. Must be awaited at once.

        Args:
            texts: the texts.
            work: embeds those that nobody embeds yet.
        """
        board = self._flights.here()
        table = board.table(self._key)
        if table.keys().isdisjoint(texts):
            return board.launch(work, table, texts).wait()
        return self._mixed(texts, work, table)

    async def _mixed(self, texts: tuple[str, ...], work: Work, table: Table) -> Recovered:
        mine: list[int] = []
        joined: dict[Flight[Recovered], _Places] = {}
        seats: dict[Flight[Recovered], dict[str, int]] = {}
        for at, text in enumerate(texts):
            if text not in table:
                mine.append(at)
                continue
            flight, names = table[text]
            if flight not in seats:
                seats[flight] = {name: place for place, name in enumerate(names)}
            joined.setdefault(flight, []).append((at, seats[flight][text]))
        waits = [self._join(flight, places) for flight, places in joined.items()]
        if mine:
            waits.append(self._own(texts, mine, work))
        found = Recovered()
        for part in await together(waits):
            found.add(part)
        return await self._again(texts, found, work)

    async def _own(self, texts: Sequence[str], mine: Sequence[int], work: Work) -> Recovered:
        recovered = await self._launch(tuple(texts[at] for at in mine), work).wait()
        return recovered.moved(dict(enumerate(mine)))

    async def _join(self, flight: Flight[Recovered], places: _Places) -> Recovered:
        try:
            async with asyncio.timeout(self._deadline.remaining() if self._deadline.bounded else None):
                recovered = await flight.wait()
        except TimeoutError:
            late = DeadlineExceeded("the deadline passed while waiting for the answer.", phase="coalesce")
            return Recovered(errors={at: late.copy() for at, _ in places})
        # What it cost is on the account of the call that sent it.
        return evolve(recovered.moved({place: at for at, place in places}), requests=0)

    async def _again(self, texts: Sequence[str], found: Recovered, work: Work) -> Recovered:
        """Texts whose owner was turned away on this side, or ran out of its own time, go once more."""
        left = [at for at, error in found.errors.items() if _was_the_owners(error, self._deadline)]
        if not left:
            return found
        again = await self._launch(tuple(texts[at] for at in left), work).wait()
        for at in left:
            del found.errors[at]
        found.add(again.moved(dict(enumerate(left))))
        return found

    def _launch(self, texts: tuple[str, ...], work: Work) -> Flight[Recovered]:
        """Send texts, and let others join those that nobody had sent."""
        board = self._flights.here()
        return board.launch(work, board.table(self._key), texts)


def _was_the_owners(error: LLMOptError, deadline: Deadline) -> bool:
    return isinstance(error, LocalRejection) and not deadline.expired()
