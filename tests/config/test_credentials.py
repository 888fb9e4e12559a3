"""API keys: present, returned by a function, and missing."""

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

import llmopt
from llmopt.config.credentials import CredentialSource
from llmopt.errors import AuthError, ConfigError
from llmopt.values.profile import Profile
from llmopt.values.secret import Secret
from tests.config.helpers import ACME, CANARY, endpoints, fault, load, one


def by(provider: Callable[[], Any]) -> CredentialSource:
    return CredentialSource("providers.acme", "token provider", provider=provider)


def static(key: str) -> CredentialSource:
    return CredentialSource("providers.acme", "configuration", secret=Secret(key))


async def test_a_fixed_key_is_known_without_waiting() -> None:
    """The way of nearly every request."""
    source = static(CANARY)
    assert source.is_static
    assert source.kind == "key"
    assert source.static_secret() == await source.get() == Secret(CANARY)


async def test_no_key_is_none() -> None:
    """For a server that wants none."""
    source = CredentialSource("providers.acme")
    assert (source.describe(), source.kind, source.problem) == ("none", "key", "")
    assert source.static_secret() is None
    assert await source.get() is None


async def test_a_problem_is_raised_each_time_anew() -> None:
    """One exception object never travels through two calls."""
    source = CredentialSource("providers.acme", problem="set it")
    errors = []
    for _ in range(2):
        with pytest.raises(ConfigError, match="set it") as caught:
            await source.get()
        errors.append(caught.value)
    assert errors[0] is not errors[1]


async def test_a_function_is_called_for_every_attempt() -> None:
    """A token may have expired meanwhile."""
    tokens = iter(["one", "two"])
    source = by(lambda: next(tokens))
    assert (source.kind, source.is_static, source.static_secret()) == ("token", False, None)
    assert [await source.get(), await source.get()] == [Secret("one"), Secret("two")]


async def test_every_kind_of_function_will_do() -> None:
    """Plain, async, partial, an object, or a plain one that returns something to await."""

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
        assert await by(provider).get() == Secret("t")


async def test_a_function_that_blocks_does_not_block_the_loop() -> None:
    """It runs in a thread; an async one stays in the loop."""
    go = threading.Event()
    waiting = asyncio.create_task(by(lambda: str(go.wait(10))).get())
    await asyncio.sleep(0.01)
    go.set()
    assert await waiting == Secret("True")

    async def where() -> str:
        return threading.current_thread().name

    assert await by(where).get() == Secret(threading.current_thread().name)


@pytest.mark.parametrize("value", [None, 5, CANARY.encode(), [CANARY], object(), True])
async def test_what_is_no_text_is_refused_by_its_type(value: object) -> None:
    """The value itself is not shown."""
    with pytest.raises(ConfigError) as caught:
        await by(lambda: value).get()
    assert str(caught.value) == (
        f"the token provider of providers.acme returned {type(value).__name__}; it must return text."
    )
    assert CANARY not in with_locals(caught.value)


@pytest.mark.row("S01")
@pytest.mark.parametrize("token", ["", f"{CANARY}\r\n x", f"Bearer {CANARY}", f"{CANARY}ä"])
async def test_a_token_that_cannot_be_one_is_refused_unseen(token: str) -> None:
    """Whoever gave it."""
    with pytest.raises(ConfigError, match=r"^the token of providers\.acme ") as caught:
        await by(lambda: token).get()
    assert CANARY not in with_locals(caught.value)


class Leaky(Exception):
    """As identity libraries raise them: with the answer of the token endpoint inside."""

    def __init__(self) -> None:
        super().__init__(CANARY)


def sync_failure() -> str:
    raise Leaky


async def async_failure() -> str:
    raise Leaky


async def late_failure() -> str:
    await asyncio.sleep(0)
    raise Leaky


def stopped() -> str:
    raise StopIteration(CANARY)


@pytest.mark.parametrize("provider", [sync_failure, async_failure, late_failure, stopped])
async def test_a_function_that_fails_is_an_auth_error_without_its_text(provider: Callable[[], Any]) -> None:
    """The kind of the failure is told, and it is not chained."""
    async with asyncio.timeout(5):
        with pytest.raises(AuthError) as caught:
            await by(provider).get()
    kind = "StopIteration" if provider is stopped else "Leaky"
    assert str(caught.value) == f"the token provider of providers.acme failed with {kind}."
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert CANARY not in with_locals(caught.value)


async def test_a_secret_may_be_returned_as_such() -> None:
    """It is one already."""
    assert await by(lambda: Secret(CANARY)).get() == Secret(CANARY)


async def test_cancellation_passes_through_a_function() -> None:
    """It is no failure of the function's."""

    async def endless() -> str:
        await asyncio.Event().wait()
        return ""

    task = asyncio.create_task(by(endless).get())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_fingerprints_tell_keys_apart_and_nothing_else() -> None:
    """The same key has the same one wherever it is configured."""
    one, same, other = static(CANARY), static(CANARY), static("other")
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    assert CANARY not in one.fingerprint()
    assert len(one.fingerprint()) == 64
    none = CredentialSource("providers.acme")
    assert none.fingerprint() == CredentialSource("providers.b").fingerprint() != one.fingerprint()


def test_fingerprints_of_functions_follow_the_function() -> None:
    """Its tokens change, the account behind them does not."""

    class Identity:
        def token(self) -> str:
            return "t"

    identity, other = Identity(), Identity()
    assert by(identity.token).fingerprint() == by(identity.token).fingerprint()
    assert by(identity.token).fingerprint() != by(other.token).fingerprint()
    assert by(sync_failure).fingerprint() != by(async_failure).fingerprint()


def test_fingerprints_are_those_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the random key of the process a list of keys cannot be tried against one."""
    before = static(CANARY).fingerprint()
    monkeypatch.setattr("llmopt.config.credentials._PROCESS_KEY", b"another")
    assert static(CANARY).fingerprint() != before


def test_a_source_never_shows_its_key() -> None:
    """Not in a repr and not as text."""
    for source in (static(CANARY), by(functools.partial(str, CANARY))):
        assert CANARY not in f"{source!r}{source}{source.describe()}"


LIBRARY = str(Path(llmopt.__file__).parent)


def with_locals(error: BaseException) -> str:
    """A traceback with the local variables of the library's own frames."""
    shown = []
    frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.startswith(LIBRARY):
            shown.append(repr(frame.tb_frame.f_locals))
        frame = frame.tb_next
    assert shown
    return "".join([*shown, *traceback.format_exception(error)])


# Which key goes where.

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
def test_a_key_from_the_environment_goes_to_its_provider(base_url: str | None) -> None:
    """The profile's own origin, whatever the path, and its own hosts."""
    found = one({"base_url": base_url}, **KEY)
    assert found.credential.static_secret() == Secret(CANARY)
    assert found.credential.describe() == "environment variable ACME_API_KEY"


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
    """The error says why and what to do; the endpoint itself is there."""
    found = one({"base_url": base_url}, **KEY)
    told = fault(found.credential.static_secret)
    assert told == (
        "providers.acme: set api_key or api_key_env in providers.acme, because a key from the environment "
        "goes only to https://api.acme.example or https://*.acme.cloud "
        "or the base URL in the environment variable ACME_BASE_URL."
    )
    assert found.credential.describe() == "none (ACME_API_KEY is not sent to this base URL)"


def test_a_message_for_a_provider_with_one_place_is_short() -> None:
    """The example of the design."""
    profile = Profile(base_url="https://api.x.com/v1", key_env=("X_KEY",))
    told = fault(one({"base_url": "https://evil.example"}, profile, X_KEY=CANARY).credential.static_secret)
    assert told.endswith("because a key from the environment goes only to https://api.x.com.")
    told = fault(
        one(
            {"base_url": "https://a.example"}, Profile(key_env=("X_KEY",)), X_KEY=CANARY
        ).credential.static_secret
    )
    assert told.endswith("a key from the environment goes only to a base URL from the environment.")


def test_an_own_host_gets_a_key_over_http_only_on_this_machine() -> None:
    """Leave to go unencrypted is no leave to show a key that was not given for it."""
    keys = {"base_url": "http://eu.acme.cloud", "allow_http": True}
    assert "goes only to" in fault(one(keys, **KEY).credential.static_secret)
    local = evolve(ACME, own_hosts=("localhost",))
    assert one({"base_url": "http://localhost:8000"}, local, **KEY).credential.static_secret() == Secret(
        CANARY
    )


@pytest.mark.parametrize("variable", ["ACME_BASE_URL", "LLMOPT_PROVIDERS__ACME__BASE_URL"])
def test_a_base_url_from_the_environment_is_vouched_for_by_it(variable: str) -> None:
    """Who can set the one can read the other."""
    found = one({}, **KEY, **{variable: "https://proxy.example/v1"})
    assert found.base_url == "https://proxy.example/v1"
    assert found.credential.static_secret() == Secret(CANARY)


def test_a_base_url_of_a_mapping_is_not_vouched_for_by_one_in_the_environment() -> None:
    """The configured one is where requests go, so it is the one that counts."""
    for variable in ("ACME_BASE_URL", "LLMOPT_PROVIDERS__ACME__BASE_URL"):
        found = one({"base_url": "https://evil.example"}, **KEY, **{variable: "https://proxy.example"})
        assert found.base_url == "https://evil.example"
        assert "goes only to" in fault(found.credential.static_secret)


def test_a_configured_key_goes_where_its_entry_points() -> None:
    """In any of the three ways to give one."""
    there = {"base_url": "https://mine.example"}
    found = one({**there, "api_key": "mine"}, **KEY)
    assert (found.credential.static_secret(), found.credential.describe()) == (
        Secret("mine"),
        "configuration",
    )
    found = one({**there, "api_key_env": "MINE"}, **KEY, MINE="mine\n")
    assert (found.credential.static_secret(), found.credential.describe()) == (
        Secret("mine"),
        "environment variable MINE",
    )
    found = one({**there, "api_key": lambda: "mine"}, **KEY)
    assert (found.credential.kind, found.credential.describe()) == ("token", "token provider")
    place = {"LLMOPT_PROVIDERS__ACME__BASE_URL": "https://mine.example"}
    found = one({}, **KEY, **place, LLMOPT_PROVIDERS__ACME__API_KEY="mine")
    assert found.credential.static_secret() == Secret("mine")


def test_a_key_set_for_an_entry_by_a_variable_does_not_follow_a_program_elsewhere() -> None:
    """The variable and the base URL come from different layers, so nothing says that they belong together."""
    found = one({"base_url": "https://mine.example"}, LLMOPT_PROVIDERS__ACME__API_KEY=CANARY)
    assert fault(found.credential.static_secret).startswith(
        "providers.acme: set api_key or api_key_env in providers.acme"
    )


def test_endpoints_have_keys_of_their_own_or_share_the_entry_s() -> None:
    """Both ways of giving a key in an endpoint end the entry's."""
    found = endpoints(
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
    assert [each.credential.static_secret() for each in found] == [
        Secret("shared"),
        Secret("own"),
        Secret("third"),
    ]


def test_each_endpoint_is_judged_by_its_own_place() -> None:
    """One may get the key of the environment, the other not."""
    own, foreign = endpoints({"endpoints": [{}, {"base_url": "https://evil.example"}]}, **KEY)
    assert own.credential.static_secret() == Secret(CANARY)
    assert fault(foreign.credential.static_secret).startswith(
        "providers.acme.endpoints[1]: set api_key or api_key_env in providers.acme.endpoints[1], because"
    )


def test_a_missing_key_is_told_when_it_is_asked_for() -> None:
    """Listing providers works without; the message names every variable that would do."""
    found = one({}, ACME_API_KEY="")
    assert found.credential.describe() == "none"
    assert fault(found.credential.static_secret) == (
        "providers.acme: there is no key; set the environment variable ACME_API_KEY or ACME_KEY, "
        "or api_key or api_key_env in providers.acme."
    )
    told = fault(one({}, Profile(base_url="https://a.example")).credential.static_secret)
    assert told == "providers.acme: there is no key; set api_key or api_key_env in providers.acme."


def test_the_first_variable_that_holds_something_wins() -> None:
    """In the order of the profile; an empty one counts as not set."""
    assert one({}, ACME_API_KEY="", ACME_KEY="second").credential.static_secret() == Secret("second")
    assert one({}, ACME_API_KEY="first", ACME_KEY="second").credential.static_secret() == Secret("first")


def test_a_named_variable_that_is_not_set_is_told_by_name() -> None:
    """Also where the provider would do without a key: the user wants one sent."""
    found = one({"api_key_env": "MINE"}, evolve(ACME, key_required=False), **KEY)
    assert fault(found.credential.static_secret) == (
        "providers.acme: api_key_env names the environment variable MINE, which is not set."
    )


@pytest.mark.row("S01")
@pytest.mark.parametrize("key", [CANARY, "0123456789abcdef0123456789abcdef", "AbC123xyz"])
def test_a_key_in_the_place_of_a_variable_s_name_is_not_shown(key: str) -> None:
    """A mistake that is easily made; what does not look like a variable's name stays hidden."""

    def call() -> None:
        found = one({"api_key_env": key})
        assert key not in repr(found)
        found.credential.static_secret()

    assert key not in fault(call)
    if key != CANARY:
        assert key not in repr(load({"providers": {"acme": {"api_key_env": "a" + key}}}))


def test_a_provider_that_needs_no_key_goes_without() -> None:
    """Silently, but the doctor can tell that a key was held back."""
    profile = evolve(ACME, key_required=False)
    assert one({}, profile).credential.static_secret() is None
    found = one({"base_url": "http://localhost:8000"}, profile, **KEY)
    assert found.credential.static_secret() is None
    assert found.credential.describe() == "none (ACME_API_KEY is not sent to this base URL)"


@pytest.mark.row("S01")
@pytest.mark.parametrize(
    "key",
    [f"{CANARY}\r\nx", f"{CANARY}\0", f"{CANARY}ä", CANARY * 60_000, f"Bearer {CANARY}"],
    ids=["break", "nul", "foreign", "long", "scheme"],
)
@pytest.mark.parametrize("keys", [{}, {"api_key_env": "ACME_API_KEY"}], ids=["profile", "named"])
def test_a_variable_that_holds_no_key_is_told_unseen(keys: dict[str, str], key: str) -> None:
    """With the name of the variable, and only when the key is asked for."""
    found = one(keys, ACME_API_KEY=key)
    assert fault(found.credential.static_secret).startswith(
        "providers.acme: environment variable ACME_API_KEY "
    )
    assert CANARY not in repr(found)
