"""The plugins through the client, over real sockets, against servers that answer as the providers do."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import llmopt
from llmopt.values.http import EXCEPTION_OF, VerdictKind
from tests.plugins.errors import PLUGINS, Entry, entries
from tests.support.emulators import (
    AzureEmulator,
    Emulator,
    MistralEmulator,
    OllamaEmulator,
    OllamaModel,
    OpenAIEmulator,
    TEIEmulator,
    vector_for,
)

TEXTS = [f"text number {number}" for number in range(70)]
KEY = "test-key"
CALM = {"retry": False, "breaker": False, "limiter": False}


@asynccontextmanager
async def client(plugin: str, base_url: str, **more: Any) -> AsyncIterator[llmopt.AsyncClient]:
    """A client with one entry, `p`, that tries each request once."""
    entry = {"plugin": plugin, "base_url": base_url, **more}
    async with llmopt.AsyncClient({"providers": {"p": entry}}, flags=CALM) as made:
        yield made


def same(found: llmopt.Embeddings, texts: list[str], dimensions: int) -> None:
    """Row i is the vector of text i."""
    expected = np.array([vector_for(text, dimensions) for text in texts])
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)


# OpenAI.


async def test_openai() -> None:
    """Vectors in base64, the list filled up, headers."""
    async with OpenAIEmulator() as server:
        more = {"api_key": KEY, "organization": "org-1", "project": "proj_1"}
        async with client("openai", server.base_url, **more) as made:
            found = await made.embed("p/text-embedding-3-small", TEXTS, dimensions=64, input_type="query")
            models = {model.id: model for model in await made.list_models("p")}
        same(found, TEXTS, 64)
        assert found.usage.requests == 1
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
async def test_openais_errors(options: dict[str, Any], texts: list[str], error: type[Exception]) -> None:
    """Each is its own exception."""
    async with OpenAIEmulator(**options) as server, client("openai", server.base_url, api_key=KEY) as made:
        if "rpm" in options:
            await made.embed("p/text-embedding-3-small", ["the one that passes"])
        with pytest.raises(error):
            await made.embed("p/text-embedding-3-small", texts)


@pytest.mark.parametrize("options", [{"max_items": 16}, {"max_request_tokens": 60}, {"tpm": 100}])
async def test_openai_takes_less_than_its_plugin_says(options: dict[str, Any]) -> None:
    """What is too large is split, and every vector is had; a request above a minute's tokens too."""
    async with OpenAIEmulator(**options) as server, client("openai", server.base_url, api_key=KEY) as made:
        texts = TEXTS if "tpm" not in options else TEXTS[:30]
        found = await made.embed("p/text-embedding-3-small", texts, errors="return")
        if "tpm" in options:
            # The first half spends the minute; the other one has to wait, which nobody does here.
            assert {type(error) for error in found.errors.values()} <= {llmopt.RateLimited}
            assert len(found.errors) < len(texts)
        else:
            same(found, texts, 1_536)


# Azure.


@pytest.fixture
async def azure() -> AsyncIterator[AzureEmulator]:
    async with AzureEmulator(accept_tokens=["token-1", "token-2", "token-3"]) as server:
        yield server


SURFACES = [{}, {"api_version": "2024-10-21"}, {"surface": "classic"}, {"api_version": "preview"}]


@pytest.mark.parametrize("surface", SURFACES, ids=str)
@pytest.mark.parametrize("end", ["", "/", "/openai", "/openai/", "/openai/v1", "/openai/v1/"])
async def test_azure_by_key(azure: AzureEmulator, surface: dict[str, str], end: str) -> None:
    """Both surfaces, whatever was pasted as base_url."""
    async with client("azure", azure.base_url + end, api_key=KEY, **surface) as made:
        same(await made.embed("p/embed-small", TEXTS[:3], dimensions=32), TEXTS[:3], 32)
        assert "text-embedding-3-small" in [model.id for model in await made.list_models("p")]
    assert all(request.headers["api-key"] == KEY for request in azure.requests)
    assert not any("authorization" in request.headers for request in azure.requests)


@pytest.mark.parametrize("surface", SURFACES, ids=str)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_azure_by_token_provider(
    azure: AzureEmulator, surface: dict[str, str], asynchronous: bool
) -> None:
    """Called for every attempt, so that a token may change between two of them."""
    given: list[str] = []

    def sync() -> str:
        given.append(f"token-{len(given) + 1}")
        return given[-1]

    async def later() -> str:
        return sync()

    provider = later if asynchronous else sync
    async with client("azure", azure.base_url, api_key=provider, **surface) as made:
        same(await made.embed("p/embed-small", TEXTS[:2], dimensions=8), TEXTS[:2], 8)
        await made.list_models("p")
    assert [request.bearer for request in azure.requests] == given == ["token-1", "token-2"]
    assert not any("api-key" in request.headers for request in azure.requests)


async def test_azure_with_the_deployment_in_the_address(azure: AzureEmulator) -> None:
    """As the portal shows it, without its query."""
    base = f"{azure.base_url}/openai/deployments/embed-small/embeddings"
    async with client("azure", base, api_key=KEY) as made:
        same(await made.embed("p/whatever", TEXTS[:2], dimensions=8), TEXTS[:2], 8)


async def test_azures_deployments_are_its_list(azure: AzureEmulator) -> None:
    """Configured, or asked for on request."""
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
async def test_azures_errors(
    surface: dict[str, str],
    options: dict[str, Any],
    more: dict[str, Any],
    model: str,
    text: str,
    error: type[llmopt.LLMOptError],
    hint: str,
) -> None:
    """Each is its own exception, with what to do about it."""
    entry = {"api_key": KEY, **surface, **more}
    async with AzureEmulator(**options) as server, client("azure", server.base_url, **entry) as made:
        with pytest.raises(error) as caught:
            await made.embed(f"p/{model}", [text])
    assert hint in caught.value.message
    assert KEY not in caught.value.message


async def test_azures_unknown_version() -> None:
    """A 404 that is no missing deployment."""
    entry = {"api_key": KEY, "api_version": "2019-01-01"}
    async with (
        AzureEmulator(api_versions=["2024-10-21"]) as server,
        client("azure", server.base_url, **entry) as made,
    ):
        with pytest.raises(llmopt.NotFound, match=r"check providers.p.base_url"):
            await made.embed("p/embed-small", ["a"])


async def test_azures_rate_limit_tells_how_long() -> None:
    """From the header and from the text."""
    async with AzureEmulator(rpm=1) as server, client("azure", server.base_url, api_key=KEY) as made:
        await made.embed("p/embed-small", ["a"])
        with pytest.raises(llmopt.RateLimited) as caught:
            await made.embed("p/embed-small", ["b"])
    assert caught.value.retry_after is not None
    assert 0 < caught.value.retry_after <= 60


class _Identity(ModuleType):
    """azure-identity as far as it is used: a token for each call, for one scope."""

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


async def test_entra_from_the_file_alone(azure: AzureEmulator, identity: _Identity, tmp_path: Path) -> None:
    """`auth = "entra"` is all that it takes; a key in the environment is not sent."""
    file = tmp_path / "llmopt.toml"
    file.write_text(f'[providers.azure]\nbase_url = "{azure.base_url}"\nauth = "entra"\n')
    async with llmopt.AsyncClient(file, flags=CALM) as made:
        same(await made.embed("azure/embed-small", TEXTS[:2], dimensions=8), TEXTS[:2], 8)
        await made.list_models("azure")
    assert [request.bearer for request in azure.requests] == ["token-1", "token-2"]
    assert identity.scopes == ["https://cognitiveservices.azure.com/.default"] * 2


async def test_entra_without_its_extra_names_it(
    azure: AzureEmulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent."""
    monkeypatch.setattr("llmopt_plugin_azure._entra.find_spec", lambda _: None)
    async with client("azure", azure.base_url, auth="entra") as made:
        with pytest.raises(llmopt.ConfigError, match=r'pip install "llmopt-plugin-azure\[entra\]"'):
            await made.embed("p/embed-small", ["a"])
    assert azure.requests == []


# Mistral.


async def test_mistral() -> None:
    """Vectors of a wanted length, one model for its aliases, batches within the careful limits."""
    async with MistralEmulator() as server, client("mistral", server.base_url, api_key=KEY) as made:
        texts = [f"text number {number}" for number in range(300)]
        same(await made.embed("p/mistral-embed", texts, dimensions=64, input_type="query"), texts, 64)
        assert [len(request.json["input"]) for request in server.requests] == [128, 128, 44]
        models = {model.id: model for model in await made.list_models("p")}
    assert set(models) == {"mistral-embed-2312", "mistral-small-2506", "mistral-small-2409"}
    embed = models["mistral-embed-2312"]
    assert (embed.kind, embed.aliases, embed.dimensions) == ("embedding", ("mistral-embed",), 1_024)
    assert models["mistral-small-2409"].deprecated == "2026-12-31T12:00:00Z"


@pytest.mark.parametrize("older", [False, True])
async def test_mistral_takes_less_than_its_plugin_says(older: bool) -> None:
    """Too many texts and too many tokens are split, whether the limit is stated or not."""
    options: dict[str, Any] = {"max_items": 20, "max_request_tokens": 100, "older_errors": older}
    async with (
        MistralEmulator(**options) as server,
        client("mistral", server.base_url, api_key=KEY) as made,
    ):
        same(await made.embed("p/mistral-embed", TEXTS), TEXTS, 1_024)


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
async def test_mistrals_errors(options: dict[str, Any], more: dict[str, Any], error: type[Exception]) -> None:
    """Flat bodies, validation lists, bare texts."""
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
async def test_tei_is_asked_for_its_limits_once(end: str) -> None:
    """Then every batch fits."""
    async with TEIEmulator(max_client_batch_size=8) as server:
        async with client("local", server.base_url + end, flavour="tei") as made:
            for _ in range(2):
                same(await made.embed("p/bge", TEXTS, dimensions=64), TEXTS, 64)
            (model,) = await made.list_models("p")
        paths = [request.path for request in server.requests]
        assert paths[0] == "/info"
        assert paths.count("/info") == 2  # the limits, and the list
        sizes = [len(request.json["inputs"]) for request in server.requests if request.path == "/embed"]
        assert max(sizes) == 8
    assert (model.id, model.kind, model.context_length) == ("BAAI/bge-small-en-v1.5", "embedding", 512)


async def test_the_users_own_size_counts_beside_what_the_server_tells() -> None:
    """The least of them."""
    for configured, expected in ((4, 4), (100, 8)):
        async with TEIEmulator(max_client_batch_size=8) as server:
            more = {"flavour": "tei", "max_batch_size": configured}
            async with client("local", server.base_url, **more) as made:
                await made.embed("p/bge", TEXTS[:20])
            sizes = [len(request.json["inputs"]) for request in server.requests if request.path == "/embed"]
            assert max(sizes) == expected


async def test_many_calls_at_once_ask_once() -> None:
    """The first one asks, the others wait for its answer."""
    import asyncio

    async with TEIEmulator(latency=0.01) as server, client("local", server.base_url, flavour="tei") as made:
        await asyncio.gather(*(made.embed("p/bge", [text]) for text in TEXTS[:10]))
        assert [request.path for request in server.requests].count("/info") == 1


async def test_a_stream_asks_before_its_first_batch() -> None:
    """`embed_iter` likewise."""
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
async def test_a_question_that_fails_fails_no_call(status: int, body: bytes, times: int) -> None:
    """The plugin's own limit holds; what may pass is asked again at the next call."""
    async with TEIEmulator() as server, client("local", server.base_url, flavour="tei") as made:
        for text in TEXTS[:3]:
            server.fail_next(status, body)
            if status == 503 or text == TEXTS[0]:
                same(await made.embed("p/bge", [text]), [text], 384)
        asked = [request.path for request in server.requests].count("/info")
        assert asked == (3 if status == 503 else times)


async def test_without_a_flavour_nobody_is_asked() -> None:
    """The server sees what was asked for, and nothing else."""
    async with TEIEmulator() as server, client("local", f"{server.base_url}/v1") as made:
        same(await made.embed("p/bge", TEXTS[:20]), TEXTS[:20], 384)
        assert [request.path for request in server.requests] == ["/v1/embeddings"]


@pytest.mark.parametrize("flavour", ["tei", None])
async def test_teis_errors(flavour: str | None) -> None:
    """By its native route and by the common one."""
    more = {} if flavour is None else {"flavour": flavour}
    async with TEIEmulator(auto_truncate=False, max_client_batch_size=4) as server:
        base = server.base_url if flavour else f"{server.base_url}/v1"
        async with client("local", base, **more) as made:
            same(await made.embed("p/bge", TEXTS), TEXTS, 384)
            found = await made.embed("p/bge", ["short", "long " * 600, "short too"], errors="return")
            assert {index: type(error) for index, error in found.errors.items()} == {1: llmopt.ItemTooLong}
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


async def test_teis_key() -> None:
    """A 401 without a body."""
    async with TEIEmulator(key="secret-1") as server:
        async with client("local", server.base_url, flavour="tei", api_key="secret-1") as made:
            same(await made.embed("p/bge", ["a"]), ["a"], 384)
        async with client("local", server.base_url, flavour="tei", api_key="wrong-1") as made:
            with pytest.raises(llmopt.AuthError):
                await made.embed("p/bge", ["a"])


@pytest.mark.parametrize("end", ["", "/v1", "/api"])
async def test_ollama(end: str) -> None:
    """Vectors, the tokens read, the list with what Ollama tells of its models."""
    async with (
        OllamaEmulator() as server,
        client("local", server.base_url + end, flavour="ollama") as made,
    ):
        found = await made.embed("p/nomic-embed-text", TEXTS, dimensions=64)
        same(found, TEXTS, 64)
        assert found.usage.prompt_tokens > 0
        nomic, qwen = await made.list_models("p")
    assert (nomic.id, nomic.kind, nomic.dimensions) == ("nomic-embed-text:latest", "embedding", 768)
    assert nomic.aliases == ("nomic-embed-text",)
    assert (qwen.kind, qwen.context_length) == ("chat", 40_960)


@pytest.mark.parametrize("flavour", ["ollama", None])
async def test_ollamas_errors(flavour: str | None) -> None:
    """By its native interface and by the common one, which cuts a long text silently."""
    models = [OllamaModel(name="e:latest", family="bert", dimensions=8, context=4)]
    models += [OllamaModel(name="chat:latest", family="qwen3")]
    more = {} if flavour is None else {"flavour": flavour}
    async with OllamaEmulator(models=models) as server:
        base = server.base_url if flavour else f"{server.base_url}/v1"
        async with client("local", base, **more) as made:
            found = await made.embed("p/e", ["short", "far too long a text for this", "x"], errors="return")
            errors = {index: type(error) for index, error in found.errors.items()}
            assert errors == ({1: llmopt.ItemTooLong} if flavour else {})
            with pytest.raises(llmopt.NotFound):
                await made.embed("p/nothing", ["a"])
            with pytest.raises(llmopt.BadRequest):
                await made.embed("p/chat", ["a"])
            server.max_queue = -1
            with pytest.raises(llmopt.Overloaded):
                await made.embed("p/e", ["b"])


async def test_ollama_cuts_on_request() -> None:
    """`truncate = true`."""
    models = [OllamaModel(name="e:latest", family="bert", dimensions=8, context=4)]
    async with (
        OllamaEmulator(models=models) as server,
        client("local", server.base_url, flavour="ollama", truncate=True) as made,
    ):
        found = await made.embed("p/e", ["far too long a text for this"])
    assert found.errors == {}


async def test_a_wrong_path_says_what_to_check() -> None:
    """Ollama without /v1 and without its flavour."""
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
}


@pytest.mark.parametrize("plugin", PLUGINS)
async def test_every_error_of_the_corpus_reaches_the_caller(plugin: str) -> None:
    """As the exception that its verdict is."""
    async with SERVERS[plugin]() as server:
        for entry in entries(plugin):
            if entry.row.get("operation") != "chat":
                server.fail_next(
                    entry.row["status"], entry.row["body"].encode(), entry.row.get("headers"), times=3
                )
                # A client of its own: one that was told of a wrong key or a spent quota does not ask again.
                async with client(plugin, server.base_url, api_key=KEY) as made:
                    await reaches(made, entry)
                server._script.clear()


async def reaches(made: llmopt.AsyncClient, entry: Entry) -> None:
    expected = EXCEPTION_OF[VerdictKind(entry.row["kind"])]
    with pytest.raises(llmopt.LLMOptError) as caught:
        if entry.row.get("operation") == "catalog":
            await made.list_models("p")
        else:
            await made.embed("p/m", ["text"])
    assert isinstance(caught.value, expected), entry.name
    assert caught.value.provider == "p", entry.name
