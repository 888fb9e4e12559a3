"""Chat answers in one piece: all of it read, and nothing else taken for one."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt.errors import InvalidResponse, LLMOptError
from llmopt.testing.kit.check import CheckFailed, Family, expect, explain
from llmopt.testing.kit.judging import verdict_of
from llmopt.testing.kit.junk import ANSWERS, HTML, altered
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.talking import CALLS, CHAT_REFUSED, WORDS, called, is_refusal, replied, reply, says
from llmopt.testing.kit.types import type_faults
from llmopt.testing.samples import SampleError
from llmopt.values.chat import ChatReply
from llmopt.values.failure import Failure

check: Final = Family("chat")


@check("words")
def _words(subject: Subject) -> None:
    """The text of an answer is read exactly."""
    found = reply(subject, WORDS).text
    expect(found == WORDS.text, f"{WORDS.text!r} is read as {found!r}.")


@check("types")
def _types(subject: Subject) -> None:
    """ChatReply holds what its fields say."""
    for answer in (WORDS, CALLS):
        faults = type_faults(reply(subject, answer))
        expect(not faults, "\n".join(faults))


@check("reasoning")
def _reasoning(subject: Subject) -> None:
    """What the model thought stands in reasoning, apart from the answer."""
    says(subject, "reasoning")
    found = reply(subject, evolve(WORDS, reasoning="kit thinks"))
    expect(found.reasoning == "kit thinks", f"'kit thinks' is read as {found.reasoning!r}.")
    expect(found.text == WORDS.text, f"the text is {found.text!r}.", "the answer alone.")


@check("tool-calls")
def _tool_calls(subject: Subject) -> None:
    """Tool calls are read in order, with names and arguments."""
    says(subject, "tool_calls")
    found, wanted = called(reply(subject, CALLS).tool_calls), called(CALLS.tool_calls)
    expect(found == wanted, f"they are read as {found}.", f"{wanted}.")


@check("finish-reason")
def _finish_reason(subject: Subject) -> None:
    """An answer that was cut short is told from one that was not."""
    says(subject, "finish_reason")
    whole, short = (
        reply(subject, evolve(WORDS, finish_reason=reason)).finish_reason for reason in ("stop", "length")
    )
    expect(bool(whole) and bool(short) and whole != short, f"they are {whole!r} and {short!r}.")


@check("usage")
def _usage(subject: Subject) -> None:
    """The tokens that an answer reports are read."""
    says(subject, "usage")
    usage = reply(subject, evolve(WORDS, prompt_tokens=41, completion_tokens=13)).usage
    expect(
        usage is not None
        and (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (41, 13, 54),
        f"41 and 13 tokens were reported, usage is {usage}.",
    )


@check("model")
def _model(subject: Subject) -> None:
    """The model that answered is read."""
    says(subject, "model")
    found = reply(subject, evolve(WORDS, model="kit-other-model")).model
    expect(found == "kit-other-model", f"'kit-other-model' is read as {found!r}.")


@check("id")
def _id(subject: Subject) -> None:
    """The answer's id is read."""
    says(subject, "id")
    found = reply(subject, evolve(WORDS, id="kit-answer-7")).id
    expect(found == "kit-answer-7", f"'kit-answer-7' is read as {found!r}.")


@check("failure-under-200")
def _failure_under_200(subject: Subject) -> None:
    """A 2xx that carries an error is a Failure, or raises InvalidResponse; it is never an answer."""
    found = replied(subject, subject.dialect.error(SampleError(status=200, message="the model failed")))
    expect(is_refusal(found), "an error under status 200 passes for an answer.", CHAT_REFUSED)
    if isinstance(found, Failure):
        expect(found.operation == "chat", f"the failure's operation is {found.operation!r}.", "'chat'.")
        faults = type_faults(verdict_of(subject, found))
        expect(not faults, "\n".join(faults))


@check("html")
def _html(subject: Subject) -> None:
    """A gateway's page of HTML under status 200 is refused."""
    expect(is_refusal(replied(subject, HTML)), "a page of HTML passes for an answer.", CHAT_REFUSED)


@check("nonsense")
def _nonsense(subject: Subject) -> None:
    """Whatever comes, parse_chat gives a reply or a Failure, or raises InvalidResponse: it never crashes."""
    for label, body in ANSWERS:
        try:
            found = replied(subject, body)
        except LLMOptError as error:
            raise CheckFailed(f"for {label}: {explain(error)}", CHAT_REFUSED) from None
        expect(is_refusal(found), f"{label} passes for an answer.", CHAT_REFUSED)


@check("altered")
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


@check("cut-off")
def _cut_off(subject: Subject) -> None:
    """An answer that stops in the middle is refused, wherever it stops."""
    body = subject.dialect.chat(WORDS)
    for end in range(0, len(body) - 1, 7):
        found = replied(subject, body[:end])
        expect(is_refusal(found), f"without its last {len(body) - end} bytes it passes.", CHAT_REFUSED)
