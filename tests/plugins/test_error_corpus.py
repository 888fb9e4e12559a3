"""Every known error is classified as its plugin's corpus says, through the hooks as the core calls them."""

from __future__ import annotations

import importlib
from functools import cache

import pytest

from llmopt import EmbedCall, Failure, LLMOptError, Settings
from llmopt.compatible import classify
from llmopt.engine.responses import error_from_verdict
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.http import EXCEPTION_OF, VerdictKind
from tests.plugins.errors import KEYS, PLUGINS, REQUIRED, Entry, entries
from tests.support.scale import scaled

ALL = [entry for plugin in PLUGINS for entry in entries(plugin)]
BASES = {
    "openai": "https://api.openai.com/v1",
    "mistral": "https://api.mistral.ai/v1",
    "azure": "https://r.openai.azure.com",
    "local": "http://127.0.0.1:8000/v1",
    "compatible": "https://openrouter.ai/api/v1",
    "anthropic": "https://api.anthropic.com/v1",
    "google": "https://generativelanguage.googleapis.com/v1beta",
}


@cache
def hooks(plugin: str) -> ProviderHooks:
    return ProviderHooks(plugin, importlib.import_module(f"llmopt_plugin_{plugin}"))


def settings(entry: Entry, **options: str) -> Settings:
    return Settings(provider=entry.plugin, base_url=BASES[entry.plugin], options=options)


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_every_error_gets_its_verdict(entry: Entry) -> None:
    """Kind, retry_after, limit and item."""
    entry.check(hooks(entry.plugin).classify_error(entry.failure, settings(entry)))


@pytest.mark.parametrize("flavour", ["tei", "ollama", "vllm", "llamacpp", "infinity", "lmstudio"])
def test_the_flavour_does_not_change_a_verdict(flavour: str) -> None:
    """The plugin recognises a server's errors by their shape."""
    for entry in entries("local"):
        entry.check(hooks("local").classify_error(entry.failure, settings(entry, flavour=flavour)))


@pytest.mark.parametrize("entry", ALL, ids=str)
def test_every_verdict_becomes_its_exception(entry: Entry) -> None:
    """The message is one line with the status, and has no input text even where the body repeats it."""
    texts = ("zebra crossing", "zither music", "a zeppelin over the lake")
    verdict = hooks(entry.plugin).classify_error(entry.failure, settings(entry))
    error = error_from_verdict(verdict, entry.failure, EmbedCall(model="m", texts=texts), settings(entry))
    assert isinstance(error, LLMOptError)
    assert type(error) is EXCEPTION_OF[verdict.kind]
    assert "\n" not in error.message
    assert f"HTTP {entry.row['status']}" in error.message
    assert not any(text in error.message for text in texts)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_row_is_of_the_documented_format(plugin: str) -> None:
    """Names are unique, keys are known, and each row names its source."""
    rows = [entry.row for entry in entries(plugin)]
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names))
    for row in rows:
        assert row.keys() >= REQUIRED, row["name"]
        assert row.keys() <= KEYS, row["name"]
        assert row["source"], row["name"]
        assert "sk-" not in row["body"], row["name"]


def test_every_kind_is_in_the_corpus() -> None:
    """Except UNEXPECTED, which only the core uses."""
    seen = {entry.row["kind"] for entry in ALL}
    assert seen == {kind.value for kind in EXCEPTION_OF} - {"unexpected"}


def test_every_5xx_may_pass_but_two_about_the_request() -> None:
    """Whichever number a proxy makes up."""
    kinds = {status: classify(Failure(status=status)).kind for status in range(500, 600)}
    final = [status for status, kind in kinds.items() if kind is VerdictKind.BAD_REQUEST]
    assert final == [501, 505]
    assert set(kinds.values()) <= {
        VerdictKind.BAD_REQUEST, VerdictKind.TRANSIENT, VerdictKind.OVERLOADED, VerdictKind.TIMEOUT,
    }  # fmt: skip


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("status", [*range(400, 432), 451, 498, 499, *range(500, 512), *range(520, 531), 599])
def test_any_status_with_any_body_gets_a_verdict(plugin: str, status: int) -> None:
    """No response makes classify_error raise. Before a change each status meets an eighth of the known bodies."""
    bodies = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[[]]",
        b'{"error": null}',
        b'{"detail": [7]}',
        b'{"detail": [{"loc": 1}]}',
    ]
    bodies += [
        b"\xff\xfe",
        b'{"error": {"code": {}, "message": 7, "innererror": "x"}}',
        b'{"message": "Limit 0"}',
    ]
    every = scaled(8, nightly=1)
    known = [entry.failure.body for entry in entries(plugin)[status % every :: every]]
    endpoint = Settings(provider=plugin, base_url=BASES[plugin])
    for body in (*bodies, *known, *(body[: len(body) // 2] for body in known)):
        hooks(plugin).classify_error(Failure(status=status, body=body), endpoint)
