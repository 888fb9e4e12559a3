"""API keys: static, from a token provider, or missing; and the base URLs that they are sent to."""

from __future__ import annotations

import asyncio
import functools
import threading
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import llmopt
from llmopt.config.credentials import CredentialSource
from llmopt.errors import AuthError, ConfigError
from llmopt.values.profile import Profile
from llmopt.values.secret import Secret
from tests.config.helpers import ACME, CANARY, endpoints, entry_fault, fault, load, one
from tests.support.scale import scaled


def from_provider(provider: Callable[[], Any]) -> CredentialSource:
    return CredentialSource("providers.acme", "token provider", provider=provider)


def static_source(key: str) -> CredentialSource:
    return CredentialSource("providers.acme", "configuration", secret=Secret(key))


async def test_a_static_key_is_available_synchronously() -> None:
    """Nearly every request uses this path."""
    source = static_source(CANARY)
    assert source.is_static
    assert source.kind == "key"
    assert source.static_secret() == await source.get() == Secret(CANARY)


async def test_a_source_without_a_key_returns_none() -> None:
    """For a server that needs none."""
    source = CredentialSource("providers.acme")
    assert (source.origin, source.kind, source.problem) == ("none", "key", "")
    assert source.static_secret() is None
    assert await source.get() is None


async def test_each_call_raises_a_new_exception_for_a_problem() -> None:
    """Two calls must not share one exception object."""
    source = CredentialSource("providers.acme", problem="set it")
    errors = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="set it") as caught:
            await source.get()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


async def test_a_token_provider_is_called_for_every_attempt() -> None:
    """A token may have expired since the last one."""
    tokens = iter(["one", "two"])
    source = from_provider(lambda: next(tokens))
    assert (source.kind, source.is_static, source.static_secret()) == ("token", False, None)
    assert [await source.get(), await source.get()] == [Secret("one"), Secret("two")]


async def test_any_callable_can_be_a_token_provider() -> None:
    """Plain, async, partial, an object, or a plain function that returns an awaitable."""

    async def token(text: str = "t") -> str:
        await asyncio.sleep(0)
        return text

    class Plain:
        def __call__(self) -> str:
            return "t"

    class Async:
        async def __call__(self) -> str:
            return "t"

        async def method(self) -> str:
            return "t"

    providers: list[Callable[[], str | Awaitable[str]]] = [
        lambda: "t",
        token,
        functools.partial(token, "t"),
        lambda: token("t"),
        Plain(),
        Async(),
        Async().method,
    ]
    for provider in providers:
        assert await from_provider(provider).get() == Secret("t")


async def test_a_blocking_token_provider_does_not_block_the_loop() -> None:
    """It runs in a thread; an async one runs in the event loop."""
    go = threading.Event()
    waiting = asyncio.create_task(from_provider(lambda: str(go.wait(10))).get())
    await asyncio.sleep(0.01)
    go.set()
    assert await waiting == Secret("True")

    async def where() -> str:
        return threading.current_thread().name

    assert await from_provider(where).get() == Secret(threading.current_thread().name)


@pytest.mark.parametrize("value", [None, 5, CANARY.encode(), [CANARY], object(), True])
async def test_a_token_that_is_no_text_is_an_error_with_its_type(value: object) -> None:
    """The error does not show the value."""
    with pytest.raises(ConfigError) as caught:
        await from_provider(lambda: value).get()
    assert str(caught.value) == (
        f"the token provider of providers.acme returned {type(value).__name__}; it must return text."
    )
    assert CANARY not in with_locals(caught.value)


@pytest.mark.row("S01")
@pytest.mark.parametrize("token", ["", f"{CANARY}\r\n x", f"Bearer {CANARY}", f"{CANARY}ä"])
async def test_an_invalid_token_is_an_error_that_does_not_show_it(token: str) -> None:
    with pytest.raises(ConfigError, match=r"^the token of providers\.acme ") as caught:
        await from_provider(lambda: token).get()
    assert CANARY not in with_locals(caught.value)


class LeakyError(Exception):
    """An error as identity libraries raise it: its message has the token endpoint's response."""

    def __init__(self) -> None:
        super().__init__(CANARY)


def sync_failure() -> str:
    raise LeakyError


async def async_failure() -> str:
    raise LeakyError


async def failure_after_an_await() -> str:
    await asyncio.sleep(0)
    raise LeakyError


def stop_iteration() -> str:
    raise StopIteration(CANARY)


@pytest.mark.parametrize("provider", [sync_failure, async_failure, failure_after_an_await, stop_iteration])
async def test_a_failed_token_provider_is_an_auth_error_without_its_message(
    provider: Callable[[], Any],
) -> None:
    """The error names the exception's type and its place, and it is not chained."""
    async with asyncio.timeout(5):
        with pytest.raises(AuthError) as caught:
            await from_provider(provider).get()
    kind = "StopIteration" if provider is stop_iteration else "LeakyError"
    line = provider.__code__.co_firstlineno + (2 if provider is failure_after_an_await else 1)
    place = f"(config/test_credentials.py, line {line})"
    assert str(caught.value) == f"the token provider of providers.acme failed with {kind} {place}."
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert CANARY not in with_locals(caught.value)


async def test_a_token_provider_may_return_a_secret() -> None:
    assert await from_provider(lambda: Secret(CANARY)).get() == Secret(CANARY)


async def test_a_token_provider_can_be_cancelled() -> None:
    """Cancellation is not taken for a failure."""

    async def endless() -> str:
        await asyncio.Event().wait()
        return ""

    task = asyncio.create_task(from_provider(endless).get())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_fingerprint_depends_on_the_key_only() -> None:
    """The same key has the same fingerprint wherever it is configured."""
    one, same, other = static_source(CANARY), static_source(CANARY), static_source("other")
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert CANARY not in one.fingerprint()
    assert len(one.fingerprint()) == 64
    none = CredentialSource("providers.acme")
    assert none.fingerprint() == CredentialSource("providers.b").fingerprint() != one.fingerprint()


def test_a_fingerprint_of_a_token_provider_depends_on_the_function() -> None:
    """Its tokens change, but not the account that they belong to."""

    class Identity:
        def token(self) -> str:
            return "t"

    identity, other = Identity(), Identity()
    assert from_provider(identity.token).fingerprint() == from_provider(identity.token).fingerprint()
    assert from_provider(identity.token).fingerprint() != from_provider(other.token).fingerprint()
    assert from_provider(sync_failure).fingerprint() != from_provider(async_failure).fingerprint()


def test_fingerprints_depend_on_a_random_key_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it one could test a list of keys against a fingerprint."""
    before = static_source(CANARY).fingerprint()
    monkeypatch.setattr("llmopt.config.credentials._PROCESS_KEY", b"another")
    assert static_source(CANARY).fingerprint() != before


def test_repr_and_str_do_not_show_the_key() -> None:
    for source in (static_source(CANARY), from_provider(functools.partial(str, CANARY))):
        assert CANARY not in f"{source!r}{source}{source.origin}"


LIBRARY = str(Path(llmopt.__file__).parent)


def with_locals(error: BaseException) -> str:
    """A traceback with the local variables of llmopt's frames."""
    shown = []
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.startswith(LIBRARY):
            shown.append(repr(frame.tb_frame.f_locals))
        frame = frame.tb_next
    assert shown
    return "".join([*shown, *traceback.format_exception(error)])


# Which key is sent to which base URL.

KEY = {"ACME_API_KEY": CANARY}


@pytest.mark.parametrize(
    "base_url",
    [
        None,
        "https://api.acme.example",
        "https://api.acme.example/v2",
        "https://API.ACME.example:443/v2",
        "https://eu.acme.cloud/v1",
        "https://eu.acme.cloud:8443/v1",
    ],
)
def test_a_key_from_the_environment_is_sent_to_its_provider(base_url: str | None) -> None:
    """To the profile's origin with any path, and to the provider's own hosts."""
    endpoint = one({"base_url": base_url}, **KEY)
    assert endpoint.credential.static_secret() == Secret(CANARY)
    assert endpoint.credential.origin == "environment variable ACME_API_KEY"


@pytest.mark.row("S03")
@pytest.mark.parametrize(
    "base_url",
    [
        "https://evil.example",
        "https://api.acme.example.evil.example",
        "https://api.acme.example:8443",
        "https://acme.cloud",
        "https://evilacme.cloud",
        "http://localhost:8000",
    ],
)
def test_a_foreign_origin_gets_no_key_from_the_environment(base_url: str) -> None:
    """The error says why and what to do; the endpoint itself resolves."""
    endpoint = one({"base_url": base_url}, **KEY)
    message = fault(endpoint.credential.static_secret)
    assert message == (
        "providers.acme: set api_key or api_key_env in providers.acme, because a key from the environment "
        "goes only to https://api.acme.example or https://*.acme.cloud "
        "or the base URL in the environment variable ACME_BASE_URL."
    )
    assert endpoint.credential.origin == "none (ACME_API_KEY is not sent to this base URL)"


def test_the_error_for_a_provider_with_one_origin_is_short() -> None:
    profile = Profile(base_url="https://api.x.com/v1", key_env=("X_KEY",))
    message = fault(one({"base_url": "https://evil.example"}, profile, X_KEY=CANARY).credential.static_secret)
    assert message.endswith("because a key from the environment goes only to https://api.x.com.")
    message = fault(
        one(
            {"base_url": "https://a.example"}, Profile(key_env=("X_KEY",)), X_KEY=CANARY
        ).credential.static_secret
    )
    assert message.endswith("a key from the environment goes only to a base URL from the environment.")


def test_an_own_host_gets_a_key_over_http_only_on_loopback() -> None:
    """allow_http does not allow sending a key of the environment unencrypted."""
    keys = {"base_url": "http://eu.acme.cloud", "allow_http": True}
    assert "goes only to" in fault(one(keys, **KEY).credential.static_secret)
    local = evolve(ACME, own_hosts=("localhost",))
    assert one({"base_url": "http://localhost:8000"}, local, **KEY).credential.static_secret() == Secret(
        CANARY
    )


@pytest.mark.parametrize("variable", ["ACME_BASE_URL", "LLMOPT_PROVIDERS__ACME__BASE_URL"])
def test_a_base_url_from_the_environment_gets_the_key_from_it(variable: str) -> None:
    """A program that can set the one variable can read the other."""
    endpoint = one({}, **KEY, **{variable: "https://proxy.example/v1"})
    assert endpoint.base_url == "https://proxy.example/v1"
    assert endpoint.credential.static_secret() == Secret(CANARY)


def test_a_base_url_in_the_environment_does_not_allow_the_one_of_a_mapping() -> None:
    """Requests go to the configured URL, so that one decides."""
    for variable in ("ACME_BASE_URL", "LLMOPT_PROVIDERS__ACME__BASE_URL"):
        endpoint = one({"base_url": "https://evil.example"}, **KEY, **{variable: "https://proxy.example"})
        assert endpoint.base_url == "https://evil.example"
        assert "goes only to" in fault(endpoint.credential.static_secret)


def test_a_configured_key_is_sent_to_the_base_url_of_its_entry() -> None:
    """Whichever of the three ways the key is configured in."""
    there = {"base_url": "https://mine.example"}
    endpoint = one({**there, "api_key": "mine"}, **KEY)
    assert (endpoint.credential.static_secret(), endpoint.credential.origin) == (
        Secret("mine"),
        "configuration",
    )
    endpoint = one({**there, "api_key_env": "MINE"}, **KEY, MINE="mine\n")
    assert (endpoint.credential.static_secret(), endpoint.credential.origin) == (
        Secret("mine"),
        "environment variable MINE",
    )
    endpoint = one({**there, "api_key": lambda: "mine"}, **KEY)
    assert (endpoint.credential.kind, endpoint.credential.origin) == ("token", "token provider")
    place = {"LLMOPT_PROVIDERS__ACME__BASE_URL": "https://mine.example"}
    endpoint = one({}, **KEY, **place, LLMOPT_PROVIDERS__ACME__API_KEY="mine")
    assert endpoint.credential.static_secret() == Secret("mine")


def test_a_key_from_a_variable_is_not_sent_to_a_base_url_from_the_program() -> None:
    """Variable and base URL come from different layers, so they may not belong together."""
    endpoint = one({"base_url": "https://mine.example"}, LLMOPT_PROVIDERS__ACME__API_KEY=CANARY)
    assert fault(endpoint.credential.static_secret).startswith(
        "providers.acme: set api_key or api_key_env in providers.acme"
    )


def test_an_endpoint_has_its_own_key_or_that_of_the_entry() -> None:
    """Either way of configuring a key in an endpoint replaces the entry's."""
    endpoint = endpoints(
        {
            "api_key": "shared",
            "endpoints": [
                {"base_url": "https://a.example"},
                {"base_url": "https://b.example", "api_key": "own"},
                {"base_url": "https://c.example", "api_key_env": "OWN"},
            ],
        },
        OWN="third",
    )
    assert [each.credential.static_secret() for each in endpoint] == [
        Secret("shared"),
        Secret("own"),
        Secret("third"),
    ]


def test_each_endpoint_is_judged_by_its_own_base_url() -> None:
    """One may get the key of the environment while another does not."""
    own, foreign = endpoints({"endpoints": [{}, {"base_url": "https://evil.example"}]}, **KEY)
    assert own.credential.static_secret() == Secret(CANARY)
    assert fault(foreign.credential.static_secret).startswith(
        "providers.acme.endpoints[1]: set api_key or api_key_env in providers.acme.endpoints[1], because"
    )


def test_a_missing_key_is_an_error_only_when_it_is_needed() -> None:
    """Listing providers works without; the message names every variable that can hold the key."""
    endpoint = one({}, ACME_API_KEY="")
    assert endpoint.credential.origin == "none"
    assert fault(endpoint.credential.static_secret) == (
        "providers.acme: there is no key; set the environment variable ACME_API_KEY or ACME_KEY, "
        "or api_key or api_key_env in providers.acme."
    )
    message = fault(one({}, Profile(base_url="https://a.example")).credential.static_secret)
    assert message == "providers.acme: there is no key; set api_key or api_key_env in providers.acme."


def test_the_first_variable_that_is_not_empty_wins() -> None:
    """In the order of the profile."""
    assert one({}, ACME_API_KEY="", ACME_KEY="second").credential.static_secret() == Secret("second")
    assert one({}, ACME_API_KEY="first", ACME_KEY="second").credential.static_secret() == Secret("first")


def test_an_unset_variable_of_api_key_env_is_an_error_with_its_name() -> None:
    """Also where the provider needs no key: the user wants one to be sent."""
    endpoint = one({"api_key_env": "MINE"}, evolve(ACME, key_required=False), **KEY)
    assert fault(endpoint.credential.static_secret) == (
        "providers.acme: api_key_env names the environment variable MINE, which is not set."
    )


@pytest.mark.row("S01")
@pytest.mark.parametrize("key", [CANARY, "0123456789abcdef0123456789abcdef", "AbC123xyz"])
def test_a_key_in_place_of_a_variables_name_is_not_shown(key: str) -> None:
    """The error shows only what looks like the name of a variable."""

    def call() -> None:
        endpoint = one({"api_key_env": key})
        assert key not in repr(endpoint)
        endpoint.credential.static_secret()

    assert key not in fault(call)
    if key != CANARY:
        assert key not in repr(load({"providers": {"acme": {"api_key_env": "a" + key}}}))


def test_a_provider_that_needs_no_key_works_without_one() -> None:
    """The doctor can still report that a key was not sent."""
    profile = evolve(ACME, key_required=False)
    assert one({}, profile).credential.static_secret() is None
    endpoint = one({"base_url": "http://localhost:8000"}, profile, **KEY)
    assert endpoint.credential.static_secret() is None
    assert endpoint.credential.origin == "none (ACME_API_KEY is not sent to this base URL)"


@pytest.mark.row("S01")
@pytest.mark.parametrize(
    "key",
    [f"{CANARY}\r\nx", f"{CANARY}\0", f"{CANARY}ä", CANARY * 60_000, f"Bearer {CANARY}"],
    ids=["break", "nul", "foreign", "long", "scheme"],
)
@pytest.mark.parametrize("keys", [{}, {"api_key_env": "ACME_API_KEY"}], ids=["profile", "named"])
def test_an_invalid_key_in_a_variable_is_an_error_that_does_not_show_it(
    keys: dict[str, str], key: str
) -> None:
    """It names the variable, and is raised only when the key is needed."""
    endpoint = one(keys, ACME_API_KEY=key)
    assert fault(endpoint.credential.static_secret).startswith(
        "providers.acme: environment variable ACME_API_KEY "
    )
    assert CANARY not in repr(endpoint)


@pytest.mark.row("S01")
@pytest.mark.parametrize(
    ("key", "message"),
    [
        (f'"{CANARY}"', "is in quotes"),
        (f"'{CANARY}'", "is in quotes"),
        (f" `{CANARY}` ", "is in quotes"),
        (f"Bearer {CANARY}", 'begins with the word "Bearer"'),
        (f"bearer {CANARY}", 'begins with the word "Bearer"'),
        (f"ACME_API_KEY={CANARY}", "begins with the name of a variable"),
        (f"export ACME_TOKEN = {CANARY}", "begins with the name of a variable"),
        ("${ACME_API_KEY}", "is the name of a variable"),
        ("$ACME_API_KEY", "is the name of a variable"),
        ("%ACME_API_KEY%", "is the name of a variable"),
        ("{{ secrets.ACME }}", "is the name of a variable"),
    ],
)
def test_what_was_copied_with_a_key_is_named(key: str, message: str) -> None:
    """From a shell, a header, a template; in the configuration and in the environment alike."""
    assert message in entry_fault(api_key=key)
    assert message in fault(one({}, ACME_API_KEY=key).credential.static_secret)


@settings(max_examples=scaled(100, nightly=5000))
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60))
def test_any_other_visible_text_is_a_key(key: str) -> None:
    """Base64 with its equals signs, passwords with a quote in them, words such as EMPTY."""
    assume(not (len(key) > 1 and key[0] == key[-1] and key[0] in "\"'`"))
    assume(key[0] not in "$%{" and "=" not in key[:-2])
    assert one({"api_key": key}).credential.static_secret() == Secret(key)


def test_a_key_may_be_as_long_as_headers_may_be() -> None:
    """Tokens of identity providers list the groups of their user."""
    longest = "e" * 65_536
    assert one({"api_key": longest}).credential.static_secret() == Secret(longest)
    assert "has 65537 characters; a key has at most 65536." in entry_fault(api_key=f"{longest}e")
