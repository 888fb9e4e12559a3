"""Verdicts: what every error means, by what to do next. Everything the engine does rests on these."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from llmopt.testing.kit.check import Family, expect
from llmopt.testing.kit.judging import corpus, judged, survives, tried_again, verdict_of
from llmopt.testing.kit.junk import HTML
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.types import type_faults
from llmopt.testing.samples import SampleError
from llmopt.values.failure import Failure
from llmopt.values.verdict import VerdictKind

check: Final = Family("errors")


def _known(name: str) -> Callable[[Subject], None]:
    """A check that the errors of the corpus that belong to it get their verdicts."""

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
    check(_name)(_known(_name))


def _sweep(subject: Subject, statuses: range) -> None:
    error = subject.dialect.error(SampleError(status=statuses.start, message="something is wrong"))
    for status in statuses:
        for label, body in (("no body", b""), ("HTML", HTML), ("an error", error)):
            verdict = survives(subject, Failure(status=status, body=body), f"status {status} with {label}")
            expect(
                verdict.kind is not VerdictKind.INVALID_RESPONSE,
                f"status {status} with {label} is INVALID_RESPONSE, which is for answers of success.",
            )


@check("every-4xx")
def _every_4xx(subject: Subject) -> None:
    """Every status from 400 to 499 gets a verdict that fits an error, with any body."""
    _sweep(subject, range(400, 500))


@check("every-5xx")
def _every_5xx(subject: Subject) -> None:
    """Every status from 500 to 599 gets a verdict that fits an error, with any body."""
    _sweep(subject, range(500, 600))


@check("odd-status")
def _odd_status(subject: Subject) -> None:
    """A status that nobody expects, or an error under 200, gets a verdict too."""
    for status in (100, 199, 200, 204, 207, 301, 304, 399, 600, 799, 999):
        survives(subject, Failure(status=status), f"status {status}")


@check("permanent-4xx")
def _permanent_4xx(subject: Subject) -> None:
    """A plain 400, 401, 403, 404, 405, 410, 415, 422 or 431 is not tried again."""
    for status in (400, 401, 403, 404, 405, 410, 415, 422, 431):
        expect(not tried_again(judged(subject, status)), f"a bare {status} would be tried again.")


@check("passing-5xx")
def _passing_5xx(subject: Subject) -> None:
    """A plain 500, 502, 503 or 504 is tried again."""
    for status in (500, 502, 503, 504):
        verdict = judged(subject, status)
        expect(tried_again(verdict), f"a bare {status} would not be tried again: it is {verdict.kind.name}.")


@check("types")
def _types(subject: Subject) -> None:
    """classify_error returns a Verdict, each field of its own type."""
    for each in corpus():
        faults = type_faults(verdict_of(subject, each.failure))
        expect(not faults, f"for {each.name}: {'; '.join(faults)}")


@check("numbers")
def _numbers(subject: Subject) -> None:
    """What a verdict says of waiting and of items is usable: seconds that end, an index from 0."""
    for each in corpus():
        verdict = verdict_of(subject, each.failure)
        wait = verdict.retry_after
        expect(
            wait is None or (math.isfinite(wait) and wait >= 0), f"for {each.name}: retry_after is {wait}."
        )
        expect(verdict.item is None or verdict.item >= 0, f"for {each.name}: item is {verdict.item}.")


@check("message")
def _message(subject: Subject) -> None:
    """A verdict's message is the provider's own sentence, at most 2,000 characters, or empty for the body's."""
    body = subject.dialect.error(SampleError(status=400, message="kit sentence " * 50_000))
    verdict = judged(subject, 400, body)
    expect(len(verdict.message) <= 2_000, f"the message has {len(verdict.message)} characters.")
