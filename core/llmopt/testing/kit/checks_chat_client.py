"""The plugin's chats in use: through llmopt's client, from end to end, with a server in memory."""

from __future__ import annotations

from functools import partial
from typing import Final

from llmopt.engine.prepare import origin
from llmopt.errors import (
    AuthError,
    InvalidResponse,
    LLMOptError,
    ProviderError,
    QuotaExhausted,
    StreamInterrupted,
)
from llmopt.testing.kit.chatting import ChattingServer, asked, beginning, listened, refusing
from llmopt.testing.kit.check import CheckFailed, Family, expect
from llmopt.testing.kit.subject import KEY, Subject
from llmopt.testing.kit.talking import WORDS
from llmopt.testing.kit.using import fails
from llmopt.testing.samples import SampleError

check: Final = Family("client")


@check("chat")
def _chat(subject: Subject) -> None:
    """A chat comes back with its words."""
    server = ChattingServer(subject, subject.dialect.chat(WORDS))
    found = asked(subject, server)
    expect(found.text == WORDS.text, f"{WORDS.text!r} comes back as {found.text!r}.")
    expect(len(server.sent) == 1, f"{len(server.sent)} requests were sent.")


@check("stream")
def _stream(subject: Subject) -> None:
    """A stream comes back with its words, and ends."""
    found = listened(subject, ChattingServer(subject, pieces=subject.dialect.stream(WORDS)))
    expect(found.text == WORDS.text, f"{WORDS.text!r} comes back as {found.text!r}.")


@check("stream-in-one-piece")
def _stream_in_one_piece(subject: Subject) -> None:
    """A stream that comes in one piece says the same."""
    whole = b"".join(subject.dialect.stream(WORDS))
    found = listened(subject, ChattingServer(subject, pieces=[whole]))
    expect(found.text == WORDS.text, f"{WORDS.text!r} comes back as {found.text!r}.")


@check("stream-cut-off")
def _stream_cut_off(subject: Subject) -> None:
    """A stream that stops before its end is a StreamInterrupted with the words so far; it is never a whole answer."""
    server = ChattingServer(subject, pieces=beginning(subject, WORDS))
    error = fails((StreamInterrupted,), lambda: listened(subject, server))
    said = getattr(error, "text", "")
    expect(said == WORDS.text, f"{WORDS.text!r} had come; the error's text is {said!r}.")


@check("stream-error")
def _stream_error(subject: Subject) -> None:
    """An error in a stream ends it: behind words with these, before them as if it were the answer."""
    event = subject.dialect.stream_error(SampleError(status=200, message="the kit says no"))
    server = ChattingServer(subject, pieces=[*beginning(subject, WORDS), event])
    error = fails((StreamInterrupted,), lambda: listened(subject, server))
    expect(getattr(error, "text", "") == WORDS.text, "the words that had come are lost.")
    fails(
        (ProviderError, InvalidResponse),
        lambda: listened(subject, ChattingServer(subject, pieces=[event])),
    )


@check("chat-wrong-key")
def _chat_wrong_key(subject: Subject) -> None:
    """A 401 is an AuthError that holds no key, for a chat and for a stream."""
    for ask in (asked, listened):
        error = fails((AuthError,), partial(ask, subject, refusing(subject, 401)))
        expect(KEY not in f"{error!r}{error}{vars(error)}", "the error holds the key.")


@check("chat-no-money")
def _chat_no_money(subject: Subject) -> None:
    """A 402 is a QuotaExhausted, after one request, for a chat and for a stream."""
    for ask in (asked, listened):
        server = refusing(subject, 402)
        fails((QuotaExhausted,), partial(ask, subject, server))
        expect(len(server.sent) == 1, f"{len(server.sent)} requests were sent.")


@check("chat-sent")
def _chat_sent(subject: Subject) -> None:
    """What a chat sends goes to the endpoint's origin, with the key in a header only."""
    for ask, server in (
        (asked, ChattingServer(subject, subject.dialect.chat(WORDS))),
        (listened, ChattingServer(subject, pieces=subject.dialect.stream(WORDS))),
    ):
        try:
            ask(subject, server)
        except LLMOptError as error:
            raise CheckFailed(str(error)) from None
        own = origin(subject.settings().base_url)
        for sent in server.sent:
            expect(origin(sent.url) == own, f"a request went to {origin(sent.url)}; the endpoint is {own}.")
            expect(KEY not in sent.url and KEY.encode() not in sent.body, "the key is in a URL or a body.")
