"""Decompression of response bodies (gzip, deflate), with limits.

`ContentDecoder` does no I/O: bytes in, bytes out. It belongs to one response and has no clock and no lock. Bodies are
decompressed on the event loop, also large ones, which delays other calls there.
"""

from __future__ import annotations

import codecs
import re
import zlib
from typing import Final

from llmopt.errors import InvalidResponse

ACCEPT_ENCODING: Final = "gzip, deflate"
"""The request header that asks for what `ContentDecoder` can decompress."""
MAX_ERROR_BODY: Final = 64 * 1024
"""Bytes of an error's body that are read; the rest is cut off."""
# 16 selects the gzip format (manual of zlib, inflateInit2).
_GZIP: Final = zlib.MAX_WBITS | 16
# RFC 9110 allows any number of encodings, but servers use one.
_MAX_ENCODINGS: Final = 2
# The size is checked after each step, so this bounds what is decoded beyond the maximum.
_MAX_STEP: Final = 256 * 1024
_NO_ENCODING: Final = re.compile(
    r"(?:identity|none|null|no|off|plain|text|default|binary|[78]bit|(?:aws-)?chunked"
    r"|utf-?8|(?:us-)?ascii|iso-8859-[0-9]{1,2}|latin-?1|windows-125[0-9])?"
)
"""What servers write for no encoding: words for it, charsets, and encodings of the transfer."""


class ContentDecoder:
    """Decompresses a body chunk by chunk, and enforces its maximum size.

    The size alone is the limit: honest JSON, such as vectors of zeros or a list of equal entries, compresses several
    hundredfold.

    Args:
        encoding: the ``content-encoding`` header, None or "" for none.
        max_body: maximum size of the decoded body in bytes.
        truncate: for the body of an error, whose status matters more than its text: stop at the first
            problem and keep what was decoded so far, instead of raising.

    Attributes:
        decoded_size: bytes decoded so far.
        stopped: whether ``truncate`` ended the body early; the rest of the body need not be read.

    Raises:
        InvalidResponse: reason "too_large" or "decompression".
    """

    def __init__(self, encoding: str | None, max_body: int, *, truncate: bool = False) -> None:
        self.max_body: Final = min(max_body, MAX_ERROR_BODY) if truncate else max_body
        self.stopped = False
        self._truncate: Final = truncate
        self._received_size = 0
        self.decoded_size = 0
        self._decompressors: list[_Decompressor] = []
        try:
            self._decompressors = _decompressors(encoding) if encoding else []
        except InvalidResponse:
            if not truncate:
                raise
            self.stopped = True

    @property
    def passthrough(self) -> bool:
        """Whether the body needs no decoding and no cutting."""
        return not self._decompressors and not self._truncate

    @property
    def compressed_size(self) -> int | None:
        """Bytes received of a compressed body; None for an uncompressed one."""
        return self._received_size if self._decompressors else None

    def decode(self, data: bytes) -> bytes:
        """Decode the next bytes of the body; returns b"" while more input is needed."""
        chunks: list[bytes] = []
        if self.stopped:
            return b""
        self._received_size += len(data)
        try:
            self._decode(data, 0, chunks)
        except InvalidResponse:
            if not self._truncate:
                raise
            self.stopped = True
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def count(self, data: bytes) -> None:
        """Count bytes that need no decoding, see `passthrough`."""
        self.decoded_size += len(data)
        if self.decoded_size > self.max_body:
            raise self._too_large()

    def finish(self) -> None:
        """Check, at the end of the body, that the compressed data is complete."""
        if (
            self._received_size
            and not self._truncate
            and not all(stage.complete for stage in self._decompressors)
        ):
            raise InvalidResponse("the compressed response is incomplete.", reason="decompression")

    def _decode(self, data: bytes, depth: int, chunks: list[bytes]) -> None:
        """Depth first and in small steps, so that no stage can produce more than the next one accepts."""
        if depth == len(self._decompressors):
            self._emit(data, chunks)
            return
        stage = self._decompressors[depth]
        stage.feed(data)
        # Data that decompresses to nothing, such as empty members of gzip, must end as well.
        if stage.received_size > self.max_body + _MAX_STEP:
            raise self._too_large()
        while chunk := stage.next_chunk():
            self._decode(chunk, depth + 1, chunks)

    def _emit(self, data: bytes, chunks: list[bytes]) -> None:
        room = self.max_body - self.decoded_size
        self.decoded_size += len(data)
        # Appended before the error: with ``truncate`` the caller keeps what fits.
        chunks.append(data[:room] if len(data) > room else data)
        if len(data) > room:
            raise self._too_large()

    def _too_large(self) -> InvalidResponse:
        return InvalidResponse(
            f"the response is larger than the {self.max_body} bytes that this request allows.",
            reason="too_large",
        )


class _Decompressor:
    """The decompressor of one content encoding.

    Some proxies decompress a body and leave the header as it was: text under the name of a compression is passed on.

    Attributes:
        received_size: bytes of compressed data so far.
    """

    def __init__(self, *, gzip: bool) -> None:
        self._gzip: Final = gzip
        # None until the first bytes tell which format it is.
        self._zlib: zlib._Decompress | None = None
        self._is_text = False
        self._input = b""
        self.received_size = 0

    @property
    def complete(self) -> bool:
        return self._is_text or (self._zlib is not None and self._zlib.eof)

    def feed(self, data: bytes) -> None:
        self.received_size += len(data)
        self._input = self._input + data if self._input else data

    def next_chunk(self) -> bytes:
        """The next chunk of at most `_MAX_STEP` bytes of decompressed data, b"" when more input is needed."""
        engine = self._zlib or self._detect_format()
        if self._is_text:
            text, self._input = self._input, b""
            return text
        try:
            while engine is not None and self._input:
                if engine.eof:
                    engine = self._next_member()
                    continue
                chunk = engine.decompress(self._input, _MAX_STEP)
                self._input = engine.unused_data if engine.eof else engine.unconsumed_tail
                if chunk:
                    return chunk
            # What zlib still holds if the input ended exactly when a step was full.
            return b"" if engine is None or engine.eof else engine.decompress(b"", _MAX_STEP)
        except zlib.error:
            raise InvalidResponse("the compressed response is damaged.", reason="decompression") from None

    def _detect_format(self) -> zlib._Decompress | None:
        """Look at the first two bytes: "deflate" means the zlib format (RFC 9110), but some servers send raw deflate."""
        if self._is_text or len(self._input) < 2:
            return None
        first, second = self._input[0], self._input[1]
        # No gzip begins with a character of text. A raw deflate that begins with a bracket would decode to no JSON.
        self._is_text = first in (_TEXT_STARTS if self._gzip else _JSON_STARTS)
        if self._is_text:
            return None
        # The check of a zlib header (RFC 1950, 2.2): the method, and a multiple of 31.
        wrapped = first & 0x0F == zlib.DEFLATED and (first * 256 + second) % 31 == 0
        bits = _GZIP if self._gzip else zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS
        self._zlib = zlib.decompressobj(bits)
        return self._zlib

    def _next_member(self) -> zlib._Decompress | None:
        """Gzip may continue with another member (RFC 1952), or be padded with zeros; anything else is damage."""
        if self._gzip and self._input.startswith(b"\x1f"):
            self._zlib = zlib.decompressobj(_GZIP)
            return self._zlib
        if self._input.strip(b"\x00"):
            raise InvalidResponse("the compressed response continues after its end.", reason="decompression")
        self._input = b""
        return None


_JSON_STARTS: Final = b"{["
_TEXT_STARTS: Final = bytes(range(0x20, 0x7F)) + b"\t\n\r" + codecs.BOM_UTF8[:1]


def _decompressors(encoding: str) -> list[_Decompressor]:
    names = [part.partition(";")[0].strip() for part in encoding.lower().split(",")]
    names = [name for name in names if not _NO_ENCODING.fullmatch(name)]
    if len(names) > _MAX_ENCODINGS:
        raise InvalidResponse(
            f"the response has {len(names)} content encodings, one after the other.", reason="decompression"
        )
    for name in names:
        if name not in ("gzip", "x-gzip", "deflate"):
            raise InvalidResponse(
                f"the response has the content encoding {name[:20]!r}, which was not requested.",
                reason="decompression",
            )
    return [_Decompressor(gzip=name != "deflate") for name in reversed(names)]
