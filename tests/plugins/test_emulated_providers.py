"""The plugins work through the client, over real sockets, with emulators of the providers."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import llmopt
from llmopt.values.http import EXCEPTION_OF, VerdictKind
from tests.plugins.errors import PLUGINS, Entry, entries
from tests.support.emulators import (
    AnthropicEmulator,
    AzureEmulator,
    Emulator,
    GoogleEmulator,
    MistralEmulator,
    OllamaEmulator,
    OllamaModel,
    OpenAIEmulator,
    TEIEmulator,
    vector_for,
)
from tests.support.scale import NIGHTLY

TEXTS = [f"text number {number}" for number in range(70)]
KEY = "test-key"
CALM = {"retry": False, "breaker": False, "limiter": False}


@asynccontextmanager
async def client(plugin: str, base_url: str, **more: Any) -> AsyncIterator[llmopt.AsyncClient]:
    """A client with one entry, `p`, that tries each request once."""
    entry = {"plugin": plugin, "base_url": base_url, **more}
    async with llmopt.AsyncClient({"providers": {"p": entry}}, flags=CALM) as made:
        yield made


def assert_vectors(result: llmopt.Embeddings, texts: list[str], dimensions: int) -> None:
    """Row i is the vector of text i."""
    expected = np.array([vector_for(text, dimensions) for text in texts])
    np.testing.assert_allclose(result.vectors, expected, atol=1e-6)


# OpenAI.


async def test_openai() -> None:
    """Vectors in base64, models with known data, and headers."""
    async with OpenAIEmulator() as server:
        more = {"api_key": KEY, "organization": "org-1", "project": "proj_1"}
        async with client("openai", server.base_url, **more) as made:
            result = await made.embed("p/text-embedding-3-small", TEXTS, dimensions=64, input_type="query")
            models = {model.id: model for model in await made.list_models("p")}
        assert_vectors(result, TEXTS, 64)
        assert result.usage.requests == 1
        first = server.requests[0]
        assert first.json["encoding_format"] == "base64"
        assert first.headers["OpenAI-Organization"] == "org-1"
        assert first.headers["OpenAI-Project"] == "proj_1"
    small, ada = models["text-embedding-3-small"], models["text-embedding-ada-002"]
    assert (small.kind, small.dimensions, small.context_length) == ("embedding", 1_536, 8_192)
    assert ada.shutdown == "2026-10-23"
    assert set(ada.known) == {"kind", "dimensions", "context_length", "prices"}
    assert models["gpt-4o-mini"].kind == "chat"


@pytest.mark.parametrize(
    ("options", "texts", "error"),
    [
        ({"key": "another"}, ["a"], llmopt.AuthError),
        ({"max_item_tokens": 4}, ["a text of more than four tokens"], llmopt.ItemTooLong),
        ({"embedding_models": {}}, ["a"], llmopt.NotFound),
        ({}, ["[blocked]"], llmopt.ContentFiltered),
        ({"rpm": 1}, ["a"], llmopt.RateLimited),
    ],
)
async def test_an_error_of_openai_has_its_exception(
    options: dict[str, Any], texts: list[str], error: type[Exception]
) -> None:
    async with OpenAIEmulator(**options) as server, client("openai", server.base_url, api_key=KEY) as made:
        if "rpm" in options:
            await made.embed("p/text-embedding-3-small", ["the one that passes"])
        with pytest.raises(error):
            await made.embed("p/text-embedding-3-small", texts)


@pytest.mark.parametrize("options", [{"max_items": 16}, {"max_request_tokens": 60}, {"tpm": 100}])
async def test_a_batch_above_the_limits_of_openai_is_split(options: dict[str, Any]) -> None:
    """Also one with more tokens than a minute allows."""
    async with OpenAIEmulator(**options) as server, client("openai", server.base_url, api_key=KEY) as made:
        texts = TEXTS if "tpm" not in options else TEXTS[:30]
        result = await made.embed("p/text-embedding-3-small", texts, errors="return")
        if "tpm" in options:
            # The first half spends the tokens of the minute; the second is not retried here.
            assert {type(error) for error in result.errors.values()} <= {llmopt.RateLimited}
            assert len(result.errors) < len(texts)
        else:
            assert_vectors(result, texts, 1_536)


# Azure.


@pytest.fixture
async def azure() -> AsyncIterator[AzureEmulator]:
    async with AzureEmulator(accept_tokens=["token-1", "token-2", "token-3"]) as server:
        yield server


SURFACES = [{}, {"api_version": "2024-10-21"}, {"surface": "classic"}, {"api_version": "preview"}]


@pytest.mark.parametrize("surface", SURFACES, ids=str)
@pytest.mark.parametrize("end", ["", "/", "/openai", "/openai/", "/openai/v1", "/openai/v1/"])
async def test_azure_by_key(azure: AzureEmulator, surface: dict[str, str], end: str) -> None:
    """On both surfaces, with each form of base_url."""
    async with client("azure", azure.base_url + end, api_key=KEY, **surface) as made:
        assert_vectors(await made.embed("p/embed-small", TEXTS[:3], dimensions=32), TEXTS[:3], 32)
        assert "text-embedding-3-small" in [model.id for model in await made.list_models("p")]
    assert all(request.headers["api-key"] == KEY for request in azure.requests)
    assert not any("authorization" in request.headers for request in azure.requests)


@pytest.mark.parametrize("surface", SURFACES, ids=str)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_azure_by_token_provider(
    azure: AzureEmulator, surface: dict[str, str], asynchronous: bool
) -> None:
    """The provider is called for every attempt, because a token may change between two."""
    tokens: list[str] = []

    def sync() -> str:
        tokens.append(f"token-{len(tokens) + 1}")
        return tokens[-1]

    async def later() -> str:
        return sync()

    provider = later if asynchronous else sync
    async with client("azure", azure.base_url, api_key=provider, **surface) as made:
        assert_vectors(await made.embed("p/embed-small", TEXTS[:2], dimensions=8), TEXTS[:2], 8)
        await made.list_models("p")
    assert [request.bearer for request in azure.requests] == tokens == ["token-1", "token-2"]
    assert not any("api-key" in request.headers for request in azure.requests)


async def test_azure_with_the_deployment_in_the_address(azure: AzureEmulator) -> None:
    """The base_url as the portal shows it, without its query."""
    base = f"{azure.base_url}/openai/deployments/embed-small/embeddings"
    async with client("azure", base, api_key=KEY) as made:
        assert_vectors(await made.embed("p/whatever", TEXTS[:2], dimensions=8), TEXTS[:2], 8)


async def test_the_models_of_azure_are_its_deployments(azure: AzureEmulator) -> None:
    """From the configuration, or from the server with catalog = "deployments"."""
    table = {"deployments": {"embed-small": "text-embedding-3-small", "chat-mini": "gpt-4o-mini"}}
    for more in (table, {"catalog": "deployments"}):
        async with client("azure", azure.base_url, api_key=KEY, **more) as made:
            embed, chat = await made.list_models("p")
        assert (embed.id, embed.kind, embed.dimensions) == ("embed-small", "embedding", 1_536)
        assert (chat.id, chat.name) == ("chat-mini", "gpt-4o-mini")


@pytest.mark.parametrize("surface", SURFACES[:2], ids=str)
@pytest.mark.parametrize(
    ("options", "more", "model", "text", "error", "hint"),
    [
        ({"key": "other"}, {}, "embed-small", "a", llmopt.AuthError, "token_scope"),
        ({}, {"api_key": lambda: "stale"}, "embed-small", "a", llmopt.AuthError, "cognitiveservices"),
        ({}, {}, "nothing", "a", llmopt.NotFound, "name of a deployment"),
        ({}, {}, "chat-mini", "a", llmopt.BadRequest, "another one"),
        ({}, {}, "embed-small", "[blocked]", llmopt.ContentFiltered, ""),
        ({"max_item_tokens": 3}, {}, "embed-small", "more than three tokens", llmopt.ItemTooLong, ""),
    ],
)
async def test_an_error_of_azure_has_its_exception(
    surface: dict[str, str],
    options: dict[str, Any],
    more: dict[str, Any],
    model: str,
    text: str,
    error: type[llmopt.LLMOptError],
    hint: str,
) -> None:
    """With a hint in the message."""
    entry = {"api_key": KEY, **surface, **more}
    async with AzureEmulator(**options) as server, client("azure", server.base_url, **entry) as made:
        with pytest.raises(error) as caught:
            await made.embed(f"p/{model}", [text])
    assert hint in caught.value.message
    assert KEY not in caught.value.message


async def test_an_unknown_api_version_of_azure() -> None:
    """The 404 is not taken for a missing deployment."""
    entry = {"api_key": KEY, "api_version": "2019-01-01"}
    async with (
        AzureEmulator(api_versions=["2024-10-21"]) as server,
        client("azure", server.base_url, **entry) as made,
    ):
        with pytest.raises(llmopt.NotFound, match=r"check providers.p.base_url"):
            await made.embed("p/embed-small", ["a"])


async def test_a_rate_limit_of_azure_has_retry_after() -> None:
    """From the header and from the message."""
    async with AzureEmulator(rpm=1) as server, client("azure", server.base_url, api_key=KEY) as made:
        await made.embed("p/embed-small", ["a"])
        with pytest.raises(llmopt.RateLimited) as caught:
            await made.embed("p/embed-small", ["b"])
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 60


class _Identity(ModuleType):
    """A fake of azure-identity: a token for each call, for one scope."""

    def __init__(self) -> None:
        super().__init__("azure.identity")
        self.__spec__ = ModuleSpec("azure.identity", None)
        self.scopes: list[str] = []

    def DefaultAzureCredential(self) -> object:  # noqa: N802
        return self

    def get_bearer_token_provider(self, _: object, scope: str) -> Any:
        def give() -> str:
            self.scopes.append(scope)
            return f"token-{len(self.scopes)}"

        return give


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> _Identity:
    fake = _Identity()
    monkeypatch.setitem(sys.modules, "azure", ModuleType("azure"))
    monkeypatch.setitem(sys.modules, "azure.identity", fake)
    return fake


async def test_entra_needs_only_the_configuration_file(
    azure: AzureEmulator, identity: _Identity, tmp_path: Path
) -> None:
    """`auth = "entra"` is enough; a key in the environment is not sent."""
    file = tmp_path / "llmopt.toml"
    file.write_text(f'[providers.azure]\nbase_url = "{azure.base_url}"\nauth = "entra"\n')
    async with llmopt.AsyncClient(file, flags=CALM) as made:
        assert_vectors(await made.embed("azure/embed-small", TEXTS[:2], dimensions=8), TEXTS[:2], 8)
        await made.list_models("azure")
    assert [request.bearer for request in azure.requests] == ["token-1", "token-2"]
    assert identity.scopes == ["https://cognitiveservices.azure.com/.default"] * 2


async def test_entra_without_its_extra_is_an_error_that_names_it(
    azure: AzureEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any request."""
    monkeypatch.setattr("llmopt_plugin_azure._entra.find_spec", lambda _: None)
    async with client("azure", azure.base_url, auth="entra") as made:
        with pytest.raises(llmopt.ConfigError, match=r'pip install "llmopt-plugin-azure\[entra\]"'):
            await made.embed("p/embed-small", ["a"])
    assert azure.requests == []


# Mistral.


async def test_mistral() -> None:
    """Dimensions, one model for its aliases, batches within the plugin's limits."""
    async with MistralEmulator() as server, client("mistral", server.base_url, api_key=KEY) as made:
        texts = [f"text number {number}" for number in range(300)]
        assert_vectors(
            await made.embed("p/mistral-embed", texts, dimensions=64, input_type="query"), texts, 64
        )
        assert [len(request.json["input"]) for request in server.requests] == [128, 128, 44]
        models = {model.id: model for model in await made.list_models("p")}
    assert set(models) == {"mistral-embed-2312", "mistral-small-2506", "mistral-small-2409"}
    embed = models["mistral-embed-2312"]
    assert (embed.kind, embed.aliases, embed.dimensions) == ("embedding", ("mistral-embed",), 1_024)
    assert models["mistral-small-2409"].deprecated == "2026-12-31T12:00:00Z"


@pytest.mark.parametrize("older", [False, True])
async def test_a_batch_above_the_limits_of_mistral_is_split(older: bool) -> None:
    """Whether the error states the limit or not."""
    options: dict[str, Any] = {"max_items": 20, "max_request_tokens": 100, "older_errors": older}
    async with (
        MistralEmulator(**options) as server,
        client("mistral", server.base_url, api_key=KEY) as made,
    ):
        assert_vectors(await made.embed("p/mistral-embed", TEXTS), TEXTS, 1_024)


@pytest.mark.parametrize(
    ("options", "more", "error"),
    [
        ({"key": "other"}, {}, llmopt.AuthError),
        ({"models": ()}, {}, llmopt.NotFound),
        ({"models": (), "unknown_model_status": 400}, {}, llmopt.NotFound),
        ({}, {"extra": {"dimensions": 8}}, llmopt.BadRequest),
        ({"rpm": 1}, {}, llmopt.RateLimited),
        ({"rpm": 1, "older_errors": True}, {}, llmopt.RateLimited),
    ],
)
async def test_an_error_of_mistral_has_its_exception(
    options: dict[str, Any], more: dict[str, Any], error: type[Exception]
) -> None:
    """Flat bodies, lists of validation errors, and plain text."""
    async with (
        MistralEmulator(**options) as server,
        client("mistral", server.base_url, api_key=KEY) as made,
    ):
        if "rpm" in options:
            await made.embed("p/mistral-embed", ["the one that passes"])
        with pytest.raises(error):
            await made.embed("p/mistral-embed", ["a"], **more)


# TEI and Ollama.


@pytest.mark.parametrize("end", ["", "/v1"])
async def test_the_plugin_requests_the_limits_of_tei_once(end: str) -> None:
    """After that every batch fits."""
    async with TEIEmulator(max_client_batch_size=8) as server:
        async with client("local", server.base_url + end, flavour="tei") as made:
            for _ in range(2):
                assert_vectors(await made.embed("p/bge", TEXTS, dimensions=64), TEXTS, 64)
            (model,) = await made.list_models("p")
        paths = [request.path for request in server.requests]
        assert paths[0] == "/info"
        assert paths.count("/info") == 2  # the limits, and the list
        sizes = [len(request.json["inputs"]) for request in server.requests if request.path == "/embed"]
        assert max(sizes) == 8
    assert (model.id, model.kind, model.context_length) == ("BAAI/bge-small-en-v1.5", "embedding", 512)


async def test_the_smaller_of_the_configured_and_the_servers_batch_size_holds() -> None:
    for configured, expected in ((4, 4), (100, 8)):
        async with TEIEmulator(max_client_batch_size=8) as server:
            more = {"flavour": "tei", "max_batch_size": configured}
            async with client("local", server.base_url, **more) as made:
                await made.embed("p/bge", TEXTS[:20])
            sizes = [len(request.json["inputs"]) for request in server.requests if request.path == "/embed"]
            assert max(sizes) == expected


async def test_concurrent_calls_request_the_limits_once() -> None:
    """The first call sends the request, the others wait for its response."""
    import asyncio

    async with TEIEmulator(latency=0.01) as server, client("local", server.base_url, flavour="tei") as made:
        await asyncio.gather(*(made.embed("p/bge", [text]) for text in TEXTS[:10]))
        assert [request.path for request in server.requests].count("/info") == 1


async def test_embed_iter_requests_the_limits_before_its_first_batch() -> None:
    async with TEIEmulator(max_client_batch_size=8) as server:
        async with (
            client("local", server.base_url, flavour="tei") as made,
            made.embed_iter("p/bge", TEXTS) as parts,
        ):
            sizes = [len(part) async for part in parts]
        assert (sum(sizes), max(sizes)) == (len(TEXTS), 8)


@pytest.mark.parametrize(
    ("status", "body", "times"), [(404, b"", 1), (503, b"", 2), (200, b"<html>", 1), (200, b'{"x": 1}', 1)]
)
async def test_a_failed_request_for_limits_fails_no_call(status: int, body: bytes, times: int) -> None:
    """The plugin's own limit holds; after a transient error the next call requests the limits again."""
    async with TEIEmulator() as server, client("local", server.base_url, flavour="tei") as made:
        for text in TEXTS[:3]:
            server.fail_next(status, body)
            if status == 503 or text == TEXTS[0]:
                assert_vectors(await made.embed("p/bge", [text]), [text], 384)
        questions = [request.path for request in server.requests].count("/info")
        assert questions == (3 if status == 503 else times)


async def test_without_a_flavour_no_limits_are_requested() -> None:
    async with TEIEmulator() as server, client("local", f"{server.base_url}/v1") as made:
        assert_vectors(await made.embed("p/bge", TEXTS[:20]), TEXTS[:20], 384)
        assert [request.path for request in server.requests] == ["/v1/embeddings"]


@pytest.mark.parametrize("flavour", ["tei", None])
async def test_an_error_of_tei_has_its_exception(flavour: str | None) -> None:
    """On the native route and on the common one."""
    more = {} if flavour is None else {"flavour": flavour}
    async with TEIEmulator(auto_truncate=False, max_client_batch_size=4) as server:
        base = server.base_url if flavour else f"{server.base_url}/v1"
        async with client("local", base, **more) as made:
            assert_vectors(await made.embed("p/bge", TEXTS), TEXTS, 384)
            result = await made.embed("p/bge", ["short", "long " * 600, "short too"], errors="return")
            assert {index: type(error) for index, error in result.errors.items()} == {1: llmopt.ItemTooLong}
            server.backend_fails = True
            with pytest.raises(llmopt.ServerError):
                await made.embed("p/bge", ["a"])
            server.backend_fails, server.healthy = False, False
            with pytest.raises(llmopt.ServerError) as caught:
                await made.embed("p/bge", ["b"])
            assert caught.value.retry_after == 5.0
            server.healthy, server.max_concurrent_requests = True, 0
            with pytest.raises(llmopt.Overloaded):
                await made.embed("p/bge", ["c"])
            server.max_concurrent_requests = 512
            server.payload_limit = 10
            with pytest.raises(llmopt.ProviderError):
                await made.embed("p/bge", ["d"])


async def test_the_key_of_tei() -> None:
    """Its 401 has no body."""
    async with TEIEmulator(key="secret-1") as server:
        async with client("local", server.base_url, flavour="tei", api_key="secret-1") as made:
            assert_vectors(await made.embed("p/bge", ["a"]), ["a"], 384)
        async with client("local", server.base_url, flavour="tei", api_key="wrong-1") as made:
            with pytest.raises(llmopt.AuthError):
                await made.embed("p/bge", ["a"])


@pytest.mark.parametrize("end", ["", "/v1", "/api"])
async def test_ollama(end: str) -> None:
    """Vectors, usage, and the models with the data that Ollama has of them."""
    async with (
        OllamaEmulator() as server,
        client("local", server.base_url + end, flavour="ollama") as made,
    ):
        result = await made.embed("p/nomic-embed-text", TEXTS, dimensions=64)
        assert_vectors(result, TEXTS, 64)
        assert result.usage.prompt_tokens > 0
        nomic, qwen = await made.list_models("p")
    assert (nomic.id, nomic.kind, nomic.dimensions) == ("nomic-embed-text:latest", "embedding", 768)
    assert nomic.aliases == ("nomic-embed-text",)
    assert (qwen.kind, qwen.context_length) == ("chat", 40_960)


@pytest.mark.parametrize("flavour", ["ollama", None])
async def test_an_error_of_ollama_has_its_exception(flavour: str | None) -> None:
    """On the native route and on the common one, which truncates a long text silently."""
    models = [OllamaModel(name="e:latest", family="bert", dimensions=8, context=4)]
    models += [OllamaModel(name="chat:latest", family="qwen3")]
    more = {} if flavour is None else {"flavour": flavour}
    async with OllamaEmulator(models=models) as server:
        base = server.base_url if flavour else f"{server.base_url}/v1"
        async with client("local", base, **more) as made:
            result = await made.embed("p/e", ["short", "far too long a text for this", "x"], errors="return")
            errors = {index: type(error) for index, error in result.errors.items()}
            assert errors == ({1: llmopt.ItemTooLong} if flavour else {})
            with pytest.raises(llmopt.NotFound):
                await made.embed("p/nothing", ["a"])
            with pytest.raises(llmopt.BadRequest):
                await made.embed("p/chat", ["a"])
            server.max_queue = -1
            with pytest.raises(llmopt.Overloaded):
                await made.embed("p/e", ["b"])


async def test_ollama_truncates_a_text_if_configured() -> None:
    models = [OllamaModel(name="e:latest", family="bert", dimensions=8, context=4)]
    async with (
        OllamaEmulator(models=models) as server,
        client("local", server.base_url, flavour="ollama", truncate=True) as made,
    ):
        result = await made.embed("p/e", ["far too long a text for this"])
    assert result.errors == {}


async def test_the_error_of_a_wrong_path_has_a_hint() -> None:
    """For Ollama without /v1 and without its flavour."""
    async with OllamaEmulator() as server, client("local", server.base_url) as made:
        with pytest.raises(llmopt.NotFound, match="most servers want /v1 at its end"):
            await made.embed("p/nomic-embed-text", ["a"])


# Every error of the corpora.

SERVERS: dict[str, type[Emulator]] = {
    "openai": OpenAIEmulator,
    "mistral": MistralEmulator,
    "azure": AzureEmulator,
    "local": TEIEmulator,
    "compatible": OpenAIEmulator,
    "anthropic": AnthropicEmulator,
    "google": GoogleEmulator,
}
CHATS = ("anthropic", "google")
"""Plugins that read chats in a format of their own."""


def quick_entries(plugin: str) -> list[Entry]:
    """The errors of a plugin; by day one of each operation, status and kind.

    test_error_corpus.py checks the verdict of each entry in every run.
    """
    every = list(entries(plugin))
    if NIGHTLY:
        return every
    key = itemgetter("status", "kind")
    return list({(entry.row.get("operation"), *key(entry.row)): entry for entry in every}.values())


@pytest.mark.parametrize("plugin", PLUGINS)
async def test_every_error_of_the_corpus_reaches_the_caller(plugin: str) -> None:
    """As the exception of its verdict."""
    async with SERVERS[plugin]() as server:
        for entry in quick_entries(plugin):
            if entry.row.get("operation") != "chat" or plugin in CHATS:
                server.fail_next(
                    entry.row["status"], entry.row["body"].encode(), entry.row.get("headers"), times=3
                )
                # A client for each entry: after a wrong key or a spent quota a client sends nothing more.
                async with client(plugin, server.base_url, api_key=KEY) as made:
                    await reaches(made, entry)
                server._script.clear()


async def reaches(made: llmopt.AsyncClient, entry: Entry) -> None:
    expected = EXCEPTION_OF[VerdictKind(entry.row["kind"])]
    with pytest.raises(llmopt.LLMOptError) as caught:
        if entry.row.get("operation") == "catalog":
            await made.list_models("p")
        elif entry.row.get("operation") == "chat":
            await made.chat("p/m", [{"role": "user", "content": "text"}])
        else:
            await made.embed("p/m", ["text"])
    assert isinstance(caught.value, expected), entry.name
    assert caught.value.provider == "p", entry.name
