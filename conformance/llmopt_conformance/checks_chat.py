"""Checks of chat replies and streams."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from attrs import evolve

from llmopt.errors import (
    AuthError,
    InvalidResponse,
    LLMOptError,
    ProviderError,
    QuotaExhausted,
    StreamInterrupted,
)
from llmopt.testing.dialect import SampleError
from llmopt.testing.harness import encode_json, origin
from llmopt.values.chat import ChatEvent, ChatReply, ServerEvent
from llmopt.values.http import Failure
from llmopt_conformance.fixtures import (
    ANSWERS,
    CALLS,
    CHAT_REFUSED,
    EVENT_REFUSED,
    HTML,
    THOUGHT,
    WORDS,
    ChattingServer,
    altered,
    beginning,
    called,
    chats,
    client_reply,
    client_stream,
    decoded,
    event_read,
    fails,
    is_refusal,
    next_request,
    read_stream,
    refusing,
    replied,
    reply,
    says,
    steps_read,
    stream_reply,
    verdict_of,
)
from llmopt_conformance.subject import (
    KEY,
    CheckFailed,
    Family,
    NotApplicable,
    Subject,
    expect,
    explain,
    type_faults,
)

chat_checks: Final = Family("chat")


@chat_checks("words")
def _words(subject: Subject) -> None:
    """The text of an answer is read exactly."""
    found = reply(subject, WORDS).text
    expect(found == WORDS.text, f"{WORDS.text!r} is read as {found!r}.")


@chat_checks("types")
def _types(subject: Subject) -> None:
    """ChatReply holds what its fields say."""
    for answer in (WORDS, CALLS):
        faults = type_faults(reply(subject, answer))
        expect(not faults, "\n".join(faults))


@chat_checks("reasoning")
def _reasoning(subject: Subject) -> None:
    """What the model thought stands in reasoning, apart from the answer."""
    says(subject, "reasoning")
    found = reply(subject, evolve(WORDS, reasoning="kit thinks"))
    expect(found.reasoning == "kit thinks", f"'kit thinks' is read as {found.reasoning!r}.")
    expect(found.text == WORDS.text, f"the text is {found.text!r}.", "the answer alone.")


@chat_checks("tool-calls")
def _tool_calls(subject: Subject) -> None:
    """Tool calls are read in order, with names and arguments."""
    says(subject, "tool_calls")
    found, wanted = called(reply(subject, CALLS).tool_calls), called(CALLS.tool_calls)
    expect(found == wanted, f"they are read as {found}.", f"{wanted}.")


@chat_checks("finish-reason")
def _finish_reason(subject: Subject) -> None:
    """An answer that was cut short is told from one that was not."""
    says(subject, "finish_reason")
    whole, short = (
        reply(subject, evolve(WORDS, finish_reason=reason)).finish_reason for reason in ("stop", "length")
    )
    expect(bool(whole) and bool(short) and whole != short, f"they are {whole!r} and {short!r}.")


@chat_checks("usage")
def _usage(subject: Subject) -> None:
    """The tokens that an answer reports are read."""
    says(subject, "usage")
    usage = reply(subject, evolve(WORDS, prompt_tokens=41, completion_tokens=13)).usage
    # A total that is not told is the sum of the others: the core adds them.
    usage = usage and usage.after(None)
    expect(
        usage is not None
        and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (41, 13, 54),
        f"41 and 13 tokens were reported, usage is {usage}.",
    )


@chat_checks("model")
def _model(subject: Subject) -> None:
    """The model that answered is read."""
    says(subject, "model")
    found = reply(subject, evolve(WORDS, model="kit-other-model")).model
    expect(found == "kit-other-model", f"'kit-other-model' is read as {found!r}.")


@chat_checks("id")
def _id(subject: Subject) -> None:
    """The answer's id is read."""
    says(subject, "id")
    found = reply(subject, evolve(WORDS, id="kit-answer-7")).id
    expect(found == "kit-answer-7", f"'kit-answer-7' is read as {found!r}.")


@chat_checks("provider-data")
def _provider_data(subject: Subject) -> None:
    """What the plugin keeps in provider_data is made of JSON values, and is in the request behind the answer."""
    found = reply(subject, THOUGHT)
    kept = _kept(found)
    if not any(kept):
        raise NotApplicable("the answers of the samples leave no provider_data")
    try:
        encode_json(kept)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckFailed(f"provider_data: {error}", "JSON values.") from None
    bare = evolve(
        found,
        provider_data={},
        tool_calls=tuple(evolve(call, provider_data={}) for call in found.tool_calls),
    )
    expect(
        next_request(subject, found) != next_request(subject, bare),
        "the next request is the same without provider_data.",
        "build_request sends back what the provider wants back.",
    )


def _kept(answer: ChatReply) -> list[Mapping[str, Any]]:
    """The provider_data of an answer and of its calls."""
    return [answer.provider_data, *(call.provider_data for call in answer.tool_calls)]


@chat_checks("failure-under-200")
def _failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse; it is never an answer."""
    found = replied(subject, subject.dialect.error(SampleError(status=200, message="the model failed")))
    expect(is_refusal(found), "an error under status 200 passes for an answer.", CHAT_REFUSED)
    if isinstance(found, Failure):
        expect(found.operation == "chat", f"the failure's operation is {found.operation!r}.", "'chat'.")
        faults = type_faults(verdict_of(subject, found))
        expect(not faults, "\n".join(faults))


@chat_checks("html")
def _html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    expect(is_refusal(replied(subject, HTML)), "a page of HTML passes for an answer.", CHAT_REFUSED)


@chat_checks("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever comes, parse_chat gives a reply or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        try:
            found = replied(subject, body)
        except LLMOptError as error:
            raise CheckFailed(f"for {label}: {explain(error)}", CHAT_REFUSED) from None
        expect(is_refusal(found), f"{label} passes for an answer.", CHAT_REFUSED)


@chat_checks("altered")
def _altered(subject: Subject) -> None:
    """A right answer with any one value replaced or left out never makes parse_chat crash or lie about types."""
    for answer in (evolve(WORDS, reasoning="kit thinks"), CALLS):
        for label, changed in altered(subject.dialect.chat(answer)):
            try:
                found = replied(subject, changed)
            except LLMOptError as error:
                raise CheckFailed(f"for an answer with {label}: {explain(error)}", CHAT_REFUSED) from None
            expect(isinstance(found, (ChatReply, Failure, InvalidResponse)), f"for {label}: {found!r:.60}")
            faults = type_faults(found) if isinstance(found, ChatReply) else []
            expect(not faults, f"for an answer with {label}: {'; '.join(faults)}")


@chat_checks("cut-off")
def _cut_off(subject: Subject) -> None:
    """An answer that stops in the middle is refused, wherever it stops."""
    body = subject.dialect.chat(WORDS)
    for end in range(0, len(body) - 1, 7):
        found = replied(subject, body[:end])
        expect(is_refusal(found), f"without its last {len(body) - end} bytes it passes.", CHAT_REFUSED)


# Streams: every piece at once and in order, the right end, and an error wherever one is.

stream_checks: Final = Family("stream")
_LINES: Final = "ndjson"


@stream_checks("words")
def _stream_words(subject: Subject) -> None:
    """The pieces of a stream come together to the text of the answer."""
    found = stream_reply(subject, WORDS).text
    expect(found == WORDS.text, f"{WORDS.text!r} is read as {found!r}.")


@stream_checks("at-once")
def _at_once(subject: Subject) -> None:
    """Each piece comes with its own event; none is held back until the end."""
    found = read_stream(subject, subject.dialect.stream(WORDS))
    texts = [part.text for parts in found.parts for part in parts if part.text]
    expect(len(texts) >= len(WORDS.pieces), f"{len(WORDS.pieces)} pieces come as {len(texts)}.")


@stream_checks("any-pieces")
def _any_pieces(subject: Subject) -> None:
    """A stream says the same however the network cuts it."""
    body = b"".join(subject.dialect.stream(evolve(WORDS, tool_calls=CALLS.tool_calls)))
    whole = read_stream(subject, [body]).answer
    for size in (1, 2, 3, 7, 64):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        expect(
            read_stream(subject, pieces).answer == whole,
            f"in pieces of {size} bytes it says another thing.",
        )


@stream_checks("types")
def _stream_types(subject: Subject) -> None:
    """Every ChatEvent holds what its fields say."""
    for answer in (evolve(WORDS, reasoning="kit thinks"), CALLS):
        for parts in read_stream(subject, subject.dialect.stream(answer)).parts:
            faults = [fault for part in parts for fault in type_faults(part)]
            expect(not faults, "\n".join(faults))


@stream_checks("reasoning")
def _stream_reasoning(subject: Subject) -> None:
    """What the model thought stands in reasoning, apart from the answer."""
    says(subject, "reasoning")
    found = stream_reply(subject, evolve(WORDS, reasoning="kit thinks"))
    expect(found.reasoning == "kit thinks", f"'kit thinks' is read as {found.reasoning!r}.")
    expect(found.text == WORDS.text, f"the text is {found.text!r}.", "the answer alone.")


@stream_checks("tool-calls")
def _stream_tool_calls(subject: Subject) -> None:
    """Fragments of tool calls come together, with names and arguments, in order."""
    says(subject, "tool_calls")
    found, wanted = called(stream_reply(subject, CALLS).tool_calls), called(CALLS.tool_calls)
    expect(found == wanted, f"they are read as {found}.", f"{wanted}.")


@stream_checks("finish-reason")
def _stream_finish_reason(subject: Subject) -> None:
    """A stream that was cut short is told from one that was not."""
    says(subject, "finish_reason")
    whole, short = (
        stream_reply(subject, evolve(WORDS, finish_reason=reason)).finish_reason
        for reason in ("stop", "length")
    )
    expect(bool(whole) and bool(short) and whole != short, f"they are {whole!r} and {short!r}.")


@stream_checks("finish-reason-once")
def _finish_reason_once(subject: Subject) -> None:
    """The finish reason comes once, behind the last word: a stream that was cut before it must not look whole."""
    parts = [part for each in read_stream(subject, subject.dialect.stream(WORDS)).parts for part in each]
    reasons = [number for number, part in enumerate(parts) if part.finish_reason is not None]
    expect(len(reasons) <= 1, f"a finish reason comes with {len(reasons)} events.")
    words = [number for number, part in enumerate(parts) if part.text]
    expect(not reasons or reasons[0] >= words[-1], "words come behind the finish reason.")


@stream_checks("usage")
def _stream_usage(subject: Subject) -> None:
    """The tokens that a stream reports are read."""
    says(subject, "usage")
    usage = stream_reply(subject, evolve(WORDS, prompt_tokens=41, completion_tokens=13)).usage
    expect(
        usage is not None
        and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (41, 13, 54),
        f"41 and 13 tokens were reported, usage is {usage}.",
    )


@stream_checks("provider-data")
def _stream_provider_data(subject: Subject) -> None:
    """A streamed answer is sent back in the same form as a whole one."""
    whole, streamed = reply(subject, THOUGHT), stream_reply(subject, THOUGHT)
    if not any(_kept(whole) + _kept(streamed)):
        raise NotApplicable("the answers of the samples leave no provider_data")
    wanted, found = next_request(subject, whole), next_request(subject, streamed)
    expect(wanted == found, f"the request behind a stream is {found!r:.300}.", f"{wanted!r:.300}.")


@stream_checks("end")
def _end(subject: Subject) -> None:
    """The end is told as the profile says: by ChatEvent.last, at the very end alone, or by a finish reason."""
    found = read_stream(subject, subject.dialect.stream(WORDS))
    ends = [number for number, parts in enumerate(found.parts) if any(part.last for part in parts)]
    if subject.profile.stream_end == "done":
        expect(
            ends == [len(found.parts) - 1],
            f"of {len(found.parts)} events those at {ends} are last; the profile says stream_end='done'.",
            "the last one alone, or a profile with stream_end='finish'.",
        )
    if subject.profile.stream_end == "any":
        expect(ends or found.answer.finish_reason, "the stream has neither an end nor a finish reason.")
    else:
        expect(
            found.answer.finish_reason,
            f"the stream has no finish reason; the profile says stream_end={subject.profile.stream_end!r}.",
            "a finish reason, or a profile with stream_end='any'.",
        )


@stream_checks("error")
def _error(subject: Subject) -> None:
    """An error in a stream is a Failure, or raises InvalidResponse: first, in the middle and behind the words."""
    chats(subject)
    message = "the model failed"
    event = subject.dialect.stream_error(SampleError(status=200, message=message))
    for found in [event_read(subject, each) for each in decoded(subject, [event])]:
        if isinstance(found, Failure):
            faults = type_faults(verdict_of(subject, found))
            expect(not faults, "\n".join(faults))
            expect(found.operation == "chat", f"the failure's operation is {found.operation!r}.", "'chat'.")
        if is_refusal(found):
            return
    raise CheckFailed("an error in a stream is no error.", EVENT_REFUSED)


@stream_checks("empty")
def _empty(subject: Subject) -> None:
    """An event without data adds nothing and is no error: some servers send them as signs of life."""
    chats(subject)
    if _LINES in subject.samples.stream_type:
        raise NotApplicable("blank lines of a stream in lines are left out by the core")
    for kind in ("message", "ping"):
        for data in ("", " "):
            found = event_read(subject, ServerEvent(event=kind, data=data))
            expect(found == (), f"for the data {data!r} of an event {kind!r}: {found!r:.80}.", "().")


@stream_checks("nonsense")
def _stream_nonsense(subject: Subject) -> None:
    """Whatever an event holds, parse_stream_event finds no words in nonsense, and never crashes."""
    chats(subject)
    kind = "line" if _LINES in subject.samples.stream_type else "message"
    for label, body in ANSWERS:
        event = ServerEvent(event=kind, data=body.decode("utf-8", "replace"))
        try:
            found = event_read(subject, event)
        except LLMOptError as error:
            raise CheckFailed(f"for {label}: {explain(error)}", EVENT_REFUSED) from None
        words = isinstance(found, tuple) and any(part.adds or part.last for part in found)
        expect(not words, f"{label} passes for a part of an answer.", EVENT_REFUSED)


@stream_checks("altered")
def _stream_altered(subject: Subject) -> None:
    """A right event with any one value replaced or left out never makes parse_stream_event crash or lie about types."""
    chats(subject)
    events = decoded(subject, subject.dialect.stream(evolve(WORDS, tool_calls=CALLS.tool_calls)))
    for event, state, _ in steps_read(subject, events):
        for label, changed in altered(event.data.encode()):
            try:
                found = event_read(subject, evolve(event, data=changed.decode()), state)
            except LLMOptError as error:
                raise CheckFailed(f"for an event with {label}: {explain(error)}", EVENT_REFUSED) from None
            faults = _faults(found)
            expect(not faults, f"for an event with {label}: {faults}")


def _faults(found: object) -> str:
    if isinstance(found, (Failure, InvalidResponse)):
        return ""
    if not isinstance(found, tuple):
        return f"{found!r:.60}"
    return "; ".join(fault for part in found if isinstance(part, ChatEvent) for fault in type_faults(part))


# The plugin's chats in use: through llmopt's client, from end to end, with a server in memory.

chat_client_checks: Final = Family("client")


@chat_client_checks("chat")
def _chat(subject: Subject) -> None:
    """A chat comes back with its words."""
    server = ChattingServer(subject, subject.dialect.chat(WORDS))
    found = client_reply(subject, server)
    expect(found.text == WORDS.text, f"{WORDS.text!r} comes back as {found.text!r}.")
    expect(len(server.sent) == 1, f"{len(server.sent)} requests were sent.")


@chat_client_checks("stream")
def _stream(subject: Subject) -> None:
    """A stream comes back with its words, and ends."""
    found = client_stream(subject, ChattingServer(subject, pieces=subject.dialect.stream(WORDS)))
    expect(found.text == WORDS.text, f"{WORDS.text!r} comes back as {found.text!r}.")


@chat_client_checks("stream-in-one-piece")
def _stream_in_one_piece(subject: Subject) -> None:
    """A stream that comes in one piece says the same."""
    whole = b"".join(subject.dialect.stream(WORDS))
    found = client_stream(subject, ChattingServer(subject, pieces=[whole]))
    expect(found.text == WORDS.text, f"{WORDS.text!r} comes back as {found.text!r}.")


@chat_client_checks("stream-cut-off")
def _stream_cut_off(subject: Subject) -> None:
    """A stream that stops before its end is a StreamInterrupted with the words so far; it is never a whole answer."""
    server = ChattingServer(subject, pieces=beginning(subject, WORDS))
    error = fails((StreamInterrupted,), lambda: client_stream(subject, server))
    said = getattr(error, "text", "")
    expect(said == WORDS.text, f"{WORDS.text!r} had come; the error's text is {said!r}.")


@chat_client_checks("stream-error")
def _stream_error(subject: Subject) -> None:
    """An error in a stream ends it: behind words with these, before them as if it were the answer."""
    event = subject.dialect.stream_error(SampleError(status=200, message="the kit says no"))
    server = ChattingServer(subject, pieces=[*beginning(subject, WORDS), event])
    error = fails((StreamInterrupted,), lambda: client_stream(subject, server))
    expect(getattr(error, "text", "") == WORDS.text, "the words that had come are lost.")
    fails(
        (ProviderError, InvalidResponse),
        lambda: client_stream(subject, ChattingServer(subject, pieces=[event])),
    )


@chat_client_checks("chat-wrong-key")
def _chat_wrong_key(subject: Subject) -> None:
    """A 401 is an AuthError that holds no key, for a chat and for a stream."""
    for ask in (client_reply, client_stream):
        error = fails((AuthError,), partial(ask, subject, refusing(subject, 401)))
        expect(KEY not in f"{error!r}{error}{vars(error)}", "the error holds the key.")


@chat_client_checks("chat-no-money")
def _chat_no_money(subject: Subject) -> None:
    """A 402 is a QuotaExhausted, after one request, for a chat and for a stream."""
    for ask in (client_reply, client_stream):
        server = refusing(subject, 402)
        fails((QuotaExhausted,), partial(ask, subject, server))
        expect(len(server.sent) == 1, f"{len(server.sent)} requests were sent.")


@chat_client_checks("chat-sent")
def _chat_sent(subject: Subject) -> None:
    """What a chat sends goes to the endpoint's origin, with the key in a header only."""
    for ask, server in (
        (client_reply, ChattingServer(subject, subject.dialect.chat(WORDS))),
        (client_stream, ChattingServer(subject, pieces=subject.dialect.stream(WORDS))),
    ):
        try:
            ask(subject, server)
        except LLMOptError as error:
            raise CheckFailed(str(error)) from None
        own = origin(subject.settings().base_url)
        for sent in server.sent:
            expect(origin(sent.url) == own, f"a request went to {origin(sent.url)}; the endpoint is {own}.")
            expect(KEY not in sent.url and KEY.encode() not in sent.body, "the key is in a URL or a body.")
