"""Embeddings answers, written for a plugin and read by it."""

from __future__ import annotations

from typing import Any, Final

from attrs import evolve

from llmopt.errors import InvalidResponse
from llmopt.operations.check import in_input_order
from llmopt.testing.dialect import single, vector_of
from llmopt.testing.kit.check import CheckFailed, NotApplicable, explain
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import TEXTS
from llmopt.testing.samples import SampleRows
from llmopt.values.embeddings import EmbeddedRows

REFUSED: Final = "parse_embeddings raises llmopt.InvalidResponse or returns a Failure."


def rows_of(count: int, dimensions: int = 4) -> SampleRows:
    """Vectors for some texts, each of another direction."""
    rows = ((index, vector_of(TEXTS[index % len(TEXTS)] + str(index), dimensions)) for index in range(count))
    return SampleRows(rows=tuple(rows))


def parse(subject: Subject, body: bytes, *, count: int = 3, status: int = 200) -> Any:
    """What the plugin reads: rows, a failure, or the InvalidResponse it raises."""
    subject.without("embeddings")
    call = subject.embed_call(count)
    try:
        return subject.hooks.parse_embeddings(call, subject.answer(body, status=status), subject.settings())
    except InvalidResponse as error:
        return error


def vectors(subject: Subject, answer: SampleRows, **changes: Any) -> list[tuple[float, ...]]:
    """The vectors as the core would hand them out.

    Raises:
        CheckFailed: there are none.
    """
    found = parse(subject, subject.dialect.embeddings(evolve(answer, **changes)))
    if isinstance(found, EmbeddedRows):
        ordered = in_input_order(found, len(answer.rows), None)
        return [single(row) for row in ordered.tolist()]
    raise CheckFailed(
        f"parse_embeddings gave {word(found)} for a right answer.", "the vectors of the answer."
    )


def word(found: object) -> str:
    """What a plugin gave, for a message."""
    return explain(found) if isinstance(found, BaseException) else f"a {type(found).__name__}"


def count_of(subject: Subject) -> int:
    """Texts in a request: 3, or fewer where the plugin's limit is lower."""
    return min(3, subject.limit or 3)


def several(subject: Subject) -> int:
    """The same where one would prove nothing.

    Raises:
        NotApplicable: it is one.
    """
    if count_of(subject) < 2:
        raise NotApplicable("a request of this provider's holds one text")
    return count_of(subject)


def never_accepted(subject: Subject, answer: SampleRows, what: str) -> None:
    """Expect an answer to be refused, by the plugin or by the core's check of what the plugin read."""
    refuses(subject, subject.dialect.embeddings(answer), what)


def refuses(subject: Subject, body: bytes, what: str) -> None:
    """The same for a body."""
    found = parse(subject, body)
    if not isinstance(found, EmbeddedRows):
        return
    try:
        in_input_order(found, count_of(subject), None)
    except InvalidResponse:
        return
    raise CheckFailed(f"an answer with {what} passes for a right one.", REFUSED)
