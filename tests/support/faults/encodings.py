"""Content encodings, honest and hostile."""

from __future__ import annotations

import functools
import gzip
import zlib

from attrs import evolve

from tests.support.faults.response import Answer

MEBIBYTE = 1 << 20


def gzipped(answer: Answer, *, times: int = 1) -> Answer:
    """Return the answer with its body gzipped `times` over and a content-encoding that says so."""
    body = answer.body
    for _ in range(times):
        body = gzip.compress(body, mtime=0)
    return encoded_as(evolve(answer, body=body), ", ".join(["gzip"] * times))


def encoded_as(answer: Answer, encoding: str) -> Answer:
    """Return the answer with a content-encoding that its body need not have."""
    return answer.plus(("content-encoding", encoding))


def truncated_gzip(answer: Answer, *, missing: int = 8) -> Answer:
    """Return the answer gzipped, with the last bytes of the gzip stream missing (8 are its whole trailer)."""
    whole = gzipped(answer)
    return evolve(whole, body=whole.body[:-missing])


@functools.lru_cache(maxsize=4)
def gzip_bomb(size: int) -> bytes:
    """Return the gzip form of `size` spaces, about a thousandth of that; whole mebibytes only."""
    piece = b" " * MEBIBYTE
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    # A full flush ends on a byte boundary and forgets the window, so that the same block may be repeated.
    block = compressor.compress(piece) + compressor.flush(zlib.Z_FULL_FLUSH)
    count = size // MEBIBYTE
    checksum = functools.reduce(lambda crc, _: zlib.crc32(piece, crc), range(count), 0)
    header = gzip.compress(b"", mtime=0)[:10]
    trailer = checksum.to_bytes(4, "little") + (size % 2**32).to_bytes(4, "little")
    return header + block * count + compressor.flush() + trailer
