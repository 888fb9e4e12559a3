"""Decompression of response bodies within limits, however they are split."""

from __future__ import annotations

import asyncio
import gzip
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.errors import InvalidResponse
from llmopt.transport.body import MAX_ERROR_BODY, ContentDecoder
from llmopt.transport.pool import ConnectionPool
from tests.support.faults import gzip_bomb
from tests.transport.helpers import embed_request_to

MEBIBYTE = 2**20
TEXT = b'{"object":"list","data":[' + b",".join(b'{"index":%d}' % n for n in range(500)) + b"]}"


def raw_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


COMPRESSED = {
    "gzip": gzip.compress(TEXT, mtime=0),
    "x-gzip": gzip.compress(TEXT, mtime=0),
    "deflate": zlib.compress(TEXT),
    " GZIP ": gzip.compress(TEXT, mtime=0),
    "identity, gzip": gzip.compress(TEXT, mtime=0),
    "deflate, gzip": gzip.compress(zlib.compress(TEXT), mtime=0),
    "gzip, gzip": gzip.compress(gzip.compress(TEXT, mtime=0), mtime=0),
}


def unpack(encoding: str | None, pieces: list[bytes], max_body: int = MEBIBYTE) -> bytes:
    decoder = ContentDecoder(encoding, max_body)
    out = b"".join(decoder.decode(piece) for piece in pieces)
    decoder.finish()
    return out


def reason_of(encoding: str, *pieces: bytes, max_body: int = MEBIBYTE) -> str:
    with pytest.raises(InvalidResponse) as caught:
        unpack(encoding, list(pieces), max_body)
    return caught.value.reason


@pytest.mark.parametrize("encoding", COMPRESSED)
@pytest.mark.parametrize("size", [1, 7, 1000, 10**6])
def test_a_body_decodes_the_same_in_any_pieces(encoding: str, size: int) -> None:
    compressed = COMPRESSED[encoding]
    assert unpack(encoding, [compressed[at : at + size] for at in range(0, len(compressed), size)]) == TEXT


@pytest.mark.parametrize(
    "encoding", [None, "", "identity", "none", "UTF-8", "utf8", "identity, binary", "aws-chunked"]
)
def test_plain_bytes_are_not_copied(encoding: str | None) -> None:
    decoder = ContentDecoder(encoding, MEBIBYTE)
    assert decoder.passthrough
    assert decoder.decode(TEXT) is TEXT
    decoder.finish()


def test_raw_deflate_is_decoded() -> None:
    """Some servers leave out zlib's header."""
    compressed = raw_deflate(TEXT)
    assert unpack("deflate", [compressed[:1], compressed[1:]]) == TEXT


def test_gzip_with_several_members_and_padding_is_decoded() -> None:
    """The format allows both."""
    compressed = gzip.compress(TEXT, mtime=0) + gzip.compress(TEXT, mtime=0) + b"\0" * 20
    assert unpack("gzip", [compressed]) == TEXT * 2
    assert unpack("gzip", [compressed[at : at + 1] for at in range(len(compressed))]) == TEXT * 2


@given(st.binary(max_size=3000), st.lists(st.integers(1, 400), min_size=1, max_size=20))
def test_a_compressed_body_round_trips_in_any_pieces(data: bytes, sizes: list[int]) -> None:
    compressed, pieces = gzip.compress(data, mtime=0), []
    for size in [*sizes, len(gzip.compress(data, mtime=0))]:
        pieces.append(compressed[:size])
        compressed = compressed[size:]
    assert unpack("gzip", [piece for piece in pieces if piece]) == data


@pytest.mark.row("H18")
@pytest.mark.parametrize("encoding", ["br", "zstd", "rot13", "gzip, br"])
def test_an_encoding_that_was_not_accepted_is_refused(encoding: str) -> None:
    """Only gzip and deflate were offered."""
    assert reason_of(encoding, b"x") == "decompression"


@pytest.mark.row("H18")
def test_more_than_two_encodings_are_refused() -> None:
    """A chain of twenty is an attack."""
    assert reason_of(", ".join(["gzip"] * 20), b"x") == "decompression"
    assert reason_of("gzip, gzip, gzip", b"x") == "decompression"


@pytest.mark.row("H18")
@pytest.mark.parametrize(
    "data",
    [
        b"\xfe no gzip at all",
        COMPRESSED["gzip"][:-8],
        COMPRESSED["gzip"][:20],
        COMPRESSED["gzip"] + b"more",
        b"\x1f",
    ],
)
def test_a_damaged_body_is_refused(data: bytes) -> None:
    """Truncated, extended or garbled."""
    assert reason_of("gzip", data) == "decompression"


def test_an_empty_body_is_empty_in_every_encoding() -> None:
    """As with 204, or a response to HEAD."""
    assert unpack("gzip", []) == b""


@pytest.mark.row("H19")
def test_a_body_above_the_maximum_is_refused_plain_and_compressed() -> None:
    """The maximum applies to the decoded bytes."""
    assert unpack(None, [b"a" * 100], max_body=100) == b"a" * 100
    for encoding, data in ((None, b"a" * 101), ("gzip", gzip.compress(TEXT, mtime=0))):
        with pytest.raises(InvalidResponse) as caught:
            unpack(encoding, [data], max_body=100)
        assert caught.value.reason == "too_large"


@pytest.mark.row("H18")
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, utf-8", "gzip, gzip", "x-gzip;q=1"])
@given(st.text(min_size=2), st.sampled_from(["{", "[", '{"data": ', "\ufeff{"]), st.integers(1, 40))
def test_text_that_is_called_compressed_is_text(encoding: str, text: str, start: str, size: int) -> None:
    """Some proxies decompress a body and leave the header as it was; and some compress once and say it twice."""
    if encoding == "deflate" and start.startswith("\ufeff"):
        return
    data = (start + text).encode()
    assert unpack(encoding, [data[at : at + size] for at in range(0, len(data), size)]) == data
    once = zlib.compress(data) if encoding == "deflate" else gzip.compress(data, mtime=0)
    assert unpack(encoding, [once[at : at + size] for at in range(0, len(once), size)]) == data


@pytest.mark.row("H18")
@given(
    st.sampled_from(["gzip", "deflate", "gzip, gzip"]), st.binary(min_size=1, max_size=40), st.integers(0, 20)
)
def test_honest_compression_has_any_ratio(encoding: str, unit: bytes, doublings: int) -> None:
    """Vectors of zeros, equal entries: up to the maximum of the body, everything is accepted."""
    data = unit * (2**doublings // len(unit) + 1)
    compressed = data
    for name in encoding.split(", "):
        compressed = zlib.compress(compressed) if name == "deflate" else gzip.compress(compressed, mtime=0)
    assert unpack(encoding, [compressed], max_body=len(data)) == data
    assert reason_of(encoding, compressed, max_body=len(data) - 1) == "too_large"


@pytest.mark.row("H18")
@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
def test_a_body_that_decompresses_to_nothing_ends(encoding: str) -> None:
    """Empty members of gzip, without end."""
    data = gzip.compress(b"", mtime=0) * 200_000
    assert reason_of(encoding, gzip.compress(data) if encoding == "gzip, gzip" else data) == "too_large"


@pytest.mark.row("H18")
@pytest.mark.parametrize("encoding", ["gzip", "gzip, gzip"])
def test_a_bomb_is_stopped_within_a_few_mebibytes(encoding: str) -> None:
    """It costs no more memory than the largest body that is allowed."""
    bomb = gzip_bomb(256 * MEBIBYTE)
    if encoding == "gzip, gzip":
        bomb = gzip.compress(bomb)
    tracemalloc.start()
    try:
        assert reason_of(encoding, bomb, max_body=4 * MEBIBYTE) == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 8 * MEBIBYTE
    finally:
        tracemalloc.stop()


class TestErrorBodies:
    """The body of an error response is cut where another body would be refused: its status says more."""

    def test_a_long_error_body_is_cut(self) -> None:
        """At 64 KiB, or at a lower maximum."""
        for maximum, kept in ((MEBIBYTE, MAX_ERROR_BODY), (10, 10)):
            decoder = ContentDecoder(None, maximum, truncate=True)
            assert decoder.decode(b"a" * MEBIBYTE) == b"a" * kept
            assert decoder.stopped
            assert decoder.decode(b"more") == b""

    def test_a_damaged_error_body_ends_at_the_damage(self) -> None:
        """The bytes before it are kept."""
        decoder = ContentDecoder("gzip", MEBIBYTE, truncate=True)
        assert decoder.decode(COMPRESSED["gzip"] + b"more") == TEXT
        assert decoder.stopped

    def test_an_error_body_in_an_unknown_encoding_is_empty(self) -> None:
        """Compressed bytes are no text."""
        decoder = ContentDecoder("br", MEBIBYTE, truncate=True)
        assert decoder.stopped
        assert decoder.decode(b"x") == b""

    def test_a_truncated_error_body_is_accepted(self) -> None:
        decoder = ContentDecoder("gzip", MEBIBYTE, truncate=True)
        decoder.decode(COMPRESSED["gzip"][:-8])
        decoder.finish()
        assert not decoder.stopped


# The socket reads a large body of known length directly into its buffer.

BODY = bytes(range(256)) * (32 * MEBIBYTE // 256)


@contextmanager
def raw_server(body: bytes, *, closing: bool) -> Iterator[str]:
    """A server that allocates almost nothing to send the same body twice; gives its base URL."""
    last = b"connection: close\r\n\r\n" if closing else b"\r\n"
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n%b" % (len(body), last)

    def serve() -> None:
        connection = None
        for _ in range(2):
            connection = connection or listener.accept()[0]
            while b"canary prompt" not in connection.recv(65_536):
                pass
            connection.sendall(head)
            connection.sendall(body)
            if closing:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize("closing", [False, True])
async def test_a_large_body_is_in_memory_once(*, closing: bool) -> None:
    """A body is neither joined from pieces nor copied, also when the server closes right behind it."""
    with raw_server(BODY, closing=closing) as url:
        pool = ConnectionPool()
        try:
            assert (await pool.send(embed_request_to(url, max_body=64 * MEBIBYTE))).body == BODY
            tracemalloc.start()
            try:
                response = await pool.send(embed_request_to(url, max_body=64 * MEBIBYTE))
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
        finally:
            await pool.aclose()
            await asyncio.sleep(0)
    assert response.body == BODY
    assert peak < 1.5 * len(BODY)
