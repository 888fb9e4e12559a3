"""Streams: every piece at once and in order, the right end, and an error wherever one is."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.testing.kit.check import CheckFailed, Family, NotApplicable, expect, explain
from llmopt.testing.kit.judging import verdict_of
from llmopt.testing.kit.junk import ANSWERS, altered
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.talking import (
    CALLS,
    EVENT_REFUSED,
    WORDS,
    called,
    chats,
    decoded,
    event_read,
    heard,
    is_refusal,
    says,
    spoken,
)
from llmopt.testing.kit.types import type_faults
from llmopt.testing.samples import SampleError
from llmopt.values.chat import ChatEvent
from llmopt.values.failure import Failure
from llmopt.values.stream import ServerEvent

check: Final = Family("stream")

_LINES: Final = "ndjson"


@check("words")
def _words(subject: Subject) -> None:
    """The pieces of a stream come together to the text of the answer."""
    found = spoken(subject, WORDS).text
    expect(found == WORDS.text, f"{WORDS.text!r} is read as {found!r}.")


@check("at-once")
def _at_once(subject: Subject) -> None:
    """Each piece comes with its own event; none is held back until the end."""
    found = heard(subject, subject.dialect.stream(WORDS))
    texts = [part.text for parts in found.parts for part in parts if part.text]
    expect(len(texts) >= len(WORDS.pieces), f"{len(WORDS.pieces)} pieces come as {len(texts)}.")


@check("any-pieces")
def _any_pieces(subject: Subject) -> None:
    """A stream says the same however the network cuts it."""
    body = b"".join(subject.dialect.stream(evolve(WORDS, tool_calls=CALLS.tool_calls)))
    whole = heard(subject, [body]).answer.reply()
    for size in (1, 2, 3, 7, 64):
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        expect(
            heard(subject, pieces).answer.reply() == whole,
            f"in pieces of {size} bytes it says another thing.",
        )


@check("types")
def _types(subject: Subject) -> None:
    """Every ChatEvent holds what its fields say."""
    for answer in (evolve(WORDS, reasoning="kit thinks"), CALLS):
        for parts in heard(subject, subject.dialect.stream(answer)).parts:
            faults = [fault for part in parts for fault in type_faults(part)]
            expect(not faults, "\n".join(faults))


@check("reasoning")
def _reasoning(subject: Subject) -> None:
    """What the model thought stands in reasoning, apart from the answer."""
    says(subject, "reasoning")
    found = spoken(subject, evolve(WORDS, reasoning="kit thinks"))
    expect(found.reasoning == "kit thinks", f"'kit thinks' is read as {found.reasoning!r}.")
    expect(found.text == WORDS.text, f"the text is {found.text!r}.", "the answer alone.")


@check("tool-calls")
def _tool_calls(subject: Subject) -> None:
    """Fragments of tool calls come together, with names and arguments, in order."""
    says(subject, "tool_calls")
    found, wanted = called(spoken(subject, CALLS).tool_calls), called(CALLS.tool_calls)
    expect(found == wanted, f"they are read as {found}.", f"{wanted}.")


@check("finish-reason")
def _finish_reason(subject: Subject) -> None:
    """A stream that was cut short is told from one that was not."""
    says(subject, "finish_reason")
    whole, short = (
        spoken(subject, evolve(WORDS, finish_reason=reason)).finish_reason for reason in ("stop", "length")
    )
    expect(bool(whole) and bool(short) and whole != short, f"they are {whole!r} and {short!r}.")


@check("finish-reason-once")
def _finish_reason_once(subject: Subject) -> None:
    """The finish reason comes once, behind the last word: a stream that was cut before it must not look whole."""
    parts = [part for each in heard(subject, subject.dialect.stream(WORDS)).parts for part in each]
    reasons = [number for number, part in enumerate(parts) if part.finish_reason is not None]
    expect(len(reasons) <= 1, f"a finish reason comes with {len(reasons)} events.")
    words = [number for number, part in enumerate(parts) if part.text]
    expect(not reasons or reasons[0] >= words[-1], "words come behind the finish reason.")


@check("usage")
def _usage(subject: Subject) -> None:
    """The tokens that a stream reports are read."""
    says(subject, "usage")
    usage = spoken(subject, evolve(WORDS, prompt_tokens=41, completion_tokens=13)).usage
    expect(
        usage is not None
        and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (41, 13, 54),
        f"41 and 13 tokens were reported, usage is {usage}.",
    )


@check("end")
def _end(subject: Subject) -> None:
    """The end is told as the profile says: by ChatEvent.last, at the very end alone, or by a finish reason."""
    found = heard(subject, subject.dialect.stream(WORDS))
    ends = [number for number, parts in enumerate(found.parts) if any(part.last for part in parts)]
    if subject.profile.stream_end == "done":
        expect(
            ends == [len(found.parts) - 1],
            f"of {len(found.parts)} events those at {ends} are last; the profile says stream_end='done'.",
            "the last one alone, or a profile with stream_end='finish'.",
        )
    else:
        expect(ends or found.answer.finish_reason, "the stream has neither an end nor a finish reason.")


@check("error")
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


@check("empty")
def _empty(subject: Subject) -> None:
    """An event without data adds nothing and is no error: some servers send them as signs of life."""
    chats(subject)
    if _LINES in subject.samples.stream_type:
        raise NotApplicable("blank lines of a stream in lines are left out by the core")
    for kind in ("message", "ping"):
        for data in ("", " "):
            found = event_read(subject, ServerEvent(event=kind, data=data))
            expect(found == (), f"for the data {data!r} of an event {kind!r}: {found!r:.80}.", "().")


@check("nonsense")
def _nonsense(subject: Subject) -> None:
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


@check("altered")
def _altered(subject: Subject) -> None:
    """A right event with any one value replaced or left out never makes parse_stream_event crash or lie about types."""
    chats(subject)
    events = decoded(subject, subject.dialect.stream(evolve(WORDS, tool_calls=CALLS.tool_calls)))
    for event in events:
        for label, changed in altered(event.data.encode()):
            try:
                found = event_read(subject, evolve(event, data=changed.decode()))
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
