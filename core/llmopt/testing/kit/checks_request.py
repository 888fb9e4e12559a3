"""Requests: everything that was asked for, as it was given, and to the right place."""

from __future__ import annotations

from typing import Any, Final

from attrs import evolve

from llmopt.engine.prepare import origin
from llmopt.testing.kit.asking import Asked, calls
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.subject import Subject
from llmopt.testing.kit.texts import TEXTS, order_of, shown, strings
from llmopt.testing.kit.types import type_faults
from llmopt.values.calls import EmbedCall

check: Final = Family("request")


def _embed(subject: Subject, **changes: Any) -> Asked:
    subject.without("embeddings")
    return Asked(subject, subject.embed_call(**changes))


@check("types")
def _types(subject: Subject) -> None:
    """build_request returns an HttpRequest, each field of its own type."""
    for call in calls(subject):
        faults = type_faults(Asked(subject, call).request)
        expect(not faults, f"for {type(call).__name__}: {'; '.join(faults)}")


@check("method")
def _method(subject: Subject) -> None:
    """The method is GET, without a body, or POST."""
    for call in calls(subject):
        request = Asked(subject, call).request
        expect(
            request.method in ("GET", "POST"), f"for {type(call).__name__} the method is {request.method!r}."
        )
        expect(
            request.method != "GET" or request.json is None, f"for {type(call).__name__} a GET has a body."
        )


@check("origin")
def _origin(subject: Subject) -> None:
    """The path is relative, or a URL of the endpoint's own origin: a key goes nowhere else."""
    for call in calls(subject):
        asked = Asked(subject, call)
        own, found = origin(asked.settings.base_url), origin(asked.url)
        expect(
            not asked.settings.base_url or found == own,
            f"for {type(call).__name__} the request goes to {found}; the endpoint is {own}.",
        )


@check("sendable")
def _sendable(subject: Subject) -> None:
    """The core would send it: URL escaped, headers valid, body JSON."""
    for call in calls(subject):
        Asked(subject, call).checked()


@check("path")
def _path(subject: Subject) -> None:
    """The path begins with a slash, so that it continues the base URL, and has no fragment."""
    for call in calls(subject):
        path = Asked(subject, call).request.path
        expect(path.startswith(("/", "?", "http")), f"for {type(call).__name__} the path is {path[:40]!r}.")
        expect("#" not in path, f"for {type(call).__name__} the path has a fragment (#).")


@check("every-text")
def _every_text(subject: Subject) -> None:
    """The body holds every text of the call, each exactly once."""
    call = subject.embed_call()
    found = order_of(call.texts, _embed(subject).body)
    for index in range(len(call.texts)):
        times = found.count(index)
        expect(times > 0, f"build_request left out {shown(index, call.texts)}.")
        expect(times == 1, f"build_request sends {shown(index, call.texts)} {times} times.")


@check("text-order")
def _text_order(subject: Subject) -> None:
    """The texts stand in the body in the order of the call."""
    call = subject.embed_call()
    if len(call.texts) == 1:
        raise NotApplicable("a request of this provider's holds one text")
    found = order_of(call.texts, _embed(subject).body)
    expect(found == sorted(found), f"build_request reordered the texts: {found}.")


@check("text-unchanged")
def _text_unchanged(subject: Subject) -> None:
    """A text goes out as it is: nothing stripped, replaced, escaped or cut off."""
    subject.without("embeddings")
    texts = (*TEXTS, "kit text, a long one" + ", and so on" * 500)
    for index, text in enumerate(texts):
        body = Asked(subject, EmbedCall(model=subject.samples.model, texts=(text,))).body
        expect(
            any(text in found for found in strings(body)),
            f"{shown(index, texts)} is not in the body as it is.",
        )


@check("full-batch")
def _full_batch(subject: Subject) -> None:
    """A request with as many texts as batch_limit allows holds them all, in order."""
    subject.without("embeddings")
    most = min(subject.limit or 64, 3_000)
    texts = tuple(f"kit text {number:05d}." for number in range(most))
    body = Asked(subject, EmbedCall(model=subject.samples.model, texts=texts)).body
    found = [text for text in strings(body) if "kit text" in text]
    expect(len(found) == most, f"of {most} texts {len(found)} are in the body.")
    wrong = [index for index, text in enumerate(found) if texts[index] not in text]
    expect(not wrong, f"text {wrong[0] if wrong else 0} is at another's place.")


@check("settings-per-call")
def _settings_per_call(subject: Subject) -> None:
    """The request is for the endpoint that it is given: another base URL, another place."""
    subject.without("embeddings")
    settings = subject.settings()
    if not settings.base_url:
        raise NotApplicable("the provider works inside the process")
    url = settings.base_url.replace("://", "://other.", 1)
    asked = Asked(subject, subject.embed_call(), evolve(settings, base_url=url))
    expect(
        origin(asked.url) == origin(url), f"for the endpoint {origin(url)} it goes to {origin(asked.url)}."
    )
