"""What the kit asks of each hook when it looks at how a hook works, not at what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from attrs import field, frozen

from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.talking import decoded, full_chat
from llmopt.testing.kit.texts import MESSAGES
from llmopt.testing.samples import SampleChat, SampleError, SamplePage, SampleRows
from llmopt.values.calls import CatalogCall, ChatCall, EmbedCall
from llmopt.values.failure import Failure
from llmopt.values.stream import ServerEvent


@frozen(kw_only=True)
class Question:
    """One call of one hook.

    Attributes:
        hook: name of the hook.
        label: the question in words.
        arguments: makes the arguments, anew each time.
    """

    hook: str
    label: str
    arguments: Callable[[], dict[str, Any]] = field(repr=False)


def questions(subject: Subject) -> Iterator[Question]:
    """All of them."""
    settings = subject.settings
    yield Question(
        hook="provider_profile",
        label="of a bare entry",
        arguments=lambda: {"entry": subject.entry_with(base_url=None)},
    )
    yield Question(
        hook="provider_profile",
        label="of an entry with a base URL",
        arguments=lambda: {"entry": subject.entry_with(base_url=subject.base_url or None)},
    )
    yield Question(
        hook="batch_limit",
        label="for a model",
        arguments=lambda: {"call": EmbedCall(model=subject.samples.model), "settings": settings()},
    )
    yield from _requests(subject)
    yield from _answers(subject)
    yield from _chats(subject)
    yield from _failures(subject)
    for hook in ("credential_provider", "open_transport"):
        yield Question(hook=hook, label="for an endpoint", arguments=lambda: {"settings": settings(key=None)})


def _requests(subject: Subject) -> Iterator[Question]:
    def embed() -> EmbedCall:
        return subject.embed_call(dimensions=7, input_type="query", extra={"kit_extra": {"deep": [1, 2]}})

    for label, call in (
        ("for embeddings", subject.embed_call),
        ("for embeddings with every option", embed),
        ("for the catalogue", CatalogCall),
        ("for its second page", lambda: CatalogCall(cursor="page-2")),
        (
            "for a chat",
            lambda: ChatCall(model=subject.samples.model, messages=MESSAGES, extra={"kit_extra": 1}),
        ),
        ("for a chat with every option", lambda: full_chat(subject)),
    ):
        yield _request(subject, label, call)
    yield Question(
        hook="limits_request",
        label="for a model",
        arguments=lambda: {"call": EmbedCall(model=subject.samples.model), "settings": subject.settings()},
    )


def _request(subject: Subject, label: str, call: Callable[[], Any]) -> Question:
    return Question(
        hook="build_request",
        label=label,
        arguments=lambda: {"call": call(), "settings": subject.settings()},
    )


def _answers(subject: Subject) -> Iterator[Question]:
    rows = SampleRows(rows=((0, (1.0, 0.0)), (1, (0.0, 1.0))))
    page = SamplePage(models=("kit-a", "kit-b"))
    for label, body in (
        ("of vectors", subject.dialect.embeddings(rows)),
        ("of a failure under 200", subject.dialect.error(SampleError(status=200, message="it failed"))),
    ):
        yield _embeddings(subject, label, body)
    yield Question(
        hook="parse_catalog",
        label="of a list",
        arguments=lambda: {
            "response": subject.answer(subject.dialect.catalog(page)),
            "settings": subject.settings(),
        },
    )
    yield Question(
        hook="rate_limits",
        label="of an answer with the usual headers",
        arguments=lambda: {
            "response": subject.answer(b"{}", headers={"x-ratelimit-remaining-requests": "5"}),
            "settings": subject.settings(),
        },
    )
    yield Question(
        hook="parse_limits",
        label="of an answer that tells none",
        arguments=lambda: {
            "call": EmbedCall(model=subject.samples.model),
            "response": subject.answer(b"{}"),
            "settings": subject.settings(),
        },
    )


def _chats(subject: Subject) -> Iterator[Question]:
    answer = SampleChat(pieces=("kit ", "says"), reasoning="hm")
    for label, body in (
        ("of words", subject.dialect.chat(answer)),
        ("of a failure under 200", subject.dialect.error(SampleError(status=200, message="it failed"))),
    ):
        yield _chat(subject, label, body)
    failure = subject.dialect.stream_error(SampleError(status=200, message="it failed"))
    for number, event in enumerate(decoded(subject, (*subject.dialect.stream(answer), failure))):
        yield _event(subject, number, event)


def _chat(subject: Subject, label: str, body: bytes) -> Question:
    return Question(
        hook="parse_chat",
        label=label,
        arguments=lambda: {
            "call": ChatCall(model=subject.samples.model, messages=MESSAGES),
            "response": subject.answer(body),
            "settings": subject.settings(),
        },
    )


def _event(subject: Subject, number: int, event: ServerEvent) -> Question:
    return Question(
        hook="parse_stream_event",
        label=f"of event {number} of a stream",
        arguments=lambda: {
            "call": ChatCall(model=subject.samples.model, messages=MESSAGES, stream=True),
            "event": event,
            "settings": subject.settings(),
        },
    )


def _embeddings(subject: Subject, label: str, body: bytes) -> Question:
    return Question(
        hook="parse_embeddings",
        label=label,
        arguments=lambda: {
            "call": subject.embed_call(2),
            "response": subject.answer(body),
            "settings": subject.settings(),
        },
    )


def _failures(subject: Subject) -> Iterator[Question]:
    body = subject.dialect.error(SampleError(status=429, message="slow down, please"))
    for status, content in ((401, body), (429, body), (500, b"<html>broken</html>"), (404, b"")):
        yield _failure(subject, status, content)


def _failure(subject: Subject, status: int, body: bytes) -> Question:
    return Question(
        hook="classify_error",
        label=f"of status {status}",
        arguments=lambda: {
            "failure": Failure(status=status, headers={"retry-after": "3"}, body=body),
            "settings": subject.settings(),
        },
    )
