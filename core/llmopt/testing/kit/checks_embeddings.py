"""Answers with vectors: every one read, in its place; nothing else taken for one."""

from __future__ import annotations

import json
from typing import Any, Final

from attrs import evolve

from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.operations.check import in_input_order
from llmopt.testing.dialect import single, vector_of
from llmopt.testing.kit.asking import Asked
from llmopt.testing.kit.check import CheckFailed, Family, NotApplicable, expect, explain
from llmopt.testing.kit.junk import ANSWERS, HTML, altered
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import TEXTS
from llmopt.testing.samples import SampleError, SampleRows
from llmopt.values.embeddings import EmbeddedRows, Usage
from llmopt.values.failure import Failure

check: Final = Family("embeddings")

_REFUSED: Final = "parse_embeddings raises llmopt.InvalidResponse or returns a Failure."


def _rows(count: int, dimensions: int = 4) -> SampleRows:
    rows = ((index, vector_of(TEXTS[index % len(TEXTS)] + str(index), dimensions)) for index in range(count))
    return SampleRows(rows=tuple(rows))


def _parse(subject: Subject, body: bytes, *, count: int = 3, status: int = 200) -> Any:
    """What the plugin reads: rows, a failure, or the InvalidResponse it raises."""
    subject.without("embeddings")
    call = subject.embed_call(count)
    try:
        return subject.hooks.parse_embeddings(call, subject.answer(body, status=status), subject.settings())
    except InvalidResponse as error:
        return error


def _vectors(subject: Subject, answer: SampleRows, **changes: Any) -> list[tuple[float, ...]]:
    """The vectors as the core would hand them out.

    Raises:
        CheckFailed: there are none.
    """
    found = _parse(subject, subject.dialect.embeddings(evolve(answer, **changes)))
    if isinstance(found, EmbeddedRows):
        ordered = in_input_order(found, len(answer.rows), None)
        return [single(row) for row in ordered.tolist()]
    raise CheckFailed(
        f"parse_embeddings gave {_word(found)} for a right answer.", "the vectors of the answer."
    )


def _word(found: object) -> str:
    return explain(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"


def _count(subject: Subject) -> int:
    return min(3, subject.limit or 3)


def _several(subject: Subject) -> int:
    if _count(subject) < 2:
        raise NotApplicable("a request of this provider's holds one text")
    return _count(subject)


@check("numbers")
def _numbers(subject: Subject) -> None:
    """Vectors that come as lists of numbers are read exactly."""
    answer = _rows(_count(subject))
    expect(_vectors(subject, answer) == [row for _, row in answer.rows], "the vectors are other ones.")


@check("base64")
def _base64(subject: Subject) -> None:
    """A plugin that asks for base64 reads base64: float32, little-endian."""
    body = Asked(subject, subject.embed_call()).body
    if not subject.samples.common or not isinstance(body, dict) or body.get("encoding_format") != "base64":
        raise NotApplicable("the plugin does not ask for base64")
    answer = _rows(_count(subject))
    found = _vectors(subject, answer, base64=True)
    expect(found == [row for _, row in answer.rows], "the vectors are other ones.")


@check("shape")
def _shape(subject: Subject) -> None:
    """EmbeddedRows holds float32 vectors, one row each, and int64 indices or None."""
    answer = _rows(_count(subject))
    found = _parse(subject, subject.dialect.embeddings(answer))
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {_word(found)} for a right answer.")
    expect(str(found.vectors.dtype) == "float32", f"vectors are {found.vectors.dtype}.")
    expect(found.vectors.shape == (len(answer.rows), 4), f"the shape is {found.vectors.shape}.")
    expect(found.indices is None or str(found.indices.dtype) == "int64", "indices are not int64.")


@check("one-text")
def _one_text(subject: Subject) -> None:
    """An answer with a single vector is read."""
    answer = _rows(1)
    found = _parse(subject, subject.dialect.embeddings(answer), count=1)
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {_word(found)}.")
    expect(
        single(in_input_order(found, 1, None)[0].tolist()) == answer.rows[0][1], "the vector is another one."
    )


@check("order")
def _order(subject: Subject) -> None:
    """Vectors that come in another order are put in their places by their index."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    answer = _rows(_several(subject))
    found = _vectors(subject, answer, rows=answer.rows[::-1])
    expect(
        found == [row for _, row in answer.rows], "the vectors are at the wrong texts: the index is not used."
    )


@check("usage")
def _usage(subject: Subject) -> None:
    """The tokens that an answer reports are read, and none are made up."""
    found = _parse(subject, subject.dialect.embeddings(evolve(_rows(_count(subject)), tokens=41)))
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {_word(found)} for a right answer.")
    usage: Usage | None = found.usage
    if usage is None and not subject.samples.common:
        return
    expect(usage is not None and usage.total_tokens == 41, f"41 tokens were reported, usage is {usage}.")


@check("too-few")
def _too_few(subject: Subject) -> None:
    """An answer with a vector too few never passes for a right one."""
    _never_accepted(subject, _rows(_count(subject) - 1), "a vector too few")


@check("too-many")
def _too_many(subject: Subject) -> None:
    """An answer with a vector too many never passes for a right one."""
    _never_accepted(subject, _rows(_count(subject) + 1), "a vector too many")


@check("index-twice")
def _index_twice(subject: Subject) -> None:
    """An answer that names one index twice never passes for a right one."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    rows = _rows(_several(subject)).rows
    _never_accepted(
        subject, SampleRows(rows=(rows[0], (rows[0][0], rows[1][1]), *rows[2:])), "an index twice"
    )


@check("index-out-of-range")
def _index_out_of_range(subject: Subject) -> None:
    """An answer whose indices do not begin at 0 never passes for a right one."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    rows = _rows(_several(subject)).rows
    shifted = tuple((index + 1, row) for index, row in rows)
    _never_accepted(subject, SampleRows(rows=shifted), "indices that begin at 1")


@check("ragged")
def _ragged(subject: Subject) -> None:
    """An answer with vectors of different lengths never passes for a right one."""
    rows = _rows(_several(subject)).rows
    _never_accepted(subject, SampleRows(rows=(*rows[:-1], (rows[-1][0], (1.0,)))), "vectors of two lengths")


@check("empty-vectors")
def _empty_vectors(subject: Subject) -> None:
    """An answer with vectors without numbers never passes for a right one."""
    rows = tuple((index, ()) for index in range(_count(subject)))
    _never_accepted(subject, SampleRows(rows=rows), "empty vectors")


@check("not-finite")
def _not_finite(subject: Subject) -> None:
    """An answer with NaN or infinity among its numbers never passes for a right one."""
    good = subject.dialect.embeddings(
        SampleRows(rows=tuple((i, (0.5, 0.25)) for i in range(_count(subject))))
    )
    for word in (b"NaN", b"Infinity", b"1e999", b"null"):
        _refuses(subject, good.replace(b"0.25", word), f"the number {word.decode()}")


def _never_accepted(subject: Subject, answer: SampleRows, what: str) -> None:
    _refuses(subject, subject.dialect.embeddings(answer), what)


def _refuses(subject: Subject, body: bytes, what: str) -> None:
    found = _parse(subject, body)
    if not isinstance(found, EmbeddedRows):
        return
    try:
        in_input_order(found, _count(subject), None)
    except InvalidResponse:
        return
    raise CheckFailed(f"an answer with {what} passes for a right one.", _REFUSED)


@check("failure-under-200")
def _failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse; it never has vectors."""
    found = _parse(subject, subject.dialect.error(SampleError(status=200, message="the model failed")))
    expect(not isinstance(found, EmbeddedRows), "an error under status 200 passes for vectors.", _REFUSED)
    if isinstance(found, Failure):
        verdict = subject.hooks.classify_error(found, subject.settings())
        expect(verdict.kind is not None, "the failure has no verdict.")


@check("html")
def _html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    _refuses(subject, HTML, "a page of HTML instead of JSON")


@check("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever comes, parse_embeddings gives rows or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        try:
            _refuses(subject, body, label)
        except LLMOptError as error:
            raise CheckFailed(f"for {label}: {explain(error)}", _REFUSED) from None


@check("altered")
def _altered(subject: Subject) -> None:
    """A right answer with any one value replaced or left out never makes parse_embeddings crash."""
    body = subject.dialect.embeddings(_rows(_count(subject), 2))
    for label, changed in altered(body):
        try:
            found = _parse(subject, changed)
        except LLMOptError as error:
            raise CheckFailed(f"for an answer with {label}: {explain(error)}", _REFUSED) from None
        expect(isinstance(found, (EmbeddedRows, Failure, InvalidResponse)), f"for {label}: {_word(found)}")


@check("cut-off")
def _cut_off(subject: Subject) -> None:
    """An answer that stops in the middle is refused, wherever it stops."""
    body = subject.dialect.embeddings(_rows(_count(subject), 2))
    for end in range(0, len(body) - 1, 7):
        try:
            json.loads(body[:end])
        except ValueError:
            _refuses(subject, body[:end], f"its last {len(body) - end} bytes missing")


@check("large")
def _large(subject: Subject) -> None:
    """A large answer is read as a small one: 3,072 dimensions."""
    answer = _rows(_count(subject), 3_072)
    expect(_vectors(subject, answer) == [row for _, row in answer.rows], "the vectors are other ones.")
