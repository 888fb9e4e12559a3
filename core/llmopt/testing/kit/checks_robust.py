"""Verdicts on errors that are odd: none makes classify_error crash, and only what they say counts."""

from __future__ import annotations

from typing import Final

from llmopt.testing.kit.check import Family, expect
from llmopt.testing.kit.judging import corpus, judged, survives, tried_again, verdict_of
from llmopt.testing.kit.junk import ANSWERS, altered
from llmopt.testing.kit.subject import Subject
from llmopt.testing.samples import SampleError
from llmopt.values.failure import Failure

check: Final = Family("errors")

_STRANGE: Final[tuple[dict[str, str], ...]] = (
    {"retry-after": "soon"},
    {"retry-after": "-1", "retry-after-ms": "nan"},
    {"retry-after": "1e999", "x-should-retry": "maybe"},
    {"content-type": "", "x-request-id": "\u0663" * 500},
    {"retry-after": "Wed, 99 Foo 2026 25:61:61 GMT"},
)
_FOREIGN: Final = {
    "server": "kit",
    "date": "Sat, 21 Nov 2026 10:00:00 GMT",
    "x-request-id": "kit-1",
    "via": "1.1 kit",
}
_DETAILS: Final = (
    "[]",
    "[{}]",
    '[{"loc":null,"msg":null}]',
    '[{"loc":["body","input",7],"msg":["x"]}]',
    '"x"',
    '{"detail":[{"msg":"x"}]}',
    '[[["x"]]]',
    "null",
    "7",
)
_LATER: Final = {"retry-after": "5", "x-ratelimit-remaining-requests": "0", "x-should-retry": "true"}


@check("large-body")
def _large_body(subject: Subject) -> None:
    """An error of 1 MB is judged like a small one."""
    small = judged(subject, 401, subject.dialect.error(SampleError(status=401, message="no")))
    large = judged(subject, 401, subject.dialect.error(SampleError(status=401, message="no" * 500_000)))
    expect(large.kind is small.kind, f"it is {large.kind.name} instead of {small.kind.name}.")


@check("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever the body of a 400, a 401, a 429 or a 500 is, classify_error gives a verdict: it never crashes."""
    for status in (400, 401, 429, 500):
        for label, body in ANSWERS:
            survives(subject, Failure(status=status, body=body[:65536]), f"status {status} with {label}")


@check("altered")
def _altered(subject: Subject) -> None:
    """A known error with any one value replaced or left out gets a verdict: classify_error never crashes."""
    for each in corpus():
        for label, body in altered(each.body):
            failure = Failure(status=each.status, headers=dict(each.headers), body=body)
            survives(subject, failure, f"{each.name} with {label}")


@check("validation-lists")
def _validation_lists(subject: Subject) -> None:
    """FastAPI's lists of what is wrong, in every odd form, get a verdict."""
    for detail in _DETAILS:
        body = f'{{"detail":{detail}}}'.encode()
        survives(subject, Failure(status=422, body=body), f"detail = {detail}")


@check("foreign-headers")
def _foreign_headers(subject: Subject) -> None:
    """Headers that say nothing about the error do not change its verdict."""
    for each in corpus():
        plain = verdict_of(subject, each.failure).kind
        found = judged(subject, each.status, each.body, {**each.headers, **_FOREIGN}).kind
        expect(found is plain, f"{each.name} is {plain.name}, and {found.name} with {', '.join(_FOREIGN)}.")


@check("headers-invite")
def _headers_invite(subject: Subject) -> None:
    """Retry-After and its like never make an error worth trying again that is not: they come with anything."""
    for each in corpus():
        if not tried_again(verdict_of(subject, each.failure)):
            found = judged(subject, each.status, each.body, {**each.headers, **_LATER})
            expect(
                not tried_again(found),
                f"{each.name} becomes {found.kind.name} when it comes with Retry-After.",
            )


@check("strange-headers")
def _strange_headers(subject: Subject) -> None:
    """Headers that make no sense never make classify_error crash."""
    for headers in _STRANGE:
        for status in (400, 429, 503):
            survives(subject, Failure(status=status, headers=headers), f"status {status} with {headers}")


@check("every-operation")
def _every_operation(subject: Subject) -> None:
    """Errors of the catalogue and of chats get verdicts as those of embeddings do."""
    for status in (400, 401, 404, 429, 500):
        survives(subject, Failure(status=status, operation="catalog"), f"a catalogue's {status}")
        survives(subject, Failure(status=status, operation="chat", model="kit-chat"), f"a chat's {status}")
