"""Keys: in headers and nowhere else."""

from __future__ import annotations

from typing import Final

from attrs import evolve

from llmopt.errors import LLMOptError
from llmopt.testing.kit.asking import Asked, calls
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.headers import OF_THE_WIRE, header_faults
from llmopt.testing.kit.subject import CONFIGURED, KEY, TOKEN, Subject
from llmopt.testing.samples import SampleError
from llmopt.values.failure import Failure

check: Final = Family("secrets")


def _carriers(asked: Asked, secret: str) -> list[str]:
    return [name for name, value in asked.headers.items() if secret in str(value)]


def _needs_key(subject: Subject) -> None:
    if subject.settings().auth == "none":
        raise NotApplicable("this provider takes no key")
    if not subject.base_url:
        raise NotApplicable("the provider works inside the process")


@check("key-in-header")
def _key_in_header(subject: Subject) -> None:
    """The key goes out in a header, with every kind of request."""
    _needs_key(subject)
    for call in calls(subject):
        carriers = _carriers(Asked(subject, call), KEY)
        expect(carriers, f"for {type(call).__name__} no header holds the key.")
        expect(
            len(carriers) == 1, f"for {type(call).__name__} several headers hold it: {', '.join(carriers)}."
        )


@check("key-not-in-url")
def _key_not_in_url(subject: Subject) -> None:
    """The key is never in a path or a query: URLs end up in logs of servers, proxies and libraries."""
    for call in calls(subject):
        asked = Asked(subject, call)
        expect(KEY not in asked.url, f"for {type(call).__name__} the key is in the URL.")


@check("key-not-in-body")
def _key_not_in_body(subject: Subject) -> None:
    """The key is never in the body."""
    for call in calls(subject):
        asked = Asked(subject, call)
        expect(KEY not in asked.everything, f"for {type(call).__name__} the key is in the body.")


@check("no-key")
def _no_key(subject: Subject) -> None:
    """Without a key no header for one is sent: no "Bearer None", no empty api-key."""
    for call in calls(subject):
        bare = Asked(subject, call, subject.settings(key=None))
        for name in _carriers(Asked(subject, call), KEY):
            expect(
                name not in bare.headers,
                f"for {type(call).__name__} the header {name} is sent without a key.",
            )
        expect("None" not in str(bare.headers.values()), f"for {type(call).__name__} a header says None.")


@check("token")
def _token(subject: Subject) -> None:
    """A token that a token provider gives goes out in one header too, and nowhere else."""
    _needs_key(subject)
    for call in calls(subject):
        asked = Asked(subject, call, subject.settings(key=TOKEN, kind="token"))
        expect(len(_carriers(asked, TOKEN)) == 1, f"for {type(call).__name__} no one header holds the token.")
        expect(
            TOKEN not in asked.everything, f"for {type(call).__name__} the token is in the URL or the body."
        )


@check("headers-valid")
def _headers_valid(subject: Subject) -> None:
    """Names and values of headers are what HTTP allows: no line breaks, no characters beyond Latin-1."""
    for call in calls(subject):
        faults = header_faults(Asked(subject, call).request.headers)
        expect(not faults, f"for {type(call).__name__}: {'; '.join(faults)}")


@check("headers-configured")
def _headers_configured(subject: Subject) -> None:
    """Headers that the user configured are sent as they are."""
    for call in calls(subject):
        headers = Asked(subject, call).headers
        for name, value in CONFIGURED.items():
            expect(
                headers.get(name) == value,
                f"for {type(call).__name__} the configured header {name} is missing.",
            )


@check("headers-of-the-wire")
def _headers_of_the_wire(subject: Subject) -> None:
    """Host, content-length and their like are left to whoever carries the request."""
    for call in calls(subject):
        found = sorted(OF_THE_WIRE & set(Asked(subject, call).headers))
        expect(not found, f"for {type(call).__name__} it sets {', '.join(found)}.")


@check("not-in-verdict")
def _not_in_verdict(subject: Subject) -> None:
    """A verdict adds no key: neither its code nor its hint nor its param holds one."""
    failure = Failure(status=401, body=subject.dialect.error(_echo()))
    verdict = subject.hooks.classify_error(failure, subject.settings())
    for name in ("code", "hint", "param"):
        expect(KEY not in str(getattr(verdict, name)), f"Verdict.{name} holds the key.")


@check("not-in-error")
def _not_in_error(subject: Subject) -> None:
    """The exception that a user sees holds no key, also when the server's answer repeats it."""
    from llmopt.engine.outcome import error_of

    failure = Failure(status=401, body=subject.dialect.error(_echo()))
    settings = subject.settings()
    error: LLMOptError = error_of(
        subject.hooks.classify_error(failure, settings), failure, subject.embed_call(), settings
    )
    expect(KEY not in f"{error!r} {error} {vars(error)}", "the exception for a 401 holds the key.")


def _echo() -> SampleError:
    return SampleError(status=401, message=f"the key {KEY} is wrong")


@check("not-in-profile")
def _not_in_profile(subject: Subject) -> None:
    """A profile holds no key, whatever the entry holds."""
    from llmopt.testing.kit.prints import fingerprint

    entry = evolve(subject.entry, headers={"x-kit": KEY})
    found = fingerprint(subject.hooks.provider_profile(entry))
    expect(KEY not in str(found), "the profile repeats the user's key or headers.")
