"""Answers with vectors: every one read, and put in its place."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt.operations.check import in_input_order
from llmopt.testing.dialect import single
from llmopt.testing.kit.asking import Asked
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.reading import count_of, parse, rows_of, several, vectors, word
from llmopt.testing.kit.subject import Subject
from llmopt.values.embeddings import EmbeddedRows, Usage

check: Final = Family("embeddings")


@check("numbers")
def _numbers(subject: Subject) -> None:
    """Vectors that come as lists of numbers are read exactly."""
    answer = rows_of(count_of(subject))
    expect(vectors(subject, answer) == [row for _, row in answer.rows], "the vectors are other ones.")


@check("base64")
def _base64(subject: Subject) -> None:
    """A plugin that asks for base64 reads base64: float32, little-endian."""
    body = Asked(subject, subject.embed_call()).body
    if not subject.samples.common or not isinstance(body, dict) or body.get("encoding_format") != "base64":
        raise NotApplicable("the plugin does not ask for base64")
    answer = rows_of(count_of(subject))
    found = vectors(subject, answer, base64=True)
    expect(found == [row for _, row in answer.rows], "the vectors are other ones.")


@check("shape")
def _shape(subject: Subject) -> None:
    """EmbeddedRows holds float32 vectors, one row each, and int64 indices or None."""
    answer = rows_of(count_of(subject))
    found = parse(subject, subject.dialect.embeddings(answer))
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {word(found)} for a right answer.")
    expect(str(found.vectors.dtype) == "float32", f"vectors are {found.vectors.dtype}.")
    expect(found.vectors.shape == (len(answer.rows), 4), f"the shape is {found.vectors.shape}.")
    expect(found.indices is None or str(found.indices.dtype) == "int64", "indices are not int64.")


@check("one-text")
def _one_text(subject: Subject) -> None:
    """An answer with a single vector is read."""
    answer = rows_of(1)
    found = parse(subject, subject.dialect.embeddings(answer), count=1)
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {word(found)}.")
    expect(
        single(in_input_order(found, 1, None)[0].tolist()) == answer.rows[0][1], "the vector is another one."
    )


@check("order")
def _order(subject: Subject) -> None:
    """Vectors that come in another order are put in their places by their index."""
    if not subject.samples.indexed:
        raise NotApplicable("the provider's answers have no indices")
    answer = rows_of(several(subject))
    found = vectors(subject, answer, rows=answer.rows[::-1])
    expect(
        found == [row for _, row in answer.rows], "the vectors are at the wrong texts: the index is not used."
    )


@check("usage")
def _usage(subject: Subject) -> None:
    """The tokens that an answer reports are read, and none are made up."""
    found = parse(subject, subject.dialect.embeddings(evolve(rows_of(count_of(subject)), tokens=41)))
    expect(isinstance(found, EmbeddedRows), f"parse_embeddings gave {word(found)} for a right answer.")
    usage: Usage | None = found.usage
    if usage is None and not subject.samples.common:
        return
    expect(usage is not None and usage.total_tokens == 41, f"41 tokens were reported, usage is {usage}.")


@check("large")
def _large(subject: Subject) -> None:
    """A large answer is read as a small one: 3,072 dimensions."""
    answer = rows_of(count_of(subject), 3_072)
    expect(vectors(subject, answer) == [row for _, row in answer.rows], "the vectors are other ones.")
