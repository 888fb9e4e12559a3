"""Keys that are there, keys that a function gives, and keys that are missing."""

import asyncio
import functools
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from llmopt.config.credentials import CredentialSource
from llmopt.errors import AuthError, ConfigError
from llmopt.values.secret import Secret
from tests.config.helpers import CANARY


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


@pytest.mark.parametrize("token", ["", f"{CANARY}\r\n x", f"Bearer {CANARY}", f"{CANARY}ä"])
async def test_s01_a_token_that_cannot_be_one_is_refused_unseen(token: str) -> None:
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


def with_locals(error: BaseException) -> str:
    """A traceback with the local variables of the library's own frames."""
    shown = []
    frame = error.__traceback__
    while frame is not None:
        if "llmopt" in frame.tb_frame.f_code.co_filename and "tests" not in frame.tb_frame.f_code.co_filename:
            shown.append(repr(frame.tb_frame.f_locals))
        frame = frame.tb_next
    assert shown
    return "".join([*shown, *traceback.format_exception(error)])
