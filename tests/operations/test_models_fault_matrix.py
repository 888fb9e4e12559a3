"""Every fault that a server can play, met by a list of models; and P13, lists that are well framed and wrong."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

import llmopt
from llmopt.testing.fake import installed
from tests.support.faults import FaultServer, catalog, faults_of, find_fault, json_answer, models_payload
from tests.support.faults.fault import Fault
from tests.support.faults.request import Request
from tests.support.faults.script import Reply

KEY = "canary-key-58d1"
FAULTS = [fault for fault in faults_of("N", "H", "P13") if fault.row != "N06"]
"""Those of N06 are made from the texts of a request."""
REFUSED_KEYS = {"H07", "H11"}
WAITS = {"H01", "H02", "H03", "H04", "H05", "H06"}
"""A refusal for the rate is a pause for all who share it, see test_hints."""


def config(server: FaultServer, **more: Any) -> dict[str, Any]:
    timeouts = {"connect": 0.5, "read": 0.5, "pool": 0.5, "catalog": 0.5}
    entry = {"plugin": "local", "base_url": server.base_url, "api_key": KEY, "timeouts": timeouts, **more}
    return {"providers": {"server": entry}}


def client_of(server: FaultServer, **flags: bool) -> llmopt.AsyncClient:
    return llmopt.AsyncClient(config(server, retry_delay=0.001), flags={"cache": False, **flags})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_the_models_or_one_clear_error(fault: Fault) -> None:
    """And the next question is answered as if nothing had been."""
    async with FaultServer() as server, client_of(server, retry=False) as client:
        fault.inject(server)
        try:
            found = await client.list_models("server")
        except llmopt.LLMOptError as error:
            assert error.provider == "server"
            assert error.endpoint == server.base_url
            assert KEY not in "".join(traceback.format_exception(error))
        else:
            if fault.row != "P13":
                assert [model.id for model in found] == ["text-embedding-3-small"]
        if fault.row not in REFUSED_KEYS | WAITS:
            assert [model.id for model in await client.list_models("server")] == ["text-embedding-3-small"]


@pytest.mark.parametrize("name", ["500", "502", "503", "504", "520"])
async def test_h08_a_failure_that_passes_is_not_seen(name: str) -> None:
    """Lists are asked for again, as embeddings are."""
    async with FaultServer() as server, client_of(server) as client:
        find_fault("H08", name).inject(server)
        assert len(await client.list_models("server")) == 1
        assert len(server.requests) == 2


LISTS: dict[str, tuple[Any, list[str]]] = {
    "no models": (catalog([]), []),
    "duplicate ids": (catalog([{"id": "one"}, {"id": "two"}, {"id": "one"}]), ["one", "two"]),
    "unknown fields": (catalog([{"id": "one", "novel": {"deep": [1, {}]}}], novel=True), ["one"]),
    "missing fields": (catalog([{"id": "one"}]), ["one"]),
    "missing id": (catalog([{"object": "model"}, {"id": "one"}]), ["one"]),
    "entries that are no objects": (catalog([None, "one", 3, [], {"id": "two"}]), ["two"]),
    "bare list": (json_answer([{"id": "one"}]), ["one"]),
}


@pytest.mark.parametrize(("answer", "ids"), LISTS.values(), ids=LISTS)
async def test_p13_odd_entries_spoil_no_list(answer: Any, ids: list[str]) -> None:
    """What can be read is read."""
    async with FaultServer() as server, client_of(server) as client:
        server.default(answer)
        assert [model.id for model in await client.list_models("server")] == ids


async def test_p13_a_hundred_thousand_models() -> None:
    """All of them, in order."""
    async with FaultServer() as server, client_of(server) as client:
        server.default(lambda _: json_answer(models_payload(f"m{number}" for number in range(100_000))))
        found = await client.list_models("server")
    assert len(found) == 100_000
    assert (found[0].id, found[-1].id) == ("m0", "m99999")


async def test_p13_a_description_of_ten_megabytes() -> None:
    """It is read, and not shown."""
    async with FaultServer() as server, client_of(server) as client:
        find_fault("P13", "long description").inject(server)
        found = await client.list_models("server")
    assert [model.id for model in found] == ["one"]
    assert len(repr(found)) < 10_000


class Paged:
    """A plugin of a provider whose pages name the cursor of the next."""

    @staticmethod
    @llmopt.hookimpl
    def provider_profile() -> llmopt.Profile:
        return llmopt.Profile(key_required=False)

    @staticmethod
    @llmopt.hookimpl
    def batch_limit() -> llmopt.BatchLimit:
        return llmopt.BatchLimit()

    @staticmethod
    @llmopt.hookimpl
    def parse_catalog(response: llmopt.HttpResponse) -> llmopt.CatalogPage:
        page = response.json
        models = tuple(llmopt.Model(id=each["id"], provider="paged") for each in page["data"])
        return llmopt.CatalogPage(models=models, next_cursor=page["next"])


@pytest.mark.parametrize("ends", ["repeats", "never"])
async def test_p13_pages_without_end(ends: str) -> None:
    """A cursor that was there before is told as such, and a thousand pages are enough."""
    asked = 0

    def reply(_: Request) -> Reply:
        nonlocal asked
        asked += 1
        cursor = "same" if ends == "repeats" else f"page {asked}"
        return json_answer({"data": [{"id": f"m{asked}"}], "next": cursor})

    async with FaultServer() as server:
        server.default(reply)
        providers = {"paged": {"base_url": server.base_url}}
        with installed("paged", Paged()):
            async with llmopt.AsyncClient({"providers": providers}, flags={"cache": False}) as client:
                said = "cursor" if ends == "repeats" else "1000 pages"
                with pytest.raises(llmopt.InvalidResponse, match=said) as caught:
                    await client.list_models("paged")
    assert caught.value.reason == "pages"
    assert asked == (2 if ends == "repeats" else 1_000)
