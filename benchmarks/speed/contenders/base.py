"""What a contender is asked to do. Nothing but the standard library is imported here; numpy is when needed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MODEL = "text-embedding-3-small"
KEY = "sk-benchmark"


@dataclass(frozen=True)
class Setting:
    """Where and how much.

    Attributes:
        base_url: of the server, with ``/v1`` at its end.
        batch: texts per request.
        in_flight: requests at once.
    """

    base_url: str
    batch: int
    in_flight: int


class Client:
    """A contender's client, used as its documentation shows.

    ``ask`` and ``models`` are what is measured. ``rows`` makes one float32 array of what ``ask`` gave; in the
    cases with many texts that is part of what is measured too, for that is what vectors are wanted as.

    Attributes:
        note: what it does differently from the others in this case, "" for nothing.
    """

    note = ""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    async def ask(self, texts: Sequence[str]) -> Any:
        """The answer to one request, in the form that the client gives it."""
        raise NotImplementedError

    def rows(self, found: Any) -> NDArray[np.float32]:
        """That answer as one array."""
        raise NotImplementedError

    async def models(self) -> int:
        """List the models; how many there are."""
        raise NotImplementedError

    async def bulk(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """All texts in batches, so many at once, into one array."""
        size = self.setting.batch
        space: list[NDArray[np.float32]] = []

        async def one(start: int) -> None:
            import numpy as np

            rows = self.rows(await self.ask(texts[start : start + size]))
            if not space:
                space.append(np.empty((len(texts), rows.shape[1]), np.float32))
            space[0][start : start + len(rows)] = rows

        starts = iter(range(0, len(texts), size))

        async def work() -> None:
            for start in starts:
                await one(start)

        await asyncio.gather(*(work() for _ in range(self.setting.in_flight)))
        return space[0]

    async def stored(self, texts: Sequence[str], path: str) -> int:
        """All texts in batches, their rows into a file as they come; how many rows."""
        return await store(self, texts, path)

    async def close(self) -> None:
        """Let connections go."""


class SyncClient:
    """A client without ``await``."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def ask(self, texts: Sequence[str]) -> Any:
        """As `Client.ask`."""
        raise NotImplementedError

    def close(self) -> None:
        """As `Client.close`."""


async def store(client: Client, texts: Sequence[str], path: str) -> int:
    """What a program would write around a client that has no such thing: workers, and a file mapped as an array."""
    size = client.setting.batch
    first = client.rows(await client.ask(texts[:size]))
    with open(path, "wb") as file:  # noqa: ASYNC230, PTH123 # a program like this does
        file.truncate(4 * len(texts) * first.shape[1])

        def write(start: int, rows: NDArray[np.float32]) -> None:
            file.seek(4 * start * rows.shape[1])
            file.write(rows.data)

        write(0, first)
        starts = iter(range(size, len(texts), size))

        async def work() -> None:
            for start in starts:
                write(start, client.rows(await client.ask(texts[start : start + size])))

        await asyncio.gather(*(work() for _ in range(client.setting.in_flight)))
    return len(texts)
