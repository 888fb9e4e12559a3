"""The plugin of many providers: its table, its model lists, and one provider over a real socket."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import llmopt
from llmopt import CatalogCall, CatalogPage, EmbedCall, HttpResponse, Prices, Settings
from llmopt.config.load import load_config
from llmopt.config.resolve import url_placeholders
from llmopt.providers.discovery import PROVIDER_NAME, discover_plugins
from llmopt.providers.hooks import ProviderHooks
from llmopt.providers.registry import Registry
from llmopt_plugin_compatible._table import TABLE
from tests.support.emulators import OpenAIEmulator, serve_in_thread, vector_for

PLUGIN = Path(__file__).parents[2] / "plugins" / "compatible"
ROWS = sorted(TABLE.rows.items())
KEY = "table-key-1"


@pytest.fixture(scope="module")
def hooks() -> ProviderHooks:
    import llmopt_plugin_compatible

    return ProviderHooks("compatible", llmopt_plugin_compatible)


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the keys of the person who runs the tests."""
    for row in TABLE.rows.values():
        for variable in (*row.key_env, *(name for part in row.parts.values() for name in part.env)):
            monkeypatch.delenv(variable, raising=False)


# --- The table


def test_the_table_has_well_known_providers() -> None:
    assert len(ROWS) >= 57
    known = {
        "groq",
        "xai",
        "togetherai",
        "deepseek",
        "openrouter",
        "cerebras",
        "fireworks-ai",
        "nvidia",
    }
    assert known <= set(TABLE.rows)
    assert not {"openai", "mistral", "azure", "local", "compatible", "anthropic", "google"} & set(TABLE.rows)
    discovered = [name for name, row in ROWS if row.discovered]
    assert len(discovered) >= 57


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_a_row_has_a_valid_name_url_and_variables(name: str, row: Any) -> None:
    assert PROVIDER_NAME.match(name)
    assert re.fullmatch(r"https://[a-z0-9.{}_-]+(/[A-Za-z0-9._{}/-]*[A-Za-z0-9}])?", row.base_url), (
        row.base_url
    )
    host = urlsplit(row.base_url).hostname
    assert host is not None
    # Whatever replaces a placeholder, the host stays in a domain of the provider.
    assert "{" not in ".".join(host.split(".")[-2:])
    assert row.key_env
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", variable) for variable in row.key_env)
    assert row.docs.startswith("https://")
    assert set(url_placeholders(row.base_url)) == set(row.parts)
    assert all(part.env and part.help for part in row.parts.values())
    if row.catalog is not None and not row.catalog.startswith("/"):
        assert urlsplit(row.catalog).netloc == urlsplit(row.base_url).netloc


def test_a_variable_belongs_to_one_discovered_provider() -> None:
    """So no key is sent to a second provider without being configured."""
    variables = Counter(variable for _, row in ROWS if row.discovered for variable in row.key_env)
    assert [variable for variable, count in variables.items() if count > 1] == []


def test_base_urls_are_unique() -> None:
    """Except for one service with two kinds of keys."""
    addresses = Counter(row.base_url for _, row in ROWS)
    repeated = {address for address, count in addresses.items() if count > 1}
    assert repeated == {"https://api.code.umans.ai/v1"}


def test_the_entry_points_are_the_names_of_the_table() -> None:
    """scripts/derive_providers.py writes both."""
    points = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points["llmopt.fallback"] == dict.fromkeys(TABLE.rows, "llmopt_plugin_compatible")
    assert points["llmopt"] == {"compatible": "llmopt_plugin_compatible"}


def test_the_page_of_providers_lists_the_table() -> None:
    """Each provider with its base URL and the variable of its key."""
    page = (PLUGIN.parents[1] / "docs" / "providers.md").read_text()
    for name, row in ROWS:
        assert f"[`{name}`]({row.docs}) | `{row.base_url}` | `{row.key_env[0]}`" in page


def test_discovery_finds_every_name_of_the_table() -> None:
    plugins = discover_plugins()
    assert set(TABLE.rows) <= {name for name, plugin in plugins.items() if plugin.fallback}


def test_the_package_has_the_licence_of_its_data() -> None:
    notice = (resources.files("llmopt_plugin_compatible") / "NOTICE.txt").read_text()
    assert "models.dev" in notice
    assert "Permission is hereby granted, free of charge" in notice


# --- Keys


@cache
def registry(**entry: str) -> Registry:
    """Every provider of the table with the same entry, and with its key in the environment."""
    environ = {variable: KEY for _, row in ROWS for variable in row.key_env}
    environ |= {part.env[0]: "ours" for _, row in ROWS for part in row.parts.values()}
    providers = {name: dict(entry) for name, _ in ROWS}
    return Registry(load_config({"providers": providers}, environ={}), (), environ)


@pytest.mark.parametrize("name", [name for name, _ in ROWS])
def test_a_key_of_the_environment_is_sent_to_the_providers_origin_only(name: str) -> None:
    """For another base URL the user has to configure the key."""
    own = registry().get(name).endpoints[0]
    secret = own.credential.static_secret()
    assert secret is not None
    assert secret.reveal() == KEY
    assert own.base_url.startswith("https://")
    other = registry(base_url="https://elsewhere.example/v1").get(name).endpoints[0]
    assert "goes only to https://" in other.credential.problem
    assert KEY not in other.credential.problem


def test_any_other_address_needs_no_key() -> None:
    """``plugin = "compatible"`` with a base_url and without a key."""
    entry = {"plugin": "compatible", "base_url": "https://gateway.example/v1"}
    config = load_config({"providers": {"mine": entry}}, environ={})
    endpoint = Registry(config, (), {}).get("mine").endpoints[0]
    assert endpoint.credential.problem == ""


# --- Lists


def read(hooks: ProviderHooks, plugin: str, *entries: dict[str, Any]) -> CatalogPage:
    body = json.dumps({"data": entries}).encode()
    page = hooks.parse_catalog(HttpResponse(status=200, body=body), Settings(provider="p", plugin=plugin))
    assert isinstance(page, CatalogPage)
    return page


@pytest.mark.parametrize(
    ("plugin", "entry", "prices"),
    [
        ("togetherai", {"pricing": {"hourly": 0, "input": 0.88, "output": 0.88}}, Prices(input=0.88, output=0.88)),
        ("chutes", {"pricing": {"prompt": 0.1, "completion": 0.3, "input_cache_read": 0.05}},
         Prices(input=0.1, output=0.3, cached_input=0.05)),
        ("cortecs", {"pricing": {"currency": "EUR", "input_token": 1.5, "output_token": 2}},
         Prices(input=1.5, output=2.0, currency="EUR")),
        ("requesty", {"input_price": 0.00000125, "output_price": 0.00001, "cached_price": 1.25e-7},
         Prices(input=1.25, output=10.0, cached_input=0.125)),
        ("novita-ai", {"input_token_price_per_m": 1500, "output_token_price_per_m": 5000},
         Prices(input=0.15, output=0.5)),
        ("venice", {"model_spec": {"pricing": {"input": {"usd": 0.9375}, "output": {"usd": 4.6875}}}},
         Prices(input=0.9375, output=4.6875)),
        ("vercel", {"pricing": {"input": "0.000002", "output": "0.00001"}}, Prices(input=2.0, output=10.0)),
        ("openrouter", {"pricing": {"prompt": "0.000002", "completion": "0.00001"}}, Prices(input=2.0, output=10.0)),
        ("groq", {"pricing": {"input": 0.88, "output": 0.88}}, None),
        ("togetherai", {"pricing": {"input": True, "output": "1"}}, None),
        ("togetherai", {"pricing": {"input": -1, "output": 1e308}}, None),
        ("togetherai", {"pricing": {"input": 10**400}}, None),
        ("requesty", {"input_price": 5, "output_price": None}, None),
        ("venice", {"model_spec": {"pricing": 7}}, None),
    ],
)  # fmt: skip
def test_prices_in_a_providers_own_keys(
    hooks: ProviderHooks, plugin: str, entry: dict[str, Any], prices: Prices | None
) -> None:
    """In the provider's unit; a number that does not fit the unit is ignored."""
    (model,) = read(hooks, plugin, {"id": "m", **entry}).models
    assert model.prices == prices


def test_limits_in_a_providers_own_keys(hooks: ProviderHooks) -> None:
    """They may be nested."""
    spec = {"availableContextTokens": 131_072, "maxCompletionTokens": 8192, "name": "V"}
    (venice,) = read(hooks, "venice", {"id": "v", "type": "text", "model_spec": spec}).models
    assert (venice.context_length, venice.max_output_tokens, venice.kind) == (131_072, 8192, "chat")
    limits = {"max_input_tokens": 1_048_576, "max_output_tokens": 32_768}
    entry = {"id": "openai/gpt-4.1", "limits": limits, "supported_input_modalities": ["text", "image"]}
    (github,) = read(hooks, "github-models", entry).models
    assert (github.context_length, github.max_output_tokens, github.inputs) == (
        1_048_576,
        32_768,
        ("text", "image"),
    )


def test_a_bad_entry_is_dropped_alone(hooks: ProviderHooks) -> None:
    """Also in a list with a format of its own."""
    page = read(hooks, "togetherai", {"id": "a"}, {"object": "model"}, {"id": "b", "pricing": {"input": {}}})
    assert ([model.id for model in page.models], page.dropped) == (["a", "b"], 1)


def at(plugin: str, base_url: str) -> Settings:
    return Settings(provider="p", plugin=plugin, base_url=base_url)


def test_the_path_of_a_model_list(hooks: ProviderHooks) -> None:
    """A provider may have its own path; a server at another base URL has the common one."""
    base = "https://api.tokenfactory.nebius.com/v1"
    assert hooks.build_request(CatalogCall(), at("nebius", base)).path == "/models?verbose=true"
    inference = "https://models.github.ai/inference"
    assert hooks.build_request(CatalogCall(), at("github-models", inference)).path == (
        "https://models.github.ai/catalog/models"
    )
    assert hooks.build_request(CatalogCall(), at("github-models", "http://127.0.0.1:1/v1")).path == "/models"
    assert hooks.build_request(CatalogCall(), at("groq", "https://api.groq.com/openai/v1")).path == "/models"


def test_limits_of_a_request(hooks: ProviderHooks) -> None:
    """The provider's, or a size that every server accepts."""
    call = EmbedCall(model="m")
    assert hooks.batch_limit(call, at("cohere", "")).max_items == 96
    assert hooks.batch_limit(call, at("voyage", "")).max_tokens == 120_000
    assert hooks.batch_limit(call, at("groq", "")).max_items == 32


# --- Over a real socket


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    with serve_in_thread(OpenAIEmulator(key=KEY)) as emulator:
        yield emulator


class Rerouted(httpx.AsyncBaseTransport):
    """Send requests for one host to a server on this machine, over a real socket; refuse all others."""

    def __init__(self, host: str, base_url: str) -> None:
        self._host = host
        self._target = httpx.URL(base_url)
        self._transport = httpx.AsyncHTTPTransport()
        self.urls: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.urls.append(str(request.url))
        if request.url.host != self._host:
            raise httpx.ConnectError("not this host")
        path = request.url.path.removeprefix("/openai")
        url = request.url.copy_with(scheme="http", host=self._target.host, port=self._target.port, path=path)
        return await self._transport.handle_async_request(
            httpx.Request(request.method, url, headers=request.headers, content=await request.aread())
        )

    async def aclose(self) -> None:
        await self._transport.aclose()


async def test_a_provider_is_discovered_once_its_key_is_set(
    server: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of all models asks it at its own base URL with the key; embedding works too."""
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    transport = Rerouted("api.groq.com", server.base_url)
    async with llmopt.AsyncClient(
        {"flags": {"cache": False}}, transport=transport, flags={"retry": False}
    ) as client:
        every = await client.batch_list_models()
        embeddings = await client.embed("groq/text-embedding-3-small", ["one", "two"], dimensions=8)
    models = every["groq"]
    assert isinstance(models, llmopt.Catalog)
    assert {"text-embedding-3-small", "gpt-4o-mini"} <= {model.id for model in models}
    assert {model.provider for model in models} == {"groq"}
    assert not set(every) & (set(TABLE.rows) - {"groq"})
    assert all(url.startswith("https://api.groq.com/openai/v1/") for url in transport.urls)
    assert embeddings.vectors.tolist() == [vector_for(text, 8).tolist() for text in ("one", "two")]


async def test_another_base_url_without_a_configured_key_is_an_error(
    server: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any request; with the key in the same entry it works."""
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    before = len(server.requests)
    entry = {"base_url": server.base_url}
    async with llmopt.AsyncClient({"providers": {"groq": entry}}) as client:
        with pytest.raises(llmopt.ConfigError) as caught:
            await client.list_models("groq")
    assert "set api_key or api_key_env in providers.groq" in str(caught.value)
    assert "https://api.groq.com" in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.requests) == before
    named = {"groq": {**entry, "api_key_env": "GROQ_API_KEY"}}
    async with llmopt.AsyncClient({"providers": named}) as client:
        assert len(await client.list_models("groq")) > 0


@pytest.mark.parametrize(
    ("row", "status", "body", "kind"),
    [
        ("alibaba-cn", 429, {"error": {"message": "too much", "code": "insufficient_quota"}}, "rate_limited"),
        ("modelscope", 429, {"error": {"message": "too much", "code": "insufficient_quota"}}, "rate_limited"),
        (
            "openrouter",
            429,
            {"error": {"message": "too much", "code": "insufficient_quota"}},
            "quota_exhausted",
        ),
        ("zai-coding-plan", 400, {"error": {"message": "no", "code": "1002"}}, "auth"),
        ("groq", 400, {"error": {"message": "no", "code": "1002"}}, "bad_request"),
        ("groq", 498, {}, "overloaded"),
        ("cohere", 498, {}, "auth"),
        ("voyage", 498, {}, "bad_request"),
    ],
)
def test_one_code_with_another_meaning(
    hooks: ProviderHooks, row: str, status: int, body: dict[str, Any], kind: str
) -> None:
    """A row and its variants may have rules of their own, which come first."""
    failure = llmopt.Failure(status=status, body=json.dumps(body).encode(), operation="chat")
    assert hooks.classify_error(failure, Settings(provider="x", plugin=row)).kind.value == kind
