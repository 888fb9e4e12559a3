"""Headers of one call: sent with all its requests, checked before, and part of what makes two calls different."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import llmopt
from llmopt.testing import FakeProvider

MESSAGES = [{"role": "user", "content": "hello"}]
TENANT = {"X-Tenant": "one"}


class Recorder(httpx.AsyncBaseTransport):
    """Passes requests on, and keeps their headers."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner
        self.headers: list[httpx.Headers] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.headers.append(request.headers)
        # So that calls which begin together overlap.
        await asyncio.sleep(0)
        return await self.inner.handle_async_request(request)


@pytest.fixture
def sent() -> Iterator[tuple[FakeProvider, Recorder]]:
    with FakeProvider() as fake:
        yield fake, Recorder(fake.transport)


def test_every_method_sends_them(sent: tuple[FakeProvider, Recorder]) -> None:
    """With each kind of request, in place of a configured header of the same name, and with that call alone."""
    fake, recorder = sent
    config = {"providers": {"fake": {"plugin": "fake-fake", "headers": {"x-tenant": "all"}}}}
    with llmopt.Client(config, transport=recorder, cache=False) as client:
        client.embed("fake/e", ["a"], headers=TENANT)
        with client.embed_iter("fake/e", ["b"], headers=TENANT) as parts:
            list(parts)
        client.chat("fake/c", MESSAGES, headers=TENANT)
        with client.stream("fake/c", MESSAGES, headers=TENANT) as reply:
            list(reply)
        client.list_models("fake", headers=TENANT)
        assert [each["x-tenant"] for each in recorder.headers] == ["one"] * 5
        client.embed("fake/e", ["c"])
        assert recorder.headers[-1]["x-tenant"] == "all"
    assert fake.texts == ["a", "b", "c"]


def test_retries_send_them_again(sent: tuple[FakeProvider, Recorder]) -> None:
    """Each attempt is the same request."""
    fake, recorder = sent
    fake.fail_next(llmopt.ServerError)
    with llmopt.Client(fake.config, transport=recorder) as client:
        client.embed("fake/e", ["a"], headers=TENANT)
    assert [each["x-tenant"] for each in recorder.headers] == ["one", "one"]


WRONG = [
    ({"x-a": "line\nbreak"}, "headers.x-a"),
    ({"x a": "1"}, "not a valid header name"),
    ({"x-a": 1}, "headers.x-a"),
    ({"Authorization": "Bearer other"}, "headers.authorization"),
    ({"content-length": "3"}, "headers.content-length"),
    (["x-a"], "headers"),
]


@pytest.mark.parametrize(("headers", "words"), WRONG)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    headers: Any, words: str, sent: tuple[FakeProvider, Recorder]
) -> None:
    """By every method, with the name and without the value."""
    fake, recorder = sent
    with llmopt.Client(fake.config, transport=recorder) as client:
        uses: tuple[Callable[[], object], ...] = (
            lambda: client.embed("fake/e", ["a"], headers=headers),
            lambda: client.embed_iter("fake/e", ["a"], headers=headers),
            lambda: client.chat("fake/c", MESSAGES, headers=headers),
            lambda: client.list_models("fake", headers=headers),
        )
        for use in uses:
            with pytest.raises(llmopt.InvalidInput, match=words) as caught:
                use()
            assert "other" not in str(caught.value).replace("another", "")
    assert recorder.headers == []


def test_vectors_are_cached_by_the_headers_that_may_change_them(sent: tuple[FakeProvider, Recorder]) -> None:
    """Another tenant's vectors are not served; an id of a trace makes no difference."""
    fake, recorder = sent
    with llmopt.Client(fake.config, transport=recorder, cache="memory") as client:
        for headers in (None, {}, {"traceparent": "00-1"}, TENANT, {**TENANT, "X-Request-Id": "2"}):
            client.embed("fake/e", ["a"], headers=headers)
        client.embed("fake/e", ["a"], headers={"x-tenant": "two"})
    assert [each.get("x-tenant") for each in recorder.headers] == [None, "one", "two"]


async def test_calls_in_flight_are_shared_by_the_headers_that_may_change_them(
    sent: tuple[FakeProvider, Recorder],
) -> None:
    """As the cache does it."""
    fake, recorder = sent
    async with llmopt.AsyncClient(fake.config, transport=recorder) as client:
        given: list[dict[str, str]] = [{}, {"traceparent": "00-1"}, TENANT, TENANT, {"x-tenant": "two"}]
        await asyncio.gather(*(client.embed("fake/e", ["a"], headers=each) for each in given))
    assert sorted(each.get("x-tenant", "") for each in recorder.headers) == ["", "one", "two"]


def test_a_list_with_headers_is_not_cached(sent: tuple[FakeProvider, Recorder]) -> None:
    """Neither read nor stored: what a tenant may use is nobody else's list."""
    fake, recorder = sent
    with llmopt.Client(fake.config, transport=recorder, cache="memory") as client:
        for headers in (TENANT, None, TENANT, None):
            client.list_models("fake", headers=headers)
        with pytest.raises(llmopt.InvalidInput, match="offline"):
            client.list_models("fake", headers=TENANT, cached="offline")
    assert [each.get("x-tenant") for each in recorder.headers] == ["one", None, "one"]


def test_values_are_shown_nowhere(
    sent: tuple[FakeProvider, Recorder], caplog: pytest.LogCaptureFixture
) -> None:
    """Not in the log, nor in an error that repeats a key, nor in events."""
    fake, recorder = sent
    caplog.set_level(logging.DEBUG)
    fake.fail_next(llmopt.BadRequest, message="the key canary-value is not known")
    found: list[object] = []
    with llmopt.Client(fake.config, transport=recorder, on_event=found.append) as client:
        with pytest.raises(llmopt.BadRequest) as caught:
            client.chat("fake/c", MESSAGES, headers={"x-api-key": "canary-value"})
        client.embed("fake/e", ["a"], headers={"x-api-key": "canary-value"})
    shown = f"{caught.value!r} {caught.value} {found!r} {caplog.text}"
    assert "canary" not in shown
    assert recorder.headers[-1]["x-api-key"] == "canary-value"
