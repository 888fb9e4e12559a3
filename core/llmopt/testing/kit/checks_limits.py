"""How much fits into one request, and what answers tell of limits."""

from __future__ import annotations

import math
from typing import Final

from llmopt.engine.prepare import origin, prepare
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.junk import ANSWERS
from llmopt.testing.kit.subject import KEY, Subject
from llmopt.testing.kit.types import type_faults
from llmopt.values.calls import EmbedCall
from llmopt.values.limits import BatchLimit, RateLimit

check: Final = Family("limits")

_MODELS: Final = ("kit-model", "org/kit-model", "Z\u00fcrich", "x" * 300, "a b?c#d&e=f")
_HEADERS: Final[tuple[dict[str, str], ...]] = (
    {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"},
    {"x-ratelimit-limit-tokens": "-1", "x-ratelimit-remaining-tokens": "nan", "x-ratelimit-reset-tokens": "1e999"},
    {"ratelimit": '"api";r=999;t=295', "retry-after": "soon"},
    {"x-ratelimit-remaining-requests": "5, 6", "x-ratelimit-reset-requests": ""},
    {"x-ratelimit-limit-requests": "9" * 400, "x-ratelimit-reset-tokens": "\u0663s"},
)  # fmt: skip


def _limit(subject: Subject, model: str = "kit-model") -> BatchLimit:
    call = EmbedCall(model=model)
    return subject.hooks.batch_limit(call, subject.settings())


@check("types")
def _types(subject: Subject) -> None:
    """batch_limit returns a BatchLimit of whole numbers above 0, or None for what is not known."""
    faults = type_faults(_limit(subject))
    expect(not faults, "\n".join(faults))


@check("consistent")
def _consistent(subject: Subject) -> None:
    """A text that is allowed alone is allowed in a request: max_item_tokens is at most max_tokens."""
    found = _limit(subject)
    if found.max_item_tokens is None or found.max_tokens is None:
        raise NotApplicable("one of the two is not known")
    expect(
        found.max_item_tokens <= found.max_tokens,
        f"max_item_tokens is {found.max_item_tokens}, max_tokens is {found.max_tokens}.",
    )


@check("any-model")
def _any_model(subject: Subject) -> None:
    """batch_limit answers for any model, also one that nobody knows."""
    for model in _MODELS:
        faults = type_faults(_limit(subject, model))
        expect(not faults, f"for the model {model[:40]!r}: {'; '.join(faults)}")


@check("question")
def _question(subject: Subject) -> None:
    """limits_request asks the endpoint itself, with the key in a header only; None where there is nothing to ask."""
    settings = subject.settings()
    found = subject.hooks.limits_request(_call(subject), settings)
    if found is None:
        raise NotApplicable("the plugin does not ask the server for limits")
    sent = prepare(found, settings)
    expect(origin(sent.url) == origin(settings.base_url), f"it goes to {origin(sent.url)}.")
    expect(
        KEY not in sent.url and KEY.encode() not in (sent.body or b""), "the key is in the URL or the body."
    )


@check("asked-of-server")
def _asked_of_server(subject: Subject) -> None:
    """What a server answers to limits_request is a BatchLimit; nonsense is BatchLimit(), never a crash."""
    if not subject.implements("parse_limits"):
        raise NotApplicable("the plugin does not ask the server for limits")
    for label, body in ANSWERS:
        found = subject.hooks.parse_limits(_call(subject), subject.answer(body), subject.settings())
        faults = type_faults(found)
        expect(not faults, f"for {label}: {'; '.join(faults)}")


def _call(subject: Subject) -> EmbedCall:
    return EmbedCall(model=subject.samples.model)


@check("rate-types")
def _rate_types(subject: Subject) -> None:
    """rate_limits returns RateLimits of numbers, or None where an answer is silent."""
    for headers in _HEADERS:
        found = subject.hooks.rate_limits(subject.answer(b"{}", headers=headers), subject.settings())
        faults = type_faults(found)
        expect(not faults, "\n".join(faults))


@check("rate-sane")
def _rate_sane(subject: Subject) -> None:
    """Whatever the headers hold, no limit is negative or not finite: nonsense is taken for absent."""
    for headers in _HEADERS:
        found = subject.hooks.rate_limits(subject.answer(b"{}", headers=headers), subject.settings())
        for limit in (found.requests, found.tokens):
            expect(_sane(limit), f"{headers} became {limit}.")


def _sane(limit: RateLimit | None) -> bool:
    if limit is None:
        return True
    numbers = (limit.limit, limit.remaining, limit.reset_s, limit.window_s)
    return all(number is None or (math.isfinite(number) and number >= 0) for number in numbers)


@check("rate-silence")
def _rate_silence(subject: Subject) -> None:
    """An answer without any such header tells nothing, whatever its status."""
    for status in (200, 429, 500):
        found = subject.hooks.rate_limits(subject.answer(b"{}", status=status), subject.settings())
        expect(found.requests is None and found.tokens is None, f"status {status} alone became {found}.")
