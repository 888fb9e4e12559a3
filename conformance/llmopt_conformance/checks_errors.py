"""Checks of error classification."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from llmopt.testing.dialect import SampleError
from llmopt.values.http import Failure, VerdictKind
from llmopt_conformance.fixtures import (
    ANSWERS,
    HTML,
    altered,
    corpus,
    survives,
    tried_again,
    verdict_for,
    verdict_of,
)
from llmopt_conformance.subject import Family, Subject, expect, type_faults

errors_checks: Final = Family("errors")


def _known(name: str) -> Callable[[Subject], None]:
    """A errors_checks that the errors of the corpus that belong to it get their verdicts."""

    def ask(subject: Subject) -> None:
        errors = [each for each in corpus() if each.check == name]
        faults = [fault for each in errors for fault in each.faults(verdict_of(subject, each.failure))]
        expect(not faults, "\n".join(faults))

    ask.__doc__ = _SENTENCES[name]
    return ask


_SENTENCES: Final = {
    "quota": "Money or quota that is gone is QUOTA_EXHAUSTED, never tried again, also as a 429 with Retry-After.",
    "auth": "A key that is refused is AUTH.",
    "permission": "A key that may not do this is PERMISSION.",
    "not-found": "A model or path that is not there is NOT_FOUND.",
    "bad-request": "A request that is wrong as a whole is BAD_REQUEST: trying again cannot help.",
    "too-large": "A request that holds too much is BATCH_TOO_LARGE, so that it is split.",
    "too-long": "A text that is too long is ITEM_TOO_LONG or BATCH_TOO_LARGE, so that it is found.",
    "content-filter": "What the provider's filter refuses is CONTENT_FILTERED.",
    "rate-limit": "A 429 that will pass is RATE_LIMITED, or OVERLOADED.",
    "overloaded": "A server with too much to do is OVERLOADED.",
    "server-error": "A failure of the server's that may pass is TRANSIENT, or OVERLOADED.",
    "timeout": "A server or gateway that gave up waiting is TIMEOUT, or TRANSIENT.",
}
for _name in _SENTENCES:
    errors_checks(_name)(_known(_name))


def _sweep(subject: Subject, statuses: range) -> None:
    error = subject.dialect.error(SampleError(status=statuses.start, message="something is wrong"))
    for status in statuses:
        for label, body in (("no body", b""), ("HTML", HTML), ("an error", error)):
            verdict = survives(subject, Failure(status=status, body=body), f"status {status} with {label}")
            expect(
                verdict.kind is not VerdictKind.INVALID_RESPONSE,
                f"status {status} with {label} is INVALID_RESPONSE, which is for answers of success.",
            )


@errors_checks("every-4xx")
def _every_4xx(subject: Subject) -> None:
    """Every status from 400 to 499 gets a verdict that fits an error, with any body."""
    _sweep(subject, range(400, 500))


@errors_checks("every-5xx")
def _every_5xx(subject: Subject) -> None:
    """Every status from 500 to 599 gets a verdict that fits an error, with any body."""
    _sweep(subject, range(500, 600))


@errors_checks("odd-status")
def _odd_status(subject: Subject) -> None:
    """A status that nobody expects, or an error under 200, gets a verdict too."""
    for status in (100, 199, 200, 204, 207, 301, 304, 399, 600, 799, 999):
        survives(subject, Failure(status=status), f"status {status}")


@errors_checks("permanent-4xx")
def _permanent_4xx(subject: Subject) -> None:
    """A plain 400, 401, 403, 404, 405, 410, 415, 422 or 431 is not tried again."""
    for status in (400, 401, 403, 404, 405, 410, 415, 422, 431):
        expect(not tried_again(verdict_for(subject, status)), f"a bare {status} would be tried again.")


@errors_checks("passing-5xx")
def _passing_5xx(subject: Subject) -> None:
    """A plain 500, 502, 503 or 504 is tried again."""
    for status in (500, 502, 503, 504):
        verdict = verdict_for(subject, status)
        expect(tried_again(verdict), f"a bare {status} would not be tried again: it is {verdict.kind.name}.")


@errors_checks("types")
def _types(subject: Subject) -> None:
    """classify_error returns a Verdict, each field of its own type."""
    for each in corpus():
        faults = type_faults(verdict_of(subject, each.failure))
        expect(not faults, f"for {each.name}: {'; '.join(faults)}")


@errors_checks("numbers")
def _numbers(subject: Subject) -> None:
    """What a verdict says of waiting and of items is usable: seconds that end, an index from 0."""
    for each in corpus():
        verdict = verdict_of(subject, each.failure)
        wait = verdict.retry_after
        expect(
            wait is None or (math.isfinite(wait) and wait >= 0), f"for {each.name}: retry_after is {wait}."
        )
        expect(verdict.item is None or verdict.item >= 0, f"for {each.name}: item is {verdict.item}.")


@errors_checks("message")
def _message(subject: Subject) -> None:
    """A verdict's message is the provider's own sentence, at most 2,000 characters, or empty for the body's."""
    body = subject.dialect.error(SampleError(status=400, message="kit sentence " * 50_000))
    verdict = verdict_for(subject, 400, body)
    expect(len(verdict.message) <= 2_000, f"the message has {len(verdict.message)} characters.")


# Malformed errors: none makes classify_error raise.

robust_checks: Final = Family("errors")
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


@robust_checks("large-body")
def _large_body(subject: Subject) -> None:
    """An error of 1 MB is verdict_for like a small one."""
    small = verdict_for(subject, 401, subject.dialect.error(SampleError(status=401, message="no")))
    large = verdict_for(subject, 401, subject.dialect.error(SampleError(status=401, message="no" * 500_000)))
    expect(large.kind is small.kind, f"it is {large.kind.name} instead of {small.kind.name}.")


@robust_checks("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever the body of a 400, a 401, a 429 or a 500 is, classify_error gives a verdict: it never crashes."""
    for status in (400, 401, 429, 500):
        for label, body in ANSWERS:
            survives(subject, Failure(status=status, body=body[:65536]), f"status {status} with {label}")


@robust_checks("altered")
def _altered(subject: Subject) -> None:
    """A known error with any one value replaced or left out gets a verdict: classify_error never crashes."""
    for each in corpus():
        for label, body in altered(each.body):
            failure = Failure(status=each.status, headers=dict(each.headers), body=body)
            survives(subject, failure, f"{each.name} with {label}")


@robust_checks("validation-lists")
def _validation_lists(subject: Subject) -> None:
    """FastAPI's lists of what is wrong, in every odd form, get a verdict."""
    for detail in _DETAILS:
        body = f'{{"detail":{detail}}}'.encode()
        survives(subject, Failure(status=422, body=body), f"detail = {detail}")


@robust_checks("foreign-headers")
def _foreign_headers(subject: Subject) -> None:
    """Headers that say nothing about the error do not change its verdict."""
    for each in corpus():
        plain = verdict_of(subject, each.failure).kind
        found = verdict_for(subject, each.status, each.body, {**each.headers, **_FOREIGN}).kind
        expect(found is plain, f"{each.name} is {plain.name}, and {found.name} with {', '.join(_FOREIGN)}.")


@robust_checks("headers-invite")
def _headers_invite(subject: Subject) -> None:
    """Retry-After and its like never make an error worth trying again that is not: they come with anything."""
    for each in corpus():
        if not tried_again(verdict_of(subject, each.failure)):
            found = verdict_for(subject, each.status, each.body, {**each.headers, **_LATER})
            expect(
                not tried_again(found),
                f"{each.name} becomes {found.kind.name} when it comes with Retry-After.",
            )


@robust_checks("strange-headers")
def _strange_headers(subject: Subject) -> None:
    """Headers that make no sense never make classify_error crash."""
    for headers in _STRANGE:
        for status in (400, 429, 503):
            survives(subject, Failure(status=status, headers=headers), f"status {status} with {headers}")


@robust_checks("every-operation")
def _every_operation(subject: Subject) -> None:
    """Errors of the catalogue and of chats get verdicts as those of embeddings do."""
    for status in (400, 401, 404, 429, 500):
        survives(subject, Failure(status=status, operation="catalog"), f"a catalogue's {status}")
        survives(subject, Failure(status=status, operation="chat", model="kit-chat"), f"a chat's {status}")
