"""Rows H01 to H19 of the fault matrix: statuses and headers. H09 and H10 are `OutageSchedule` and `Flaky`."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from email.utils import format_datetime

from attrs import evolve

from tests.support.faults.connection_rows import NOISE, with_headers
from tests.support.faults.encodings import encoded_as, gzip_bomb, gzipped, truncated_gzip
from tests.support.faults.fault import Fault
from tests.support.faults.openai import answer_openai, error_answer
from tests.support.faults.request import Request
from tests.support.faults.response import Answer, Framing, Header, HeaderText, json_answer
from tests.support.faults.script import Close, Playable, Repeat, Responder, Script, Send

GIBIBYTE = 1 << 30
FLOOD_PIECE = b" " * (1 << 16)
DATE = ("date", "Tue, 15 Nov 1994 12:00:00 GMT")


def rate_limited(*headers: Header) -> Answer:
    """Return a plain 429 with these headers."""
    return error_answer(
        429, "Rate limit reached.", kind="requests", code="rate_limit_exceeded", headers=headers
    )


def retry_after(value: HeaderText, *others: Header) -> Answer:
    """Return a 429 with this Retry-After."""
    return rate_limited(("retry-after", value), *others)


def redirect(status: int, location: HeaderText) -> Answer:
    """Return a redirect to anywhere."""
    return Answer(status, b"", [("location", location)])


def bomb(size: int) -> Answer:
    """Return an answer that expands a thousandfold to `size` spaces."""
    return encoded_as(Answer(200, gzip_bomb(size), [("content-type", "application/json")]), "gzip")


def flood(size: int, *, framing: Framing) -> Script:
    """Send `size` spaces as fast as the client reads them, and close; with AS_GIVEN the length is announced."""
    answer = Answer(200, b"", [("content-type", "application/json")], framing)
    if framing is Framing.AS_GIVEN:
        answer = answer.plus(("content-length", str(size)))
    pieces = Repeat([Send(FLOOD_PIECE)], times=size // len(FLOOD_PIECE))
    return Script([Send(answer), pieces, Close()])


def _skewed(request: Request) -> Answer:
    """Ask for 30 s by a clock that is one hour fast, and say what that clock shows."""
    there = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    later = there + dt.timedelta(seconds=30)
    return retry_after(format_datetime(later, usegmt=True), ("date", format_datetime(there, usegmt=True)))


def _typed(content_type: HeaderText | None, encoding: str = "utf-8") -> Responder:
    def reply(request: Request) -> Answer:
        good = answer_openai(request)
        body = good.body.decode().encode(encoding)
        return evolve(
            good, body=body, headers=[] if content_type is None else [("content-type", content_type)]
        )

    return reply


def _waits() -> Iterator[Fault]:
    yield Fault("H01", "1 s", retry_after("1"))
    yield Fault("H01", "1.5 s", retry_after("1.5"))
    yield Fault("H01", "250 ms", rate_limited(("retry-after-ms", "250")))
    odd = [
        "0",
        "-5",
        "nan",
        "inf",
        "1e400",
        "0x10",
        "1_000",
        "١٢",
        " 3 ",
        "1,2",
        "",
        "tomorrow",
        "9" * 1_000_000,
    ]
    for value in odd:
        yield Fault("H02", f"Retry-After {value[:10]!r}", retry_after(value))
    yield Fault("H03", "for ever", retry_after("1000000000"))
    yield Fault("H03", "just too long", retry_after("121"))
    yield Fault("H05", "several", retry_after("1", ("retry-after", "3"), ("retry-after", "2")))
    yield Fault("H05", "ms and s disagree", retry_after("30", ("retry-after-ms", "500")))
    yield Fault("H06", "no hint", rate_limited())


def _dates() -> Iterator[Fault]:
    yield Fault("H04", "past", retry_after("Tue, 15 Nov 1994 11:00:00 GMT", DATE))
    yield Fault("H04", "in 30 s", retry_after("Tue, 15 Nov 1994 12:00:30 GMT", DATE))
    yield Fault("H04", "year 9999", retry_after("Fri, 31 Dec 9999 23:59:59 GMT", DATE))
    yield Fault("H04", "RFC 850", retry_after("Tuesday, 15-Nov-94 12:00:30 GMT", DATE))
    yield Fault("H04", "asctime", retry_after("Tue Nov 15 12:00:30 1994", DATE))
    yield Fault("H04", "wrong weekday", retry_after("Mon, 15 Nov 1994 12:00:30 GMT", DATE))
    yield Fault("H04", "no time zone", retry_after("Tue, 15 Nov 1994 12:00:30", DATE))
    yield Fault("H04", "skewed by an hour", _skewed)


def _statuses() -> Iterator[Fault]:
    money = ["insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded"]
    for code in money:
        quota = error_answer(429, "You exceeded your current quota.", kind="insufficient_quota", code=code)
        yield Fault("H07", code, quota)
    yield Fault("H07", "402", error_answer(402, "Payment required."))
    for status in (500, 502, 503, 504, *range(520, 530), 501, 505, 599, 600, 999):
        yield Fault("H08", str(status), error_answer(status, "The server had an error.", kind="server_error"))
    for status in (401, 403, 404, 400, 413, 422):
        yield Fault("H11", str(status), error_answer(status, "No."))
    for status in (408, 409):
        yield Fault("H12", str(status), error_answer(status, "Not now."))
        for allowed in ("true", "false"):
            veto = error_answer(status, "Not now.", headers=[("x-should-retry", allowed)])
            yield Fault("H12", f"{status}, x-should-retry {allowed}", veto)


def _redirects() -> Iterator[Fault]:
    places = {
        "the same path, a loop": "/v1/embeddings",
        "another path": "/v2/embeddings",
        "another host": "https://elsewhere.example/v1/embeddings",
        "plain http": "http://127.0.0.1:9/v1/embeddings",
        "cloud metadata": "http://169.254.169.254/latest/meta-data/",
        "a bad URL": "http://[::1",
        "nowhere": "",
    }
    for status in (301, 302, 303, 307, 308):
        for name, location in places.items():
            yield Fault("H13", f"{status} to {name}", redirect(status, location))
    yield Fault("H13", "302 without a location", Answer(302))


def _bodies() -> Iterator[Fault]:
    yield Fault(
        "H14",
        "HTML",
        Answer(200, b"<html><body>502 Bad Gateway</body></html>", [("content-type", "text/html")]),
    )
    yield Fault(
        "H14", "error in a 200", json_answer({"error": {"message": "It broke.", "type": "server_error"}})
    )
    yield Fault("H14", "empty 200", Answer(200, b"", [("content-type", "application/json")]))
    yield Fault("H14", "204", Answer(204, framing=Framing.AS_GIVEN))
    yield Fault("H15", "text/plain", _typed("text/plain"))
    yield Fault("H15", "no content-type", _typed(None))
    yield Fault("H15", "charset utf-16, truly", _typed("application/json; charset=utf-16", "utf-16"))
    yield Fault("H15", "charset utf-16, falsely", _typed("application/json; charset=utf-16"))


def _rates() -> Iterator[Fault]:
    def limit_headers(limit: str, remaining: str, reset: str | None) -> Playable:
        headers: list[Header] = [
            ("x-ratelimit-limit-requests", limit),
            ("x-ratelimit-remaining-requests", remaining),
        ]
        return with_headers(*headers, *([] if reset is None else [("x-ratelimit-reset-requests", reset)]))

    for value in ("-1", "NaN", "1e30", "inf", "many", ""):
        yield Fault("H16", f"everything {value!r}", limit_headers(value, value, value))
    yield Fault("H16", "no reset", limit_headers("60", "0", None))
    yield Fault("H16", "reset by RFC 3339", limit_headers("60", "0", "2025-08-21T12:40:59Z"))
    yield Fault("H16", "reset in 6m0s", limit_headers("60", "0", "6m0s"))
    yield Fault("H16", "limit suddenly 1", limit_headers("1", "1", "1s"))
    yield Fault("H17", "cookie", with_headers(("set-cookie", "session=1; Path=/")))


def _encodings() -> Iterator[Fault]:
    yield Fault("H18", "honest gzip", lambda request: gzipped(answer_openai(request)))
    yield Fault("H18", "gzip bomb, 512 MiB", lambda request: bomb(GIBIBYTE // 2))
    yield Fault("H18", "20 encodings", lambda request: gzipped(answer_openai(request), times=20))
    yield Fault("H18", "bad gzip", encoded_as(Answer(200, NOISE), "gzip"))
    yield Fault("H18", "plain text called gzip", lambda request: encoded_as(answer_openai(request), "gzip"))
    yield Fault("H18", "gzip without its trailer", lambda request: truncated_gzip(answer_openai(request)))
    yield Fault(
        "H18", "gzip cut in the middle", lambda request: truncated_gzip(answer_openai(request), missing=40)
    )
    for encoding in ("br", "zstd", "deflate", "rot13"):
        yield Fault("H18", f"{encoding}, not asked for", encoded_as(Answer(200, NOISE), encoding))
    yield Fault("H19", "2 GiB with a length", flood(2 * GIBIBYTE, framing=Framing.AS_GIVEN))
    yield Fault("H19", "2 GiB until EOF", flood(2 * GIBIBYTE, framing=Framing.EOF))


STATUS_ROWS = (
    *_waits(),
    *_dates(),
    *_statuses(),
    *_redirects(),
    *_bodies(),
    *_rates(),
    *_encodings(),
)
