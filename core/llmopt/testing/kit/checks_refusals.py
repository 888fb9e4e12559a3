"""Answers that are no vectors, or not the right ones: none passes for what it is not."""

from __future__ import annotations

import json
from typing import Final

from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.testing.kit.check import CheckFailed, Family, NotApplicable, expect, explain
from llmopt.testing.kit.junk import ANSWERS, HTML, altered
from llmopt.testing.kit.reading import (
    REFUSED,
    count_of,
    never_accepted,
    parse,
    refuses,
    rows_of,
    several,
    word,
)
from llmopt.testing.kit.subject import Subject
from llmopt.testing.samples import SampleError, SampleRows
from llmopt.values.embeddings import EmbeddedRows
from llmopt.values.failure import Failure

check: Final = Family("embeddings")


@check("too-few")
def _too_few(subject: Subject) -> None:
    """An answer with a vector too few never passes for a right one."""
    never_accepted(subject, rows_of(count_of(subject) - 1), "a vector too few")


@check("too-many")
def _too_many(subject: Subject) -> None:
    """An answer with a vector too many never passes for a right one."""
    never_accepted(subject, rows_of(count_of(subject) + 1), "a vector too many")


@check("index-twice")
def _index_twice(subject: Subject) -> None:
    """An answer that names one index twice never passes for a right one."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    rows = rows_of(several(subject)).rows
    never_accepted(subject, SampleRows(rows=(rows[0], (rows[0][0], rows[1][1]), *rows[2:])), "an index twice")


@check("index-out-of-range")
def _index_out_of_range(subject: Subject) -> None:
    """An answer whose indices do not begin at 0 never passes for a right one."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    rows = rows_of(several(subject)).rows
    shifted = tuple((index + 1, row) for index, row in rows)
    never_accepted(subject, SampleRows(rows=shifted), "indices that begin at 1")


@check("ragged")
def _ragged(subject: Subject) -> None:
    """An answer with vectors of different lengths never passes for a right one."""
    rows = rows_of(several(subject)).rows
    never_accepted(subject, SampleRows(rows=(*rows[:-1], (rows[-1][0], (1.0,)))), "vectors of two lengths")


@check("empty-vectors")
def _empty_vectors(subject: Subject) -> None:
    """An answer with vectors without numbers never passes for a right one."""
    rows = tuple((index, ()) for index in range(count_of(subject)))
    never_accepted(subject, SampleRows(rows=rows), "empty vectors")


@check("not-finite")
def _not_finite(subject: Subject) -> None:
    """An answer with NaN or infinity among its numbers never passes for a right one."""
    good = subject.dialect.embeddings(
        SampleRows(rows=tuple((i, (0.5, 0.25)) for i in range(count_of(subject))))
    )
    for number in (b"NaN", b"Infinity", b"1e999", b"null"):
        refuses(subject, good.replace(b"0.25", number), f"the number {number.decode()}")


@check("failure-under-200")
def _failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse; it never has vectors."""
    found = parse(subject, subject.dialect.error(SampleError(status=200, message="the model failed")))
    expect(not isinstance(found, EmbeddedRows), "an error under status 200 passes for vectors.", REFUSED)
    if isinstance(found, Failure):
        verdict = subject.hooks.classify_error(found, subject.settings())
        expect(verdict.kind is not None, "the failure has no verdict.")


@check("html")
def _html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    refuses(subject, HTML, "a page of HTML instead of JSON")


@check("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever comes, parse_embeddings gives rows or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        try:
            refuses(subject, body, label)
        except LLMOptError as error:
            raise CheckFailed(f"for {label}: {explain(error)}", REFUSED) from None


@check("altered")
def _altered(subject: Subject) -> None:
    """A right answer with any one value replaced or left out never makes parse_embeddings crash."""
    body = subject.dialect.embeddings(rows_of(count_of(subject), 2))
    for label, changed in altered(body):
        try:
            found = parse(subject, changed)
        except LLMOptError as error:
            raise CheckFailed(f"for an answer with {label}: {explain(error)}", REFUSED) from None
        expect(isinstance(found, (EmbeddedRows, Failure, InvalidResponse)), f"for {label}: {word(found)}")


@check("cut-off")
def _cut_off(subject: Subject) -> None:
    """An answer that stops in the middle is refused, wherever it stops."""
    body = subject.dialect.embeddings(rows_of(count_of(subject), 2))
    for end in range(0, len(body) - 1, 7):
        try:
            json.loads(body[:end])
        except ValueError:
            refuses(subject, body[:end], f"its last {len(body) - end} bytes missing")
