"""Rows N05 to N19 of the fault matrix: connections and bytes.

N01 to N04 are `cut` at every offset; N12's closed and full ports are in `ports`, N14's certificates in `tls`; N20 to
N22 are `FaultServer.stop`, `flap` and `default_on_accept`.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from attrs import evolve

from tests.support.faults.fault import Fault
from tests.support.faults.openai import answer_openai, embeddings_payload, vector_for
from tests.support.faults.request import Request
from tests.support.faults.response import Answer, Framing, Header, json_answer
from tests.support.faults.script import (
    Close,
    Drip,
    Playable,
    ReadBytes,
    Repeat,
    Reset,
    Respond,
    Script,
    Send,
    Stall,
    Step,
)

DRIP_SECONDS = 0.2
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload\r\n\r\n"
TLS_RECORD_HEADER = 5  # bytes; enough of a ClientHello to know that a handshake began
H2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
H2_SETTINGS = bytes.fromhex("000000040000000000")
NOISE = random.Random(18).randbytes(4096)
BAD_REQUEST = Answer(
    400, b"<html>400 Bad Request</html>", [("content-type", "text/html"), ("connection", "close")]
)


def strange_answer(request: Request) -> Answer:
    """Return a valid answer to another request of the same size, which no client may accept."""
    payload = embeddings_payload(request, vectors=lambda text, size: vector_for(f"not {text}", size))
    return json_answer(payload)


def misframed(
    headers: Callable[[int], list[Header]], *end: Step, framing: Framing = Framing.AS_GIVEN
) -> Playable:
    """Reply correctly, but with framing headers made from the true length, and play the end after it."""

    def reply(request: Request) -> Script:
        good = answer_openai(request)
        body = evolve(good, headers=(*good.headers, *headers(len(good.body))), framing=framing)
        return Script([Send(body), *end])

    return reply


def followed_by(extra: Callable[[Request], Answer | bytes]) -> Playable:
    """Reply correctly, with more bytes behind the answer in the same segment."""
    return lambda request: bytes(answer_openai(request)) + bytes(extra(request))


def with_headers(*headers: Header) -> Playable:
    """Reply correctly, with more headers."""
    return lambda request: answer_openai(request).plus(*headers)


def with_raw_header(line: bytes) -> Playable:
    """Reply correctly, with a line among the headers that may be no header."""

    def reply(request: Request) -> bytes:
        status, rest = bytes(answer_openai(request)).split(b"\r\n", 1)
        return status + b"\r\n" + line + b"\r\n" + rest

    return reply


def dripping_body(request: Request) -> Script:
    """Send a correct head, then an endless body of spaces, one byte at a time."""
    head = evolve(answer_openai(request), body=b"", framing=Framing.AS_GIVEN).plus(
        ("content-length", "1000000000")
    )
    return Script([Send(head), Repeat([Drip(b" ", DRIP_SECONDS)])])


def _off_by(offset: int) -> Callable[[int], list[Header]]:
    return lambda length: [("content-length", str(length + offset))]


def _two_lengths(length: int) -> list[Header]:
    return [("content-length", str(length)), ("content-length", str(length + 1))]


FRAMING = (
    Fault("N05", "length too long, then FIN", misframed(_off_by(+10), Close())),
    Fault("N05", "length too long, then silence", misframed(_off_by(+10), Stall())),
    Fault("N05", "length too short", misframed(_off_by(-10))),
    Fault("N05", "length 0", misframed(lambda length: [("content-length", "0")])),
    Fault("N05", "length negative", misframed(lambda length: [("content-length", f"-{length}")])),
    Fault("N05", "length no number", misframed(lambda length: [("content-length", "many")])),
    Fault("N06", "another answer in the same segment", followed_by(strange_answer)),
    Fault("N06", "another answer right behind it", Script([Respond(), Respond(strange_answer)])),
    Fault("N06", "an error in the same segment", followed_by(lambda request: BAD_REQUEST)),
    Fault("N06", "noise in the same segment", followed_by(lambda request: NOISE)),
    Fault("N07", "two lengths", misframed(_two_lengths)),
    Fault("N07", "a length and chunks", misframed(_off_by(0), framing=Framing.CHUNKED)),
)
SLOWNESS = (
    Fault("N08", "never reads", on_accept=Script([Stall(reading=False)])),
    Fault("N08", "never answers", Script([Stall()])),
    Fault("N09", "body drips for ever", dripping_body),
    Fault(
        "N09",
        "header drips for ever",
        Script([Send(b"HTTP/1.1 200 OK\r\nx: "), Repeat([Drip(b"a", DRIP_SECONDS)])]),
    ),
    Fault("N10", "100 for ever", Script([Repeat([Drip(CONTINUE, DRIP_SECONDS, len(CONTINUE))])])),
    Fault("N10", "103 for ever at full speed", Script([Repeat([Send(EARLY_HINTS)])])),
    Fault("N10", "one 100", Script([Send(CONTINUE), Respond()])),
    Fault("N10", "103 then 200", Script([Send(EARLY_HINTS), Respond()])),
    Fault("N11", "window closes", on_accept=Script([Stall(reading=False)])),
    Fault("N16", "peer goes dead", Script([Stall(reading=False)])),
)
ENDINGS = (
    Fault("N12", "accept then RST", on_accept=Script([Reset()])),
    Fault("N12", "accept then FIN", on_accept=Script([Close()])),
    Fault("N14", "no TLS here", on_accept=Script([ReadBytes(TLS_RECORD_HEADER), Send(BAD_REQUEST), Close()])),
    Fault("N14", "handshake stalls", on_accept=Script([ReadBytes(TLS_RECORD_HEADER), Stall()])),
    Fault("N14", "EOF in the handshake", on_accept=Script([ReadBytes(TLS_RECORD_HEADER), Close()])),
    Fault("N14", "RST in the handshake", on_accept=Script([ReadBytes(TLS_RECORD_HEADER), Reset()])),
    Fault("N15", "closes right after the answer", Script([Respond(), Close()])),
    Fault("N15", "resets right after the answer", Script([Respond(), Reset()])),
    Fault("N15", "closes without an answer", Script([Close()])),
    Fault("N15", "resets without an answer", Script([Reset()])),
)
HEADERS = (
    Fault("N17", "header of 200 KB", with_headers(("x-large", "a" * 200_000))),
    Fault("N17", "10,000 headers", with_headers(*((f"x-{number}", "a") for number in range(10_000)))),
    Fault("N17", "NUL in a header", with_headers(("x-odd", b"a\0b"))),
    Fault("N17", "folded header", with_headers(("x-odd", "a\r\n b"))),
    Fault("N17", "space before the colon", with_raw_header(b"x-odd : a")),
    Fault("N17", "no colon", with_raw_header(b"x-odd")),
)
GARBAGE = (
    Fault("N18", "HTTP/0.9 text", Script([Send(b"<html>hello</html>\n"), Close()])),
    Fault("N18", "HTTP/2", Script([Send(H2_SETTINGS), Close()])),
    Fault("N18", "HTTP/2 preface", Script([Send(H2_PREFACE), Close()])),
    Fault("N18", "noise", Script([Send(NOISE), Close()])),
    Fault("N18", "empty", Script([Close()])),
    Fault("N18", "half a status line", Script([Send(b"HTTP/1.1 2"), Close()])),
    Fault("N18", "status that is no number", Script([Send(b"HTTP/1.1 twohundred OK\r\n\r\n"), Close()])),
    Fault("N19", "proxy wants a password", Answer(407, b"", [("proxy-authenticate", 'Basic realm="proxy"')])),
    Fault("N19", "proxy refuses", Answer(502, b"no route")),
    Fault("N19", "proxy hangs", Script([Stall()])),
)
WIRE_ROWS = (*FRAMING, *SLOWNESS, *ENDINGS, *HEADERS, *GARBAGE)
