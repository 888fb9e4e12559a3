"""`FakeProvider`, for the tests of an application."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import llmopt
from llmopt.testing import FakeProvider


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with FakeProvider() as result:
        yield result


@pytest.fixture
def client(fake: FakeProvider) -> Iterator[llmopt.Client]:
    with llmopt.Client(fake.config, transport=fake.transport) as result:
        yield result


def test_a_vector_depends_on_its_text_only(fake: FakeProvider, client: llmopt.Client) -> None:
    """The test can compute it."""
    first = client.embed("fake/any", ["one", "two", "one"]).vectors
    second = client.embed("fake/other", ["two"]).vectors
    assert first.shape == (3, 8)
    assert np.array_equal(first[1], second[0])
    assert np.array_equal(first, np.array([fake.vector(text) for text in ("one", "two", "one")], np.float32))
    assert np.allclose(np.linalg.norm(first, axis=1), 1)
    assert not np.array_equal(first[0], first[1])


def test_it_records_its_requests(fake: FakeProvider, client: llmopt.Client) -> None:
    """Texts, model and options of each."""
    client.embed("fake/small", ["one", "two"], dimensions=3, input_type="query", extra={"user": "u"})
    assert fake.texts == ["one", "two"]
    assert [(call.operation, call.model) for call in fake.calls] == [("embeddings", "small")]
    assert fake.calls[0].body["input_type"] == "query"
    assert fake.calls[0].body["user"] == "u"
    assert "one" not in repr(fake.calls)


async def test_the_asynchronous_client_works_too(fake: FakeProvider) -> None:
    """With the same configuration and transport."""
    async with llmopt.AsyncClient(fake.config, transport=fake.transport) as client:
        result = await client.embed("fake/any", ["one"], dimensions=5)
        assert result.vectors.shape == (1, 5)
        assert [model.id for model in await client.list_models("fake")] == ["fake-embed", "fake-chat"]


def test_a_large_input_is_split_into_batches(fake: FakeProvider, client: llmopt.Client) -> None:
    """Of 32 texts, or as the test configures."""
    texts = [f"text {number}" for number in range(100)]
    assert client.embed("fake/any", texts).vectors.shape == (100, 8)
    assert max(len(call.texts) for call in fake.calls) <= 32
    with (
        FakeProvider(max_batch_size=7) as other,
        llmopt.Client(other.config, transport=other.transport) as small,
    ):
        small.embed("fake/any", texts[:10])
        assert sorted(len(call.texts) for call in other.calls) == [3, 7]


@pytest.mark.parametrize(
    "error",
    [
        llmopt.AttemptTimeout, llmopt.AuthError, llmopt.BadRequest, llmopt.ConnectFailed, llmopt.ConnectionLost,
        llmopt.ContentFiltered, llmopt.InvalidResponse, llmopt.ItemRejected, llmopt.ItemTooLong, llmopt.NotFound,
        llmopt.Overloaded, llmopt.PermissionDenied, llmopt.QuotaExhausted, llmopt.RateLimited, llmopt.RequestTimeout,
        llmopt.RequestTooLarge, llmopt.ServerError, llmopt.UnexpectedStatus,
    ],
)  # fmt: skip
def test_every_error_of_a_provider_can_be_scripted(error: type[llmopt.LLMOptError]) -> None:
    """The caller gets that exception."""
    with FakeProvider(max_retries=0) as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
        fake.fail_next(error, times=9)
        with pytest.raises(llmopt.LLMOptError) as caught:
            client.embed("fake/any", ["one"])
    assert type(caught.value) is error


def test_errors_that_no_provider_causes_cannot_be_scripted(fake: FakeProvider) -> None:
    """The message lists the possible ones."""
    with pytest.raises(
        ValueError,
        match=r"no response of a provider leads to ConfigError; choose one of AttemptTimeout.*ServerError",
    ):
        fake.fail_next(llmopt.ConfigError)


def test_a_transient_error_is_retried(fake: FakeProvider, client: llmopt.Client) -> None:
    """Without waiting; each attempt uses one scripted error."""
    fake.fail_next(llmopt.ServerError, times=2)
    assert client.embed("fake/any", ["one"]).vectors.shape == (1, 8)
    assert len(fake.calls) == 3


def test_one_text_can_be_refused(fake: FakeProvider, client: llmopt.Client) -> None:
    """The other texts get their vectors."""
    fake.refuse("bad", error=llmopt.ItemRejected)
    result = client.embed("fake/any", ["good", "bad", "fine"], errors="return")
    assert list(result.errors) == [1]
    assert isinstance(result.errors[1], llmopt.ItemRejected)
    assert np.isnan(result.vectors[1]).all()
    assert np.array_equal(result.vectors[2], np.array(fake.vector("fine"), np.float32))


def test_reset_removes_calls_and_scripted_errors(fake: FakeProvider, client: llmopt.Client) -> None:
    fake.fail_next(llmopt.AuthError)
    fake.refuse("one", error=llmopt.ItemRejected)
    fake.reset()
    client.embed("fake/any", ["one"])
    assert len(fake.calls) == 1


def test_it_can_replace_another_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's model names work; its files and environment are not read."""
    (tmp_path / "llmopt.toml").write_text('[providers.mistral]\nbase_url = "https://elsewhere.example"\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MISTRAL_API_KEY", "canary")
    with FakeProvider("mistral") as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
        assert client.embed("mistral/mistral-embed", ["one"]).model == "mistral-embed"
    assert "canary" not in repr(fake)


def test_the_replacement_ends_with_the_block() -> None:
    """A later client does not see the fake, and installed plugins work again."""
    from llmopt.providers.discovery import discover_plugins

    before = set(discover_plugins())
    with FakeProvider("fake-one"), FakeProvider("fake-two"):
        assert set(discover_plugins()) == {*before, "fake-fake-one", "fake-fake-two"}
    assert set(discover_plugins()) == before
    assert not [name for name in os.environ if "FAKE" in name]
