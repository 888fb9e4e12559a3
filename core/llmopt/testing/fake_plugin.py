"""The plugin behind `llmopt.testing.FakeProvider`: the common dialect, and verdicts as they are scripted."""

from __future__ import annotations

from typing import Final

from llmopt.compatible import classify
from llmopt.markers import hookimpl
from llmopt.values.failure import Failure
from llmopt.values.limits import BatchLimit
from llmopt.values.profile import Profile
from llmopt.values.verdict import Verdict, VerdictKind

PREFIX: Final = "fake:"
"""Begins the code of a scripted error; the kind of its verdict follows."""


@hookimpl
def provider_profile() -> Profile:
    """Near, quick and without a key."""
    return Profile(
        base_url="https://fake.llmopt.example/v1",
        key_required=False,
        retry_delay=0.0,
        pool_size=8,
        max_concurrency=8,
        stream_end="done",
    )


@hookimpl
def batch_limit() -> BatchLimit:
    """32 texts a request, so that a test sees more than one."""
    return BatchLimit(max_items=32)


@hookimpl
def classify_error(failure: Failure) -> Verdict:
    """The verdict that the test asked for."""
    code = failure.error.code or ""
    if not code.startswith(PREFIX):
        return classify(failure)
    kind = VerdictKind(code.removeprefix(PREFIX))
    return Verdict(kind=kind, code=kind.value, message=failure.error.message)
