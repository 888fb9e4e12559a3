"""Reading the body of an answer, from wherever it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from llmopt.wire.body import Unpacker
from llmopt.wire.trip import Trip

_SUCCESS: Final = range(200, 300)


class Reader:
    """An answer under way: its head, and its body in pieces or whole.

    Attributes:
        trip: how far it has come.
        status: status of the answer, 0 before its head was read.
        headers: of the answer, with lower-case names.
    """

    def __init__(self, trip: Trip) -> None:
        self.trip: Final = trip
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self._unpacker: Unpacker | None = None

    async def raw(self) -> bytes:
        """The next bytes of the body as they came, b"" at its end."""
        raise NotImplementedError

    async def chunk(self) -> bytes:
        """The next bytes of the body, unpacked, b"" at its end."""
        unpacker = self._unpacker = self._unpacker or self._unpack()
        while not unpacker.stopped:
            data = await self.raw()
            if not data:
                unpacker.finish()
                break
            if piece := unpacker.feed(data):
                return piece
        return b""

    async def body(self) -> bytes:
        """The whole body, unpacked."""
        unpacker = self._unpacker = self._unpack()
        read = self.raw if unpacker.plain and self._bounded(unpacker.max_body) else self.chunk
        pieces = []
        while piece := await read():
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    @property
    def packed(self) -> int | None:
        """Bytes of the body as it travelled, None where it was not packed."""
        return None if self._unpacker is None else self._unpacker.packed

    @property
    def unpacked(self) -> tuple[int, int] | None:
        """Bytes of the body so far as they travelled, and as what they stand for; None where it is not packed."""
        unpacker = self._unpacker
        if unpacker is None or unpacker.packed is None:
            return None
        return unpacker.packed, unpacker.produced

    def _bounded(self, max_body: int) -> bool:  # noqa: ARG002 - for those who know
        """Whether something else holds the body to at most so many bytes, so that nobody need count."""
        return False

    def _unpack(self) -> Unpacker:
        encoding, request = self.headers.get("content-encoding"), self.trip.request
        return Unpacker(encoding, request.max_body, cut=self.status not in _SUCCESS)
