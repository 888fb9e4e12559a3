"""Our reader of responses and h11's, given the same bytes; every difference has its reason here.

    python -m tests.transport.compare_h11 --cases 1000000 --every 10

Each case is read as a whole and cut at random; each tenth one, with ``--every 10``, also cut at every byte. Our reader
must come to the same end however the bytes are cut. h11 is the oldest pure Python implementation of RFC 9112, and strict;
where ours differs, the case must be one of `DIFFERENCES`. It prints how often each was met. The exit code is 1 if
a difference is not in the table, or if a row of it was never met.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import h11
from attrs import evolve, field, frozen

from llmopt.transport.http1 import MAX_HEAD, MalformedResponse, ResponseParser, TruncatedResponse
from tests.transport.response_cases import Case, cuts, draw

MALFORMED, TRUNCATED, LOST, WAITING = "malformed", "truncated", "lost", "waiting"
MAX_WHOLE: Final = 1 << 20
FRAMING: Final = {"content-length", "transfer-encoding"}
FOLDED: Final = re.compile(rb"\n[ \t]")
CHUNK_LINE: Final = re.compile(rb"\r?\n?[ \t]*([0-9A-Fa-f]+)[^\n]*\n")
HEAD: Final = re.compile(rb".*?\n\r?\n|\r?\n", re.DOTALL)
INTERIM: Final = re.compile(rb"HTTP/\d\.\d 1(?!01)")


@frozen
class Read:
    """How the reading of a response ended.

    Attributes:
        end: "" for a whole response, else what is wrong or missing. Lost: the connection closed before the end of the
            head. Truncated: before the end of the body. Waiting: it is still open.
        status: 0 before the head was complete or if it is malformed.
        headers: by lower-case name, repeated ones joined.
        body: what there is of it.
        kept: whether the connection may carry another request.
        rest: how many bytes stand behind the response, if the reader can tell.
    """

    end: str
    status: int = 0
    headers: dict[str, str] = field(factory=dict)
    body: bytes | None = b""
    kept: bool = False
    rest: int = 0


def pieces(data: bytes, at: Iterable[int]) -> Iterator[bytes]:
    """The bytes, cut at these offsets."""
    start = 0
    for offset in (*at, len(data)):
        if offset > start:
            yield data[start:offset]
            start = offset


def read_ours(
    case: Case, at: Iterable[int] = (), *, max_whole: int = MAX_WHOLE, direct: bool = False
) -> Read:
    """Read with our own class.

    Args:
        case: the bytes.
        at: where they are cut.
        max_whole: longer bodies of known length do not pass llhttp by.
        direct: write what belongs into the body's memory there, as a socket does.
    """
    parser = ResponseParser()
    parser.start(case.method, max_whole=max_whole)
    body = []
    try:
        for piece in pieces(case.data, at):
            for part in _into_buffer(parser, piece) if direct else (piece,):
                parser.feed(part)
                body.append(parser.take())
            if parser.complete:
                break
        body.append(parser.body or b"")
        return _ours_at_the_end(case, parser, body)
    except MalformedResponse:
        return Read(MALFORMED)


def whole_length(case: Case) -> int:
    """How many bytes our reader takes, one by one, for a whole response; all of them if it is never whole."""
    parser = ResponseParser()
    parser.start(case.method)
    try:
        for at in range(len(case.data)):
            parser.feed(case.data[at : at + 1])
            if parser.complete and parser.status:
                return at + 1
    except MalformedResponse:
        pass
    return len(case.data)


def _into_buffer(parser: ResponseParser, piece: bytes) -> Iterator[bytes]:
    """Fill the body's memory, and give the rest to `feed`."""
    while parser.buffer is not None and piece:
        space = parser.buffer.free_space
        count = min(len(space), len(piece))
        space[:count] = piece[:count]
        del space
        parser.advance(count)
        piece = piece[count:]
    if piece:
        yield piece


def _ours_at_the_end(case: Case, parser: ResponseParser, body: list[bytes]) -> Read:
    end = "" if parser.complete else WAITING
    if case.closed and not parser.complete:
        if not parser.status:
            return Read(LOST)
        try:
            parser.feed_eof()
            end = ""
        except TruncatedResponse:
            end = TRUNCATED
    # The beginning of a body that is collected is handed over when all of it is there.
    collected = end and parser.buffer is not None
    return Read(
        end,
        parser.status,
        dict(parser.headers),
        None if collected else b"".join(body),
        kept=parser.complete and parser.keep_alive and not case.closed and not _tunnel(case, parser.status),
    )


def _tunnel(case: Case, status: int) -> bool:
    # What follows belongs to the tunnel: no reader says whether another response could.
    return case.method == "CONNECT" and status in range(200, 300)


class TheirReader:
    """h11's reading of one response, as a whole: it keeps what is incomplete, and begins again with the next bytes."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._found = Read(WAITING)
        self._connection = connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        length = [("content-length", "0")] if case.method == "POST" else []
        connection.send(h11.Request(method=case.method, target="/", headers=[("host", "a"), *length]))
        connection.send(h11.EndOfMessage())

    def read(self) -> Read:
        """Read to the end of the response, or of the bytes."""
        connection = self._connection
        if self._case.data:  # no bytes mean the end
            connection.receive_data(self._case.data)
        try:
            while (read := self._step()) is None:
                pass
        except h11.RemoteProtocolError as error:
            if not re.search(
                "without sending complete message|unexpectedly closed|ConnectionClosed", str(error)
            ):
                return Read(MALFORMED)
            return evolve(self._found, end=TRUNCATED) if self._found.status else Read(LOST)
        return read

    def _step(self) -> Read | None:
        connection, found = self._connection, self._found
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if not self._case.closed or connection.trailing_data[1]:
                return found
            connection.receive_data(b"")
        elif isinstance(event, h11.Response):
            self._found = Read(WAITING, event.status_code, _joined(event.headers), b"")
        elif isinstance(event, h11.Data):
            self._found = evolve(found, body=(found.body or b"") + event.data)
        elif event is h11.PAUSED and found.status:  # a tunnel begins
            return evolve(found, end="")
        elif isinstance(event, h11.EndOfMessage):
            both_done = connection.our_state is connection.their_state is h11.DONE
            rest = connection.trailing_data[0]
            return evolve(
                found, end="", kept=both_done and not rest and not self._case.closed, rest=len(rest)
            )
        return None


def _joined(headers: Any) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw, content in headers:
        name, value = raw.decode().lower(), content.decode("utf-8", "replace")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


def difference(case: Case, ours: Read, theirs: Read) -> str:
    """What differs, "" if nothing does."""
    if ours.end != theirs.end:
        return f"{ours.end or 'whole'}, h11: {theirs.end or 'whole'}"
    if ours.status != theirs.status:
        return "status"
    if ours.body != theirs.body and ours.body is not None:
        return "body"
    if ours.kept != theirs.kept:
        return f"{'' if ours.kept else 'not '}kept"
    return "headers" if _told(case, ours) != _told(case, theirs) else ""


def _told(case: Case, read: Read) -> dict[str, str]:
    """The headers but for those of the framing, whose meaning is in the body."""
    told = {name: value for name, value in read.headers.items() if name not in FRAMING}
    if FOLDED.search(case.data):
        # One puts a blank for each fold, the other drops those at the ends.
        told = {name: " ".join(value.split()) for name, value in told.items()}
    return told


@frozen
class Facts:
    """A case and both readings of it."""

    case: Case
    ours: Read
    theirs: Read
    what: str
    interim: bytes
    head: bytes
    body: bytes

    @property
    def stricter(self) -> bool:
        """Whether only we refuse it."""
        return self.ours.end == MALFORMED != self.theirs.end

    @property
    def lenient(self) -> bool:
        """Whether only h11 refuses it."""
        return self.theirs.end == MALFORMED != self.ours.end

    @property
    def no_body(self) -> bool:
        """Whether what the headers say of the body is about none that comes."""
        return (
            self.case.method == "HEAD"
            or self.ours.status in {204, 304}
            or _tunnel(self.case, self.ours.status)
        )

    def header(self, name: str) -> bytes:
        """The values of a header of the final response, each on a line of its own; b"" for none."""
        found = re.findall(rb"(?i)\n%b[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)" % name.encode(), self.head)
        return b"\n".join(found)

    @property
    def framing(self) -> bytes:
        """What stands between the chunks of the body, with all that follows the last; b"" if it is not in chunks."""
        if b"chunked" not in self.header("transfer-encoding").lower():
            return b""
        lines, at = [], 0
        while found := CHUNK_LINE.match(self.body, at):
            size = int(found[1], 16)
            at = min(found.end() + size, len(self.body))
            lines.append(found[0])
            if not size:
                break
        # Where there is no such line, a mistake is: it and what follows.
        return b"".join((*lines, self.body[at:]))


def facts(case: Case, ours: Read, theirs: Read, what: str) -> Facts:
    """Where the heads are, by the empty lines alone."""
    at = 0
    while found := HEAD.match(case.data, at):
        if not INTERIM.match(found[0].lstrip()) and found[0].strip():
            return Facts(case, ours, theirs, what, case.data[:at], found[0], case.data[found.end() :])
        at = found.end()
    return Facts(case, ours, theirs, what, case.data[:at], case.data[at:], b"")


@frozen
class Difference:
    """A way in which we differ from h11 on purpose, or with llhttp.

    Attributes:
        name: what is read differently, and who is the stricter.
        why: the reason.
        holds: whether a case is one of them.
    """

    name: str
    why: str
    holds: Callable[[Facts], object]


def _has(pattern: bytes, text: bytes) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


DIFFERENCES: Final = (
    Difference(
        "stricter: two lengths",
        "h11 takes equal ones for one, as RFC 9112, 6.3 allows; llhttp refuses two at all",
        lambda each: each.stricter and _has(rb"[\n,]", each.header("content-length")),
    ),
    Difference(
        "stricter: a length and a transfer coding",
        "RFC 9112, 6.3: it may be an attempt at smuggling; h11 ignores the length",
        lambda each: each.stricter and each.header("content-length") and each.header("transfer-encoding"),
    ),
    Difference(
        "stricter: another version of HTTP",
        "h11 reads any digits; there is no response of HTTP/2.0 in this form",
        lambda each: each.stricter and _has(rb"(^|\n)HTTP/(?!1\.[01] )", each.interim + each.head),
    ),
    Difference(
        "stricter: an interim response that announces a close",
        "what follows it contradicts it; llhttp reads nothing behind it",
        lambda each: (
            each.stricter and _has(rb"\n(proxy-)?connection:[^\n]*close|(^|\n)HTTP/1\.0", each.interim)
        ),
    ),
    Difference(
        "stricter: a length or a chunk of more than 2**64 bytes",
        "h11 waits for them",
        lambda each: each.stricter and _has(rb"[0-9a-f]{16}", each.header("content-length") + each.framing),
    ),
    Difference(
        "stricter: a long head",
        "h11 bounds only what is incomplete: one that comes at once may have any length",
        lambda each: each.stricter and max(len(each.head), len(each.framing)) > MAX_HEAD,
    ),
    Difference(
        "stricter: framing among trailers",
        "RFC 9110, 6.5.1 forbids it",
        lambda each: each.stricter and _has(rb"\n(content-length|transfer-encoding)", each.framing),
    ),
    Difference(
        "stricter: a tab behind chunked",
        "llhttp does not know the coding then, and would hand over the chunks with their sizes",
        lambda each: each.stricter and b"chunked\t" in each.header("transfer-encoding").lower(),
    ),
    Difference(
        "lenient: the line of a chunk that is too long, before its end",
        "the bound is on what came without a piece of the body: we find it a little later",
        lambda each: each.lenient and len(each.case.data) > MAX_HEAD,
    ),
    Difference(
        "stricter: a line of blanks in a head",
        "llhttp takes it for the end of the head, RFC 9112, 5.2 for a value that goes on: nobody knows",
        lambda each: each.stricter and _has(rb"\n[ \t]+\r?\n|\r\r", each.interim + each.head),
    ),
    Difference(
        "stricter: extensions of chunks",
        "llhttp reads them by the grammar of RFC 9112, 7.1.1; h11 takes whatever stands behind the semicolon",
        lambda each: each.stricter and b";" in each.framing,
    ),
    Difference(
        "lenient: the body of a response that has none",
        "HEAD, 204, 304, and a tunnel: nobody reads what the head says of it",
        lambda each: (
            each.lenient and each.no_body and each.header("transfer-encoding") + each.header("content-length")
        ),
    ),
    Difference(
        "lenient: 101",
        "nobody asked for another protocol: the response counts, and its connection is closed",
        lambda each: each.lenient and each.ours.status == 101,
    ),
    Difference(
        "lenient: a blank before a colon",
        "llhttp takes it behind the names of the framing, and acts on them; h11 and RFC 9112, 5.1 refuse it in requests too",
        lambda each: (
            each.lenient
            and _has(
                rb"\n(content-length|transfer-encoding|(proxy-)?connection|upgrade) ",
                each.interim + each.head,
            )
        ),
    ),
    Difference(
        "lenient: a carriage return in the middle of a line",
        "llhttp takes one before a value for a blank",
        lambda each: each.lenient and _has(rb":[ \t]*\r[^\n]", each.interim + each.head),
    ),
    Difference(
        "lenient: a blank before the first header",
        "llhttp takes the rest of the line for a header",
        lambda each: each.lenient and _has(rb"(^|\n)HTTP/[^\n]*\n[ \t]", each.interim + each.head),
    ),
    Difference(
        "lenient: empty lines before a response",
        "RFC 9112, 2.2 has servers skip them before a request; llhttp does before any message",
        lambda each: each.lenient and _has(rb"^[\r\n]|\n\r?\n[\r\n]", each.interim + each.head),
    ),
    Difference(
        "lenient: characters of an interim response",
        "nobody sees its headers",
        lambda each: each.lenient and _has(rb"[\0-\x08\x0b-\x1f]", each.interim.replace(b"\r\n", b"")),
    ),
    Difference(
        "lenient: zeros before a length or the size of a chunk",
        "h11 reads 20 digits at most",
        lambda each: each.lenient and _has(rb"\b0[0-9a-f]{20}", each.header("content-length") + each.framing),
    ),
    Difference(
        "lenient: lines of chunks",
        "llhttp takes blanks behind a size and bare line feeds, as many servers do; the sizes stay without doubt",
        lambda each: not each.stricter and _has(rb"[0-9a-f][ \t]+[\r;\n]|(?<!\r)\n|;\n", each.framing),
    ),
    Difference(
        "lenient: trailers",
        "they are dropped; h11 checks them like headers",
        lambda each: each.lenient and _has(rb"(^|\n)0+[^\n]*\n[^\r\n]", each.framing),
    ),
    Difference(
        "kept: HTTP/1.0 with keep-alive",
        "RFC 9112, 9.3 allows it to a client; h11 never does",
        lambda each: (
            each.what == "kept"
            and each.head.startswith(b"HTTP/1.0")
            and _has(rb"keep-alive", each.header("connection"))
        ),
    ),
    Difference(
        "not kept: proxy-connection",
        "llhttp takes it for connection, which old proxies mean by it",
        lambda each: each.what == "not kept" and b"close" in each.header("proxy-connection"),
    ),
    Difference(
        "not kept: a connection header that goes on in the next line",
        "llhttp takes each line for itself",
        lambda each: each.what == "not kept" and _has(rb"close\s+\n[ \t]", each.header("connection")),
    ),
    Difference(
        "not kept: no body and no length in answer to HEAD",
        "llhttp cannot know that no body comes; a connection is lost, never a response",
        lambda each: (
            each.what == "not kept" and each.case.method == "HEAD" and not each.header("content-length")
        ),
    ),
)
"""In the order in which they are asked: the first that holds is the one that is counted."""


def explain(case: Case, ours: Read, theirs: Read) -> str | None:
    """The name of the row that a difference belongs to, "" if there is no difference, None if there is no row."""
    what = difference(case, ours, theirs)
    if not what:
        return ""
    if ours.end == MALFORMED and theirs.end in {WAITING, LOST, TRUNCATED}:
        # llhttp tells what is wrong at that byte, h11 when the line or the head is complete.
        ends = (evolve(case, data=case.data + end, closed=False) for end in (b"\r\n\r\n", b"\n\n"))
        if any(TheirReader(each).read().end == MALFORMED for each in ends):
            return ""
    found = facts(case, ours, theirs, what)
    return next((row.name for row in DIFFERENCES if row.holds(found)), None)


class Comparison:
    """Draws cases, reads each, and counts.

    Attributes:
        met: how often each row of the table explained a case.
        unexplained: cases with a difference that no row explains, and what it is.
        uneven: cases that our reader read differently when the bytes were cut otherwise.
    """

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self.met: Counter[str] = Counter()
        self.unexplained: list[tuple[Case, str]] = []
        self.uneven: list[tuple[Case, str]] = []

    def run(self, *, every_byte: bool) -> None:
        """Draw a case, read it as a whole, cut at random, and with ``every_byte`` cut in two at every byte."""
        case = draw(self._chance)
        theirs = TheirReader(case).read()
        if theirs.rest:
            # Whether what stands behind a response spoils it depends on what the socket gave with it; never is the
            # connection kept, but for an empty line.
            self._check_surplus(case, theirs.rest)
            case = evolve(case, data=case.data[: -theirs.rest])
            theirs = TheirReader(case).read()
        ours = read_ours(case)
        if MALFORMED in (ours.end, theirs.end):
            # h11 does not say where what it refuses ends.
            end = whole_length(case)
            case = evolve(case, data=case.data[:end])
            theirs, ours = TheirReader(case).read(), read_ours(case)
        row = explain(case, ours, theirs)
        if row is None:
            self.unexplained.append((case, difference(case, ours, theirs)))
        elif row:
            self.met[row] += 1
        self._compare(case, ours, cuts(self._chance, len(case.data)))
        if every_byte:
            for at in range(1, len(case.data)):
                self._compare(case, ours, [at])
            self._compare(case, ours, range(1, len(case.data)))

    def _check_surplus(self, case: Case, rest: int) -> None:
        surplus = case.data[-rest:]
        if read_ours(case).kept and surplus.strip(b"\r\n"):
            self.unexplained.append((case, "kept in spite of bytes behind the response"))

    def _compare(self, case: Case, ours: Read, at: Sequence[int]) -> None:
        max_whole, direct = self._chance.choice(((MAX_WHOLE, False), (MAX_WHOLE, True), (0, False)))
        read = read_ours(case, at, max_whole=max_whole, direct=direct)
        if read.body is None or ours.body is None:
            read, ours = evolve(read, body=None), evolve(ours, body=None)
        # A bound on what stands between two chunks is counted in what arrives at once: it may come a little later.
        if read != ours and not (read.end == MALFORMED and len(case.data) > MAX_HEAD):
            cut = ", ".join(map(str, at[:9]))
            self.uneven.append((case, f"cut at {cut} {max_whole=} {direct=}: {read} instead of {ours}"))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.transport.compare_h11", description=__doc__)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument(
        "--every", type=int, default=10, help="of this many cases one is also cut at every byte"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    comparison = Comparison(options.seed)
    for number in range(options.cases):
        comparison.run(every_byte=number % options.every == 0)
    for row in DIFFERENCES:
        print(f"{comparison.met[row.name]:9,}  {row.name}: {row.why}")
    for kind in ("unexplained", "uneven"):
        found = getattr(comparison, kind)
        print(f"{len(found):9,}  {kind}")
        for case, what in found[:10]:
            print(
                f"           {what[:300]}: {case.method} {case.data[:600]!r} {'closed' if case.closed else 'open'}"
            )
    never = [row.name for row in DIFFERENCES if not comparison.met[row.name]]
    print(f"{len(never):9,}  rows that no case met: {never}")
    return 1 if comparison.unexplained or comparison.uneven or never else 0


if __name__ == "__main__":
    sys.exit(main())
