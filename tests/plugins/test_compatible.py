"""The plugin of many providers: its table, its lists, and a provider of it over a real socket."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

import llmopt
from llmopt import CatalogCall, CatalogPage, EmbedCall, HttpResponse, Prices, Settings
from llmopt.config.resolve import url_placeholders
from llmopt.providers.discovery import PROVIDER_NAME, discover_plugins
from llmopt.providers.hooks import ProviderHooks
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
    """No key of the person who runs the tests counts."""
    for row in TABLE.rows.values():
        for variable in (*row.key_env, *(name for part in row.parts.values() for name in part.env)):
            monkeypatch.delenv(variable, raising=False)


# --- The table


def test_there_are_many() -> None:
    """More than were asked for, well-known ones among them."""
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
        "google",
    }
    assert known <= set(TABLE.rows)
    assert not {"openai", "mistral", "azure", "local", "compatible"} & set(TABLE.rows)
    asked = [name for name, row in ROWS if row.discovered]
    assert len(asked) >= 57


@pytest.mark.parametrize(("name", "row"), ROWS, ids=[name for name, _ in ROWS])
def test_a_row_is_sane(name: str, row: Any) -> None:
    """Its name, its address, its variables."""
    assert PROVIDER_NAME.match(name)
    assert re.fullmatch(r"https://[a-z0-9.{}_-]+(/[A-Za-z0-9._{}/-]*[A-Za-z0-9}])?", row.base_url), (
        row.base_url
    )
    host = urlsplit(row.base_url).hostname
    assert host is not None
    # Whatever is filled in, the host stays below a domain of the provider's.
    assert "{" not in ".".join(host.split(".")[-2:])
    assert row.key_env
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]*", variable) for variable in row.key_env)
    assert row.docs.startswith("https://")
    assert set(url_placeholders(row.base_url)) == set(row.parts)
    assert all(part.env and part.help for part in row.parts.values())
    if row.catalog is not None and not row.catalog.startswith("/"):
        assert urlsplit(row.catalog).netloc == urlsplit(row.base_url).netloc


def test_a_variable_leads_to_one_place_unless_a_provider_is_named() -> None:
    """No key goes to a second address because it is there."""
    asked = Counter(variable for _, row in ROWS if row.discovered for variable in row.key_env)
    assert [variable for variable, count in asked.items() if count > 1] == []


def test_addresses_stand_there_once() -> None:
    """But for one service with two kinds of keys."""
    addresses = Counter(row.base_url for _, row in ROWS)
    twice = {address for address, count in addresses.items() if count > 1}
    assert twice == {"https://api.code.umans.ai/v1"}


def test_the_entry_points_are_the_table_s_names() -> None:
    """scripts/derive_providers.py writes both."""
    points = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]["entry-points"]
    assert points["llmopt.fallback"] == dict.fromkeys(TABLE.rows, "llmopt_plugin_compatible")
    assert points["llmopt"] == {"compatible": "llmopt_plugin_compatible"}


def test_the_page_of_providers_is_the_table() -> None:
    """Every one with its address and its variable."""
    page = (PLUGIN.parents[1] / "docs" / "providers.md").read_text()
    for name, row in ROWS:
        assert f"[`{name}`]({row.docs}) | `{row.base_url}` | `{row.key_env[0]}`" in page


def test_what_is_installed_is_found() -> None:
    """All names, of one plugin."""
    found = discover_plugins()
    assert set(TABLE.rows) <= {name for name, plugin in found.items() if plugin.fallback}


def test_the_licence_of_the_facts_lies_beside_them() -> None:
    """With its whole text."""
    notice = (resources.files("llmopt_plugin_compatible") / "NOTICE.txt").read_text()
    assert "models.dev" in notice
    assert "Permission is hereby granted, free of charge" in notice


# --- Keys


def endpoint(name: str, **entry: Any) -> Any:
    from llmopt.config.load import load_config
    from llmopt.providers.registry import Registry

    environ = {variable: KEY for _, row in ROWS for variable in row.key_env}
    environ |= {part.env[0]: "ours" for _, row in ROWS for part in row.parts.values()}
    return Registry(load_config({"providers": {name: entry}}, environ={}), (), environ).get(name).endpoints[0]


@pytest.mark.parametrize("name", [name for name, _ in ROWS])
def test_a_key_goes_to_the_row_s_own_origin_only(name: str) -> None:
    """From the environment, that is; elsewhere it has to be given."""
    own = endpoint(name)
    secret = own.credential.static_secret()
    assert secret is not None
    assert secret.reveal() == KEY
    assert own.base_url.startswith("https://")
    other = endpoint(name, base_url="https://elsewhere.example/v1")
    assert "goes only to https://" in other.credential.problem
    assert KEY not in other.credential.problem


def test_any_other_address_needs_no_key() -> None:
    """``plugin = "compatible"`` with a base_url; the key is the user's affair."""
    from llmopt.config.load import load_config
    from llmopt.providers.registry import Registry

    entry = {"plugin": "compatible", "base_url": "https://gateway.example/v1"}
    found = Registry(load_config({"providers": {"mine": entry}}, environ={}), (), {}).get("mine").endpoints[0]
    assert found.credential.problem == ""


# --- Lists


def read(hooks: ProviderHooks, plugin: str, *entries: dict[str, Any]) -> CatalogPage:
    body = json.dumps({"data": entries}).encode()
    found = hooks.parse_catalog(HttpResponse(status=200, body=body), Settings(provider="p", plugin=plugin))
    assert isinstance(found, CatalogPage)
    return found


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
def test_prices_in_a_provider_s_own_keys(
    hooks: ProviderHooks, plugin: str, entry: dict[str, Any], prices: Prices | None
) -> None:
    """In its unit; a number in another one is not believed."""
    (model,) = read(hooks, plugin, {"id": "m", **entry}).models
    assert model.prices == prices


def test_limits_in_a_provider_s_own_keys(hooks: ProviderHooks) -> None:
    """Where they stand deeper."""
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


def test_a_bad_entry_spoils_only_itself(hooks: ProviderHooks) -> None:
    """Also where the list is read in a way of its own."""
    page = read(hooks, "togetherai", {"id": "a"}, {"object": "model"}, {"id": "b", "pricing": {"input": {}}})
    assert ([model.id for model in page.models], page.dropped) == (["a", "b"], 1)


def where(plugin: str, base_url: str) -> Settings:
    return Settings(provider="p", plugin=plugin, base_url=base_url)


def test_where_lists_are_asked_for(hooks: ProviderHooks) -> None:
    """At a path of the provider's own, which another server is not asked for."""
    base = "https://api.tokenfactory.nebius.com/v1"
    assert hooks.build_request(CatalogCall(), where("nebius", base)).path == "/models?verbose=true"
    inference = "https://models.github.ai/inference"
    assert hooks.build_request(CatalogCall(), where("github-models", inference)).path == (
        "https://models.github.ai/catalog/models"
    )
    assert (
        hooks.build_request(CatalogCall(), where("github-models", "http://127.0.0.1:1/v1")).path == "/models"
    )
    assert (
        hooks.build_request(CatalogCall(), where("groq", "https://api.groq.com/openai/v1")).path == "/models"
    )


def test_limits_of_a_request(hooks: ProviderHooks) -> None:
    """Where they are known; else a size that every server takes."""
    call = EmbedCall(model="m")
    assert hooks.batch_limit(call, where("google", "")).max_items == 100
    assert hooks.batch_limit(call, where("voyage", "")).max_tokens == 120_000
    assert hooks.batch_limit(call, where("groq", "")).max_items == 32


# --- Over a real socket


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIEmulator]:
    with serve_in_thread(OpenAIEmulator(key=KEY)) as emulator:
        yield emulator


class Rerouted(httpx.AsyncBaseTransport):
    """Takes requests for one host to a server on this machine, over a real socket; refuses all others."""

    def __init__(self, host: str, base_url: str) -> None:
        self._host = host
        self._target = httpx.URL(base_url)
        self._way = httpx.AsyncHTTPTransport()
        self.seen: list[str] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(str(request.url))
        if request.url.host != self._host:
            raise httpx.ConnectError("nobody there")
        path = request.url.path.removeprefix("/openai")
        url = request.url.copy_with(scheme="http", host=self._target.host, port=self._target.port, path=path)
        return await self._way.handle_async_request(
            httpx.Request(request.method, url, headers=request.headers, content=await request.aread())
        )

    async def aclose(self) -> None:
        await self._way.aclose()


async def test_a_provider_is_discovered_once_its_key_is_set(
    server: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked unnamed, at its own address, with the key of the environment; and embedding works."""
    monkeypatch.setenv("GROQ_API_KEY", KEY)
    way = Rerouted("api.groq.com", server.base_url)
    async with llmopt.AsyncClient(
        {"flags": {"cache": False}}, transport=way, flags={"retry": False}
    ) as client:
        every = await client.batch_list_models()
        found = await client.embed("groq/text-embedding-3-small", ["one", "two"], dimensions=8)
    models = every["groq"]
    assert isinstance(models, llmopt.Catalog)
    assert {"text-embedding-3-small", "gpt-4o-mini"} <= {model.id for model in models}
    assert {model.provider for model in models} == {"groq"}
    assert not set(every) & (set(TABLE.rows) - {"groq"})
    assert all(url.startswith("https://api.groq.com/openai/v1/") for url in way.seen)
    assert found.vectors.tolist() == [vector_for(text, 8).tolist() for text in ("one", "two")]


async def test_another_address_without_its_key_is_refused(
    server: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is sent; with the key beside the address it works."""
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
