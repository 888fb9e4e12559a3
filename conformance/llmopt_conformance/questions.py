"""Call every hook under observation: its result, side effects, changed arguments and shared state."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from itertools import repeat
from threading import Barrier
from typing import Any, Final

from attrs import field, frozen

from llmopt.errors import LLMOptError
from llmopt.testing.dialect import SampleChat, SampleError, SamplePage, SampleRows
from llmopt.values.calls import CatalogCall, ChatCall, EmbedCall
from llmopt.values.chat import ServerEvent
from llmopt.values.http import Failure, HttpRequest
from llmopt_conformance.fixtures import decoded, full_chat, steps_read
from llmopt_conformance.observe import Act, Watch, fingerprint, mutate, work_out
from llmopt_conformance.subject import MESSAGES, Subject

# What the kit asks of each hook when it looks at how a hook works, not at what it says.


@frozen(kw_only=True)
class HookCall:
    """One call of one hook.

    Attributes:
        hook: name of the hook.
        label: the question in words.
        arguments: makes the arguments, anew each time.
    """

    hook: str
    label: str
    arguments: Callable[[], dict[str, Any]] = field(repr=False)


def hook_calls(subject: Subject) -> Iterator[HookCall]:
    """All of them."""
    settings = subject.settings
    yield HookCall(
        hook="provider_profile",
        label="of a bare entry",
        arguments=lambda: {"entry": subject.entry_with(base_url=None)},
    )
    yield HookCall(
        hook="provider_profile",
        label="of an entry with a base URL",
        arguments=lambda: {"entry": subject.entry_with(base_url=subject.base_url or None)},
    )
    yield HookCall(
        hook="batch_limit",
        label="for a model",
        arguments=lambda: {"call": EmbedCall(model=subject.samples.model), "settings": settings()},
    )
    yield from _requests(subject)
    yield from _answers(subject)
    yield from _chats(subject)
    yield from _failures(subject)
    for hook in ("credential_provider", "open_transport"):
        yield HookCall(hook=hook, label="for an endpoint", arguments=lambda: {"settings": settings(key=None)})


def _requests(subject: Subject) -> Iterator[HookCall]:
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
        yield _request(subject, label, call, hook="request_cost")
    yield HookCall(
        hook="sign_request",
        label="for a body",
        arguments=lambda: {
            "request": HttpRequest(method="POST", path="https://kit.example/v1", content=b"{}"),
            "now": 1_800_000_000.0,
            "settings": subject.settings(),
        },
    )
    yield HookCall(
        hook="decode_stream",
        label="of an unknown type",
        arguments=lambda: {"content_type": "application/octet-stream", "settings": subject.settings()},
    )
    yield HookCall(
        hook="limits_request",
        label="for a model",
        arguments=lambda: {"call": EmbedCall(model=subject.samples.model), "settings": subject.settings()},
    )


def _request(subject: Subject, label: str, call: Callable[[], Any], hook: str = "build_request") -> HookCall:
    return HookCall(
        hook=hook,
        label=label,
        arguments=lambda: {"call": call(), "settings": subject.settings()},
    )


def _answers(subject: Subject) -> Iterator[HookCall]:
    rows = SampleRows(rows=((0, (1.0, 0.0)), (1, (0.0, 1.0))))
    page = SamplePage(models=("kit-a", "kit-b"))
    for label, body in (
        ("of vectors", subject.dialect.embeddings(rows)),
        ("of a failure under 200", subject.dialect.error(SampleError(status=200, message="it failed"))),
    ):
        yield _embeddings(subject, label, body)
    yield HookCall(
        hook="parse_catalog",
        label="of a list",
        arguments=lambda: {
            "response": subject.answer(subject.dialect.catalog(page)),
            "settings": subject.settings(),
        },
    )
    yield HookCall(
        hook="rate_limits",
        label="of an answer with the usual headers",
        arguments=lambda: {
            "response": subject.answer(b"{}", headers={"x-ratelimit-remaining-requests": "5"}),
            "settings": subject.settings(),
        },
    )
    yield HookCall(
        hook="parse_limits",
        label="of an answer that tells none",
        arguments=lambda: {
            "call": EmbedCall(model=subject.samples.model),
            "response": subject.answer(b"{}"),
            "settings": subject.settings(),
        },
    )


def _chats(subject: Subject) -> Iterator[HookCall]:
    answer = SampleChat(pieces=("kit ", "says"), reasoning="hm")
    for label, body in (
        ("of words", subject.dialect.chat(answer)),
        ("of a failure under 200", subject.dialect.error(SampleError(status=200, message="it failed"))),
    ):
        yield _chat(subject, label, body)
    failure = subject.dialect.stream_error(SampleError(status=200, message="it failed"))
    events = decoded(subject, (*subject.dialect.stream(answer), failure))
    states: Iterable[object] = repeat(None)
    if "state" in subject.parameters("parse_stream_event"):
        states = [state for _, state, _ in steps_read(subject, events)]
    for number, (event, state) in enumerate(zip(events, states, strict=False)):
        yield _event(subject, number, event, state)


def _chat(subject: Subject, label: str, body: bytes) -> HookCall:
    return HookCall(
        hook="parse_chat",
        label=label,
        arguments=lambda: {
            "call": ChatCall(model=subject.samples.model, messages=MESSAGES),
            "response": subject.answer(body),
            "settings": subject.settings(),
        },
    )


def _event(subject: Subject, number: int, event: ServerEvent, state: object) -> HookCall:
    return HookCall(
        hook="parse_stream_event",
        label=f"of event {number} of a stream",
        arguments=lambda: {
            "call": ChatCall(model=subject.samples.model, messages=MESSAGES, stream=True),
            "event": event,
            "settings": subject.settings(),
            "state": deepcopy(state),
        },
    )


def _embeddings(subject: Subject, label: str, body: bytes) -> HookCall:
    return HookCall(
        hook="parse_embeddings",
        label=label,
        arguments=lambda: {
            "call": subject.embed_call(2),
            "response": subject.answer(body),
            "settings": subject.settings(),
        },
    )


def _failures(subject: Subject) -> Iterator[HookCall]:
    body = subject.dialect.error(SampleError(status=429, message="slow down, please"))
    for status, content in ((401, body), (429, body), (500, b"<html>broken</html>"), (404, b"")):
        yield _failure(subject, status, content)


def _failure(subject: Subject, status: int, body: bytes) -> HookCall:
    return HookCall(
        hook="classify_error",
        label=f"of status {status}",
        arguments=lambda: {
            "failure": Failure(status=status, headers={"retry-after": "3"}, body=body),
            "settings": subject.settings(),
        },
    )


@frozen(kw_only=True)
class HookObservation:
    """What came of asking one hook one question.

    Attributes:
        hook: name of the hook.
        label: the question in words.
        acts: what it did besides computing.
        changed: names of the arguments that were not the same afterwards.
        repeats: whether it gave the same for the same.
        shares: what is changed elsewhere when its result is: "an argument", "a later result", "".
    """

    hook: str
    label: str
    acts: tuple[Act, ...]
    changed: tuple[str, ...]
    repeats: bool
    shares: str

    @property
    def title(self) -> str:
        """Hook and question."""
        return f"{self.hook} ({self.label})"


def observe_hooks(subject: Subject) -> tuple[HookObservation, ...]:
    """All calls of the hooks that the plugin has, made once for all checks."""
    if "exercises" not in subject.findings:
        asked = [each for each in hook_calls(subject) if subject.implements(each.hook)]
        subject.findings["exercises"] = tuple(_observe_hook(subject, each) for each in asked)
    found: tuple[HookObservation, ...] = subject.findings["exercises"]
    return found


def _observe_hook(subject: Subject, question: HookCall) -> HookObservation:
    hook: Callable[..., Any] = getattr(subject.hooks, question.hook)
    watch = Watch(subject.sources)
    given = question.arguments()
    first = fingerprint(_outcome(watch, hook, given))
    changed = _differences(given, question)
    again = question.arguments()
    result = _outcome(watch, hook, again)
    second = fingerprint(result)
    return HookObservation(
        hook=question.hook,
        label=question.label,
        acts=tuple(watch.acts),
        changed=changed,
        repeats=first == second,
        shares=_shared(watch, hook, question, again, result) if first == second and not changed else "",
    )


def _outcome(watch: Watch, hook: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """What the hook gives, or the error it ends with."""
    try:
        return watch.call(hook, **arguments)
    except LLMOptError as error:
        return error


def _differences(given: dict[str, Any], question: HookCall) -> tuple[str, ...]:
    fresh = question.arguments()
    return tuple(
        name
        for name, value in given.items()
        if fingerprint(work_out(value)) != fingerprint(work_out(fresh[name]))
    )


def _shared(
    watch: Watch, hook: Callable[..., Any], question: HookCall, given: dict[str, Any], result: Any
) -> str:
    before = fingerprint(result)
    if not mutate(result):
        return ""
    if _differences(given, question):
        return "an argument"
    return "" if fingerprint(_outcome(watch, hook, question.arguments())) == before else "a later result"


# Several threads at once: llmopt parses large responses in worker threads, and one plugin serves all clients of a process.

_THREADS: Final = 4
_ROUNDS: Final = 2
_SWITCH_S: Final = 1e-5
"""Python's own 5 ms are longer than a hook takes, so that no hook would ever be interrupted."""


def differing_in_threads(subject: Subject) -> tuple[str, ...]:
    """The questions whose answers are others when several threads ask at once, each in words."""
    asked = [each for each in hook_calls(subject) if subject.implements(each.hook)]
    alone = [_fingerprint_of(subject, each) for each in asked]
    together = Barrier(_THREADS)

    def ask(thread: int) -> set[int]:
        # Each begins with another question, so that one hook is asked different things at the same time.
        order = [(number + thread * len(asked) // _THREADS) % len(asked) for number in range(len(asked))]
        together.wait()
        return {
            number
            for _ in range(_ROUNDS)
            for number in order
            if _fingerprint_of(subject, asked[number]) != alone[number]
        }

    interval = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_S)
    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            found = set().union(*threads.map(ask, range(_THREADS)))
    finally:
        sys.setswitchinterval(interval)
    return tuple(f"{asked[number].hook} ({asked[number].label})" for number in sorted(found))


def _fingerprint_of(subject: Subject, question: HookCall) -> Any:
    try:
        return fingerprint(getattr(subject.hooks, question.hook)(**question.arguments()))
    except LLMOptError as error:
        return fingerprint(error)
