"""Reading the body of an answer, from wherever it comes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Final

from llmopt.errors import InvalidResponse
from llmopt.transport.request import Trip

# Unpacking an answer's body, bounded in size and in ratio. Pure: bytes in, bytes out.

ACCEPT_ENCODING: Final = "gzip, deflate"
"""What is asked for: what `Unpacker` can unpack."""
ERROR_BODY: Final = 64 * 1024
"""The most of an error's body that is read, in bytes; the rest is cut off."""
_GZIP: Final = zlib.MAX_WBITS | 16
_MOST_ENCODINGS: Final = 2
_STEP: Final = 256 * 1024
_FREE: Final = 2**20
_MOST_RATIO: Final = 50


class Unpacker:
    """Turns the bytes of a body into what they stand for, piece by piece.

    Args:
        encoding: the ``content-encoding`` header, None or "" for none.
        max_body: the most bytes that may come out.
        cut: for the body of an error, whose status says more than its text: stop at the first
            trouble and keep what came before, instead of raising.

    Attributes:
        stopped: whether ``cut`` ended the body early; what follows of it is not wanted.

    Raises:
        InvalidResponse: reason "too_large" or "decompression".
    """

    def __init__(self, encoding: str | None, max_body: int, *, cut: bool = False) -> None:
        self.max_body: Final = min(max_body, ERROR_BODY) if cut else max_body
        self.stopped = False
        self._cut: Final = cut
        self._received = 0
        self._produced = 0
        self._stages: list[_Stage] = []
        try:
            self._stages = _stages(encoding) if encoding else []
        except InvalidResponse:
            if not cut:
                raise
            self.stopped = True

    @property
    def plain(self) -> bool:
        """Whether the bytes are passed on as they are, and all of them are wanted."""
        return not self._stages and not self._cut

    @property
    def packed(self) -> int | None:
        """How many bytes have come of a body that was packed; None for one that is not."""
        return self._received if self._stages else None

    @property
    def produced(self) -> int:
        """How many bytes have come out."""
        return self._produced

    def feed(self, data: bytes) -> bytes:
        """What the next bytes of the body unpack to; b"" while more are needed."""
        pieces: list[bytes] = []
        if self.stopped:
            return b""
        self._received += len(data)
        try:
            self._unpack(data, 0, pieces)
        except InvalidResponse:
            if not self._cut:
                raise
            self.stopped = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def pass_on(self, data: bytes) -> None:
        """Count bytes that are passed on as they are, see `plain`."""
        self._produced += len(data)
        if self._produced > self.max_body:
            raise self._too_large()

    def finish(self) -> None:
        """Say that the body has ended."""
        if self._received and not self._cut and not all(stage.complete for stage in self._stages):
            raise InvalidResponse("the packed answer ends in its middle.", reason="decompression")

    def _unpack(self, data: bytes, depth: int, pieces: list[bytes]) -> None:
        """Depth first and a step at a time, so that no stage can pile up what the next must refuse."""
        if depth == len(self._stages):
            self._emit(data, pieces)
            return
        stage = self._stages[depth]
        stage.take(data)
        while piece := stage.step():
            self._unpack(piece, depth + 1, pieces)

    def _emit(self, data: bytes, pieces: list[bytes]) -> None:
        room = self.max_body - self._produced
        self._produced += len(data)
        if self._stages:
            _check_ratio(self._stages[0].consumed, self._produced)
        pieces.append(data[:room] if len(data) > room else data)
        if len(data) > room:
            raise self._too_large()

    def _too_large(self) -> InvalidResponse:
        return InvalidResponse(
            f"the answer is larger than the {self.max_body} bytes that this request can need.",
            reason="too_large",
        )


class _Stage:
    """One encoding."""

    def __init__(self, *, gzip: bool) -> None:
        self._gzip: Final = gzip
        self._engine = zlib.decompressobj(_GZIP) if gzip else None
        self._waiting = b""
        self._received = 0
        self._produced = 0

    @property
    def complete(self) -> bool:
        return self._engine is not None and self._engine.eof

    @property
    def consumed(self) -> int:
        """How many bytes have gone into what has come out."""
        return self._received - len(self._waiting)

    def take(self, data: bytes) -> None:
        self._received += len(data)
        self._waiting = self._waiting + data if self._waiting else data

    def step(self) -> bytes:
        """The next piece of at most `_STEP` bytes, b"" when more input is needed."""
        engine = self._engine or self._choose()
        try:
            while engine is not None and self._waiting:
                if engine.eof:
                    engine = self._next_member()
                    continue
                piece = engine.decompress(self._waiting, _STEP)
                self._waiting = engine.unused_data if engine.eof else engine.unconsumed_tail
                if piece:
                    self._produced += len(piece)
                    _check_ratio(self.consumed, self._produced)
                    return piece
            return self._held_back(engine)
        except zlib.error:
            raise InvalidResponse("the packed answer is damaged.", reason="decompression") from None

    def _held_back(self, engine: zlib._Decompress | None) -> bytes:
        """What zlib still holds when the input is used up and a step was full exactly then."""
        if engine is None or engine.eof:
            return b""
        piece = engine.decompress(b"", _STEP)
        self._produced += len(piece)
        _check_ratio(self.consumed, self._produced)
        return piece

    def _choose(self) -> zlib._Decompress | None:
        """By its first two bytes: "deflate" means zlib's format, and some servers send it bare."""
        if len(self._waiting) < 2:
            return None
        first, second = self._waiting[0], self._waiting[1]
        wrapped = first & 0x0F == zlib.DEFLATED and (first * 256 + second) % 31 == 0
        self._engine = zlib.decompressobj(zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
        return self._engine

    def _next_member(self) -> zlib._Decompress | None:
        """Gzip may go on with a further member, or be padded with zeros; all else is damage."""
        if self._gzip and self._waiting.startswith(b"\x1f"):
            self._engine = zlib.decompressobj(_GZIP)
            return self._engine
        if self._waiting.strip(b"\x00"):
            raise InvalidResponse("the packed answer goes on after its end.", reason="decompression")
        self._waiting = b""
        return None


def _check_ratio(consumed: int, produced: int) -> None:
    if produced > _FREE and produced > _MOST_RATIO * consumed:
        raise InvalidResponse(
            f"the packed answer grows more than {_MOST_RATIO}-fold; this is no honest answer.",
            reason="decompression",
        )


def _stages(encoding: str) -> list[_Stage]:
    names = [name for part in encoding.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if len(names) > _MOST_ENCODINGS:
        raise InvalidResponse(f"the answer is packed {len(names)} times over.", reason="decompression")
    for name in names:
        if name not in ("gzip", "x-gzip", "deflate"):
            raise InvalidResponse(
                f"the answer is packed with {name[:20]!r}, which was not asked for.", reason="decompression"
            )
    return [_Stage(gzip=name != "deflate") for name in reversed(names)]


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
