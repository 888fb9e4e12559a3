"""Responses as bytes, drawn at random: valid, odd, contradictory, and damaged at any byte."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

from attrs import frozen

Chance = random.Random


@frozen
class Case:
    """What a server sends in answer to one request.

    Attributes:
        method: of the request.
        data: all bytes that come.
        closed: whether the server closes the connection then.
    """

    method: str
    data: bytes
    closed: bool


METHODS: Final = ("GET",) * 4 + ("POST",) * 4 + ("HEAD", "CONNECT")
STATUSES: Final = (200,) * 12 + (201, 204, 205, 206, 301, 304, 400, 404, 413, 429, 500, 502, 599, 999)
INTERIM: Final = (100, 102, 103, 103, 199)
ODD_STATUS_LINES: Final = (
    *(
        "HTTP/1.0 200 OK",
        "HTTP/1.1 200",
        "HTTP/1.1 200 ",
        "HTTP/1.1 200  two  blanks",
        "HTTP/1.1 200 caf\xe9",
    ),
    *(
        "HTTP/2.0 200 OK",
        "HTTP/0.9 200 OK",
        "HTTP/1.2 200 OK",
        "HTTP/9.9 200 OK",
        "HTTP/11 200 OK",
        "HTTP/1 200",
    ),
    *(
        "http/1.1 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1\t200 OK",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1",
    ),
    *("HTTP/1.1 099 Low", "HTTP/1.1 000 Zero", "HTTP/1.1 -20 OK", "HTTP/1.1 2OO OK", "HTTP/1.1 200\tOK"),
    *("ICY 200 OK", "RTSP/1.0 200 OK", " HTTP/1.1 200 OK", "SSH-2.0-OpenSSH_9", "GET / HTTP/1.1", "{}", ""),
    *("HTTP/1.1 101 Switching Protocols", "HTTP/1.1 200 O\x00K", "HTTP/1.1 200 O\x7fK", "HTTP/1.1 200 O\rK"),
)
PLAIN_HEADERS: Final = (
    *(
        "server: some",
        "date: Mon, 30 Nov 2026 23:59:59 GMT",
        "content-type: application/json",
        "x-request-id: 1",
    ),
    *("X-RateLimit-Remaining: 12", "retry-after: 3", "via: 1.1 a", "set-cookie: a=b; path=/", "vary: accept"),
    *(
        "connection: keep-alive",
        "Connection: close",
        "keep-alive: timeout=5",
        "content-encoding: gzip",
        "empty:",
    ),
    *(
        "trailer: x-sum",
        "x-long: " + "v" * 30,
        "x-latin: caf\xe9",
        "x-tab:\ta\tb\t",
        "x:y",
        "date:  two  blanks  ",
    ),
)
ODD_HEADERS: Final = (
    *(
        "x-fold: a\r\n b",
        "x-fold: a\r\n\tb\r\n  c",
        "x-blank : a",
        "x-blank\t: a",
        " leading: a",
        "no colon",
        ": no name",
    ),
    *(
        "x(y): a",
        "x-nul: a\x00b",
        "x-bell: a\x07b",
        "x-del: a\x7fb",
        "x-cr: a\rb",
        "x-esc: \x1b[31m",
        "caf\xe9: a",
    ),
    *(
        "connection: close, keep-alive",
        "connection: Keep-Alive",
        "connection:",
        "connection: upgrade",
        "upgrade: h2c",
    ),
    *(
        "content-length : 5",
        "transfer-encoding : chunked",
        "connection : close",
        " content-length: 5",
        "\ttransfer-encoding: chunked",
    ),
    *("proxy-connection: close", "x" * 300 + ": a", "x-huge: " + "v" * 20_000, "x-huge: " + "v" * 40_000),
)
ODD_LENGTHS: Final = (
    *(
        "+5",
        "-5",
        "0x5",
        "5.0",
        "5 ",
        " 5",
        "\t5\t",
        "005",
        "5, 5",
        "5,6",
        "5,",
        ",5",
        "",
        " ",
        "five",
        "5 5",
        "1e1",
    ),
    *(
        "9" * 18,
        "9" * 19,
        "18446744073709551615",
        "18446744073709551616",
        "9" * 40,
        "0" * 40 + "5",
        "\xb2",
        "5\x00",
    ),
)
CODINGS: Final = (
    *(
        "chunked",
        "Chunked",
        "chunked ",
        "\tchunked",
        "chunked\t",
        "gzip, chunked",
        "chunked, gzip",
        "chunked, chunked",
        "gzip",
    ),
    *(
        "identity",
        "",
        "chunkedx",
        "xchunked",
        '"chunked"',
        "chunked;q=1",
        "identity, chunked",
        ", chunked",
        "chunked,",
    ),
)
ODD_SIZES: Final = (
    *(
        "5 ",
        " 5",
        "5\t",
        "05",
        "0" * 30 + "5",
        "5;",
        "5;a",
        "5;a=b",
        '5;a="b;c"',
        "5 ;a=b",
        "5; a = b",
        "5;a\x00",
        "5\r",
    ),
    *(
        "-5",
        "+5",
        "0x5",
        "g",
        "",
        "5g",
        "f" * 16,
        "f" * 17,
        "7" + "f" * 15,
        "1" + "0" * 16,
        "5;" + "e" * 40_000,
        "5;\n",
    ),
)
TRAILERS: Final = (
    "x-sum: 1",
    "x-sum: 1\r\nx-more: 2",
    "content-length: 9",
    "bad trailer",
    "x: a\x00",
    "x: " + "t" * 40_000,
)
PIECES: Final = (
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b"\x80",
    b"\xff",
    b"0",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b";",
)


def draw(chance: Chance) -> Case:
    """One case. Most are right but for one thing, because the first mistake hides all others."""
    method = chance.choice(METHODS)
    odd = chance.choice((None, None, None, "status", "header", "length", "coding", "chunk", "ends", "both"))
    data = b"".join(interim(chance) for _ in range(chance.choice((0, 0, 0, 0, 0, 0, 1, 2))))
    data += final(chance, odd)
    if chance.random() < 0.1:
        data += chance.choice((b"H", b"\r\n", b"noise", final(chance, None)))
    if odd == "ends":
        data = data.replace(b"\r\n", b"\n", chance.choice((-1, 1, 2)))
    if chance.random() < 0.15:
        data = data[: chance.randrange(len(data) + 1)]
    for _ in range(chance.choice((0, 0, 0, 0, 0, 1, 1, 3))):
        data = damaged(chance, data)
    return Case(method, data, chance.random() < 0.5)


def interim(chance: Chance) -> bytes:
    """A 1xx response."""
    lines = [f"HTTP/1.1 {chance.choice(INTERIM)} Soon", *some_headers(chance, PLAIN_HEADERS, 2)]
    return encoded(lines)


def final(chance: Chance, odd: str | None) -> bytes:
    """A whole final response; ``odd`` names the one part that is drawn from the odd ones."""
    status = f"HTTP/1.{chance.choice('1111110')} {chance.choice(STATUSES)} OK"
    lines = [chance.choice(ODD_STATUS_LINES) if odd == "status" else status]
    lines += some_headers(chance, PLAIN_HEADERS, 4)
    if odd == "header":
        lines.insert(chance.randrange(1, len(lines) + 1), chance.choice(ODD_HEADERS))
    kinds: tuple[Callable[[Chance, str | None, list[str]], bytes], ...] = (
        with_length,
        with_length,
        chunked,
        open_end,
    )
    if odd in {"length", "both"}:
        kinds = (with_length,)
    elif odd in {"coding", "chunk"}:
        kinds = (chunked,)
    body = chance.choice(kinds)(chance, odd, lines)
    return encoded(lines) + body


def some_headers(chance: Chance, headers: tuple[str, ...], most: int) -> list[str]:
    """Up to ``most`` of them."""
    return chance.sample(headers, chance.randrange(most + 1))


def encoded(lines: list[str]) -> bytes:
    """A head."""
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def some_body(chance: Chance) -> bytes:
    """Bytes that may look like the end of a head or of a chunk."""
    size = chance.choice((0, 1, 2, 5, 5, 5, 17, 60, 300))
    return bytes(chance.choices(b'\r\n0 {}"a:\x00\xff', k=size))


def with_length(chance: Chance, odd: str | None, lines: list[str]) -> bytes:
    """A body with a length, which may be a wrong one."""
    body = some_body(chance)
    length = str(len(body))
    if odd == "length":
        length = chance.choice((*ODD_LENGTHS, str(len(body) + 1), str(max(0, len(body) - 1))))
    name = chance.choice(("content-length", "Content-Length", "CONTENT-LENGTH"))
    lines.insert(chance.randrange(1, len(lines) + 1), f"{name}:{chance.choice(('', ' ', '  '))}{length}")
    if odd == "both":
        other = chance.choice(
            (f"content-length: {len(body)}", f"content-length: {len(body) + 1}", "transfer-encoding: chunked")
        )
        lines.insert(chance.randrange(1, len(lines) + 1), other)
    return body


def chunked(chance: Chance, odd: str | None, lines: list[str]) -> bytes:
    """A body in chunks."""
    coding = chance.choice(CODINGS) if odd == "coding" else "chunked"
    lines.insert(
        chance.randrange(1, len(lines) + 1),
        f"{chance.choice(('transfer-encoding', 'Transfer-Encoding'))}: {coding}",
    )
    chunks = [some_body(chance) or b"x" for _ in range(chance.randrange(4))]
    sizes = [f"{len(chunk):{chance.choice('xX')}}" for chunk in chunks] + ["0"]
    if odd == "chunk":
        sizes[chance.randrange(len(sizes))] = chance.choice(ODD_SIZES)
    data = b"".join(
        b"%b\r\n%b\r\n" % (size.encode("latin-1"), chunk) for size, chunk in zip(sizes, chunks, strict=False)
    )
    trailer = f"{chance.choice(TRAILERS)}\r\n" if chance.random() < 0.15 else ""
    return data + f"{sizes[-1]}\r\n{trailer}\r\n".encode("latin-1")


def open_end(chance: Chance, odd: str | None, lines: list[str]) -> bytes:
    """A body that ends with the connection."""
    return some_body(chance)


def damaged(chance: Chance, data: bytes) -> bytes:
    """Delete, insert, replace or repeat something."""
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.choice((1, 1, 2, 5)))
    piece = chance.choice((*PIECES, data[at:to], bytes([chance.randrange(256)])))
    return data[:at] + chance.choice((b"", piece, piece + data[at:to], data[at:to] * 2)) + data[to:]


def cuts(chance: Chance, size: int, *, most: int = 5) -> list[int]:
    """Where the bytes are cut into what a socket gives at a time."""
    return sorted(chance.randrange(size + 1) for _ in range(chance.randrange(most + 1)))
