"""Providers that tell which operations they have: what they have not is refused before a request; lists without an endpoint."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

import llmopt
from llmopt import Model, Profile, ProviderEntry, hookimpl
from llmopt.testing import installed
from llmopt.values.events import CatalogDiscover, Event
from tests.cli.run import invoke, json_of

BASE = "https://vectors.example/v1"
VECTORS_ONLY = frozenset({"embeddings"})
KNOWN = (Model(id="small", kind="embedding", dimensions=3, aliases=("tiny",), known=("kind", "dimensions")),)


class Vectors:
    """A provider that makes embeddings and has no list of models; the one at another address tells nothing."""

    def __init__(self, models: tuple[Model, ...] = KNOWN) -> None:
        self.models = models

    @hookimpl
    def provider_profile(self, entry: ProviderEntry) -> Profile:
        if entry.base_url not in (None, BASE):
            return Profile(key_required=False)
        return Profile(base_url=BASE, key_required=False, operations=VECTORS_ONLY, models=self.models)


class Refusing(httpx.AsyncBaseTransport):
    """Nothing may be sent."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"{request.url} was asked")


@pytest.fixture
def plugin() -> Iterator[Vectors]:
    made = Vectors()
    with installed("vectors", made):
        yield made


async def refusal(ask: Callable[[], Any]) -> str:
    with pytest.raises(llmopt.InvalidInput) as caught:
        await ask()
    assert (caught.value.provider, caught.value.sent) == ("vectors", "no")
    return caught.value.message


def test_a_call_of_another_operation_is_refused_before_a_request(plugin: Vectors) -> None:
    """Chats and streams, with the operations that the provider has."""

    async def main() -> list[str]:
        async with llmopt.AsyncClient({}, transport=Refusing()) as client:
            return [
                await refusal(lambda: client.chat("vectors/small", "hi")),
                await refusal(lambda: client.stream("vectors/small", "hi")),
            ]

    said = "the provider 'vectors' has no chat, only embeddings; use the model of another provider, or set base_url to a server that has it."
    assert asyncio.run(main()) == [said, said]


@pytest.mark.parametrize("mode", ["auto", "refresh", "offline"])
def test_the_models_that_the_plugin_knows_are_the_list(plugin: Vectors, mode: Any) -> None:
    """Without a request and without a cache, under the name of the entry, and told as such."""
    seen: list[Event] = []
    config = {"providers": {"mine": {"plugin": "vectors"}}}

    async def main() -> tuple[llmopt.Catalog, Any]:
        async with llmopt.AsyncClient(config, transport=Refusing(), on_event=seen.append) as client:
            return await client.list_models("mine", cached=mode), await client.batch_list_models(
                ["mine"], cached=mode
            )

    alone, many = asyncio.run(main())
    assert alone.known
    assert [(each.id, each.provider, each.known) for each in alone] == [
        ("small", "mine", ("kind", "dimensions"))
    ]
    assert many == {"mine": alone}
    told = [(each.source, each.models) for each in seen if isinstance(each, CatalogDiscover)]
    assert told == [("plugin", 1), ("plugin", 1)]


@pytest.mark.parametrize("mode", ["auto", "refresh", "offline"])
def test_without_known_models_a_list_is_refused(plugin: Vectors, mode: Any) -> None:
    """For one provider, and as the result of one of many."""
    plugin.models = ()

    async def main() -> Any:
        async with llmopt.AsyncClient({}, transport=Refusing()) as client:
            with pytest.raises(llmopt.InvalidInput, match="has no list of models, only embeddings; its doc"):
                await client.list_models("vectors", cached=mode)
            return await client.batch_list_models(["vectors"], cached=mode)

    assert isinstance(asyncio.run(main())["vectors"], llmopt.InvalidInput)


def test_models_of_another_type_are_the_plugins_error(plugin: Vectors) -> None:
    """Such as their names alone."""
    plugin.models = ("small",)  # type: ignore[assignment]
    with (
        llmopt.Client({}, transport=Refusing()) as client,
        pytest.raises(
            llmopt.PluginContractError, match="provider_profile returned str; expected a Profile, with"
        ),
    ):
        client.list_models("vectors")


def test_an_entry_of_several_servers_has_what_one_of_them_has(plugin: Vectors) -> None:
    """Nothing is refused as soon as one endpoint does not tell."""
    endpoints = [{"base_url": BASE}, {"base_url": "https://elsewhere.example/v1"}]
    config = {"providers": {"vectors": {"endpoints": endpoints}}}

    def answer(request: httpx.Request) -> httpx.Response:
        message = {"role": "assistant", "content": "hello"}
        return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": "stop"}]})

    async def main() -> str:
        async with llmopt.AsyncClient(config, transport=httpx.MockTransport(answer)) as client:
            return (await client.chat("vectors/small", [{"role": "user", "content": "hi"}])).text

    assert asyncio.run(main()) == "hello"


@pytest.mark.parametrize("value", [["chat"], ("chat",), {"chat"}])
def test_operations_are_any_collection_of_names(value: Any) -> None:
    assert Profile(operations=value).operations == frozenset({"chat"})


def test_one_name_is_no_collection_of_names() -> None:
    """It would be a set of letters."""
    with pytest.raises(TypeError, match=r"operations is a set of names, not one str; write \{'chat'\}\."):
        Profile(operations="chat")  # type: ignore[arg-type]


def test_the_command_line_says_that_there_is_no_list(
    plugin: Vectors, tmp_path: Any, monkeypatch: Any
) -> None:
    """The models with their origin and a sentence; doctor asks nothing and says why."""
    monkeypatch.chdir(tmp_path)
    done = invoke("models", "vectors")
    assert (done.exit_code, "known" in done.stdout) == (0, True)
    assert "vectors: the provider has no list of models; these are the ones that its plugin" in done.stderr
    assert json_of(invoke("models", "vectors", "--json"))["catalogues"]["vectors"]["known"] is True
    done = invoke("doctor", "vectors")
    assert (done.exit_code, "not asked" in done.stdout) == (0, True)
    assert (
        "note: vectors: the provider has no list of models, so llmopt doctor does not ask it" in done.stderr
    )
    (check,) = json_of(invoke("doctor", "vectors", "--json"))["providers"]
    assert (check["operations"], check["state"]) == (["embeddings"], "not asked")


def test_voyage_has_no_list_and_its_models_are_known() -> None:
    """Of the table of compatible providers; at another address nothing is known."""
    entry = {
        "voyage": {"api_key": "key"},
        "relay": {"plugin": "voyage", "api_key": "key", "base_url": "https://relay.example/v1"},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.url.host == "relay.example"
        return httpx.Response(200, content=json.dumps({"data": [{"id": "voyage-4"}]}))

    async def main() -> tuple[llmopt.Catalog, llmopt.Catalog]:
        transport = httpx.MockTransport(answer)
        async with llmopt.AsyncClient({"providers": entry}, transport=transport, cache=False) as client:
            return await client.list_models("voyage"), await client.list_models("relay")

    known, listed = asyncio.run(main())
    assert {each.id: each.dimensions for each in known}["voyage-4-large"] == 1024
    assert (known.known, listed.known, [each.id for each in listed]) == (True, False, ["voyage-4"])
