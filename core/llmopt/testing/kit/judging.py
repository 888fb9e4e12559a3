"""Verdicts of a plugin on the errors of the corpus, and on others."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from llmopt.errors import LLMOptError
from llmopt.testing.corpus import KnownError, own_corpus
from llmopt.testing.kit.check import CheckFailed, expect, explain
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.types import type_faults
from llmopt.values.failure import Failure
from llmopt.values.verdict import EXCEPTION_OF, Verdict


def verdict_of(subject: Subject, failure: Failure) -> Verdict:
    """What the plugin makes of a failure."""
    return subject.hooks.classify_error(failure, subject.settings())


def judged(
    subject: Subject, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Verdict:
    """What the plugin makes of an answer."""
    return verdict_of(subject, Failure(status=status, headers=dict(headers or {}), body=body[:65536]))


def tried_again(verdict: Verdict) -> bool:
    """Whether the engine would try again."""
    return EXCEPTION_OF[verdict.kind].retryable


@cache
def corpus() -> tuple[KnownError, ...]:
    """The kit's own errors, read once."""
    return own_corpus()


def survives(subject: Subject, failure: Failure, label: str) -> Verdict:
    """Expect a usable verdict, whatever it is."""
    try:
        verdict = verdict_of(subject, failure)
    except LLMOptError as error:
        raise CheckFailed(f"for {label}: {explain(error)}") from None
    faults = type_faults(verdict)
    expect(not faults, f"for {label}: {'; '.join(faults)}")
    return verdict
