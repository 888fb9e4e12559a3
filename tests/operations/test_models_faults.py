"""Lists of models that are empty, huge, wrong or without end; asked for, kept, and read again."""

from __future__ import annotations

import functools
import traceback
from pathlib import Path
from typing import Any

import pytest

import llmopt
from llmopt.policies.clock import Clock
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.testing.fake import installed
from llmopt.values.events import CatalogDiscover
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    FaultServer,
    answer_openai,
    catalog,
    error_answer,
    faults_of,
    find_fault,
    json_answer,
)
from tests.support.faults.fault import Fault
from tests.support.faults.payload_rows import MANY_MODELS
from tests.support.faults.request import Request
from tests.support.faults.script import Reply
from tests.support.simulated import run_fault

P13 = [fault for fault in faults_of("P") if fault.row == "P13"]
MODELS = {
    "no models": 0,
    "many models": MANY_MODELS,
    "duplicate ids": 1,
    "unknown fields": 1,
    "missing fields": 1,
    "missing id": 1,
    "entries that are no objects": 1,
    "bare list": 1,
    "long description": 1,
}
"""How many models are in the list of each fault; those that are not here have none."""
BROKEN = {"pages without end": llmopt.InvalidResponse}


config = functools.partial(provider_config, name="s", max_retries=0)


def test_every_fault_has_an_expected_result() -> None:
    """A new one must be thought about."""
    assert {fault.name for fault in P13} == {*MODELS, *BROKEN}


@pytest.mark.parametrize("fault", P13, ids=str)
@pytest.mark.row("P13")
def test_unusual_lists_are_returned_and_cached_or_one_clear_error(fault: Fault, tmp_path: Path) -> None:
    """The right models or one clear error; the same again from memory and from disk; the next call is served."""

    async def main(clock: Clock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            fault.inject(server)
            if fault.name in BROKEN:
                # Every page is the same.
                server.default(fault.reply)
            async with llmopt.AsyncClient(config(server), clock=clock, cache=tmp_path) as client:
                if fault.name in BROKEN:
                    with pytest.raises(BROKEN[fault.name], match="no end"):
                        await client.list_models("s")
                    assert len(server.requests) <= 3
                    server.default(answer_openai)
                    assert len(await client.list_models("s")) == 1
                    return
                found = await client.list_models("s")
                again = await client.list_models("s")
            async with llmopt.AsyncClient(config(server), clock=clock, cache=tmp_path) as client:
                stored = await client.list_models("s")
        assert len(server.requests) == 1
        assert len(found) == len(again) == len(stored) == MODELS[fault.name]
        for at in {0, len(found) // 2, len(found) - 1} if len(found) else ():
            assert found[at] == again[at] == stored[at]
            assert dict(found[at].raw) == dict(stored[at].raw)

    run_fault(fault, main)


NOT_JSON = {
    "html": Answer(200, b"<html>502 Bad Gateway</html>", [("content-type", "text/html")]),
    "html that says it is JSON": Answer(200, b"<!doctype html>", [("content-type", "application/json")]),
    "cut off": Answer(200, b'{"data": [{"id": "a"', [("content-type", "application/json")]),
    "empty": Answer(200, b"", [("content-type", "application/json")]),
    "an error": Answer(200, b'{"error": {"message": "no"}}', [("content-type", "application/json")]),
    "another object": Answer(200, b'{"hello": 1}', [("content-type", "application/json")]),
    "deep": Answer(200, b"[" * 100_000, [("content-type", "application/json")]),
}


@pytest.mark.parametrize("fault", NOT_JSON)
async def test_a_body_without_a_list_is_an_invalid_response(fault: str, tmp_path: Path) -> None:
    """One clear error, and nothing of it is kept."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache=tmp_path) as client:
        server.default(NOT_JSON[fault])
        with pytest.raises(llmopt.InvalidResponse):
            await client.list_models("s")
        server.default(answer_openai)
        assert len(await client.list_models("s")) == 1


async def test_one_malformed_entry_spoils_only_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Among a hundred good ones; how many were left out is told, from the cache too."""
    import json

    events: list[Any] = []

    entries: list[object] = [{"id": f"m{number}", "object": "model"} for number in range(100)]
    entries[50:50] = [{"id": 7}, None, {"id": ""}, {"id": "odd", "context_length": "many", "created": []}]
    body = json.dumps({"data": entries}).encode()
    async with FaultServer() as server:
        server.default(Answer(200, body, [("content-type", "application/json")]))
        for _ in range(2):
            keys = config(server)
            async with llmopt.AsyncClient(keys, cache=tmp_path, on_event=events.append) as client:
                found = await client.list_models("s")
                assert len(found) == 101
                assert found.dropped == 3
                assert found[50].id == "odd"
                assert found[50].context_length is None
    assert len(server.requests) == 1
    told = [event.dropped for event in events if isinstance(event, CatalogDiscover)]
    assert told == [3, 3]
    assert "the list of models of s: 3 of 104 entries cannot be read and are left out" in caplog.messages


async def test_a_list_that_cannot_be_serialized_is_kept_in_memory(tmp_path: Path) -> None:
    """A raw entry that JSON has no words for; a wrapper of the user's makes it."""
    from attrs import evolve

    class Odd:
        @llmopt.hookimpl(wrapper=True)
        def parse_catalog(self) -> object:
            page = yield
            return evolve(
                page, models=tuple(evolve(each, raw={"x": {1, 2}, "id": each.id}) for each in page.models)
            )

    async with FaultServer() as server:
        server.default(answer_openai)
        for _ in range(2):
            async with llmopt.AsyncClient(config(server), cache=tmp_path, plugins=[Odd()]) as client:
                for _ in range(2):
                    assert len(await client.list_models("s")) == 1
    assert len(server.requests) <= 2


async def test_failures_are_not_cached(tmp_path: Path) -> None:
    """Neither is a list that was asked for in vain."""
    async with FaultServer() as server:
        server.default(error_answer(500, "sorry"))
        for answer in (None, answer_openai):
            if answer is not None:
                server.default(answer)
            async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
                if answer is None:
                    with pytest.raises(llmopt.ServerError):
                        await client.list_models("s")
                else:
                    assert len(await client.list_models("s")) == 1


# Every fault that a server can play, met by a list of models; and P13, lists that are well framed and
# wrong.

KEY = "canary-key-58d1"
FAULTS = [fault for fault in faults_of("N", "H", "P13") if fault.row != "N06"]
"""Those of N06 are made from the texts of a request."""
REFUSED_KEYS = {"H07", "H11"}
WAITS = {"H01", "H02", "H03", "H04", "H05", "H06"}
"""A refusal for the rate is a pause for all who share it, see test_hints."""


matrix_config = functools.partial(
    provider_config, api_key=KEY, timeouts={"connect": 0.5, "read": 0.5, "pool": 0.5, "catalog": 0.5}
)


def client_of(server: FaultServer, clock: Clock | None = None, **flags: bool) -> llmopt.AsyncClient:
    return llmopt.AsyncClient(
        matrix_config(server, retry_delay=0.001), clock=clock, flags={"cache": False, **flags}
    )


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_one_attempt_returns_the_models_or_one_clear_error(fault: Fault) -> None:
    """And the next question is answered as if nothing had been."""

    async def main(clock: Clock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            client_of(server, clock=clock, retry=False) as client,
        ):
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
                assert [model.id for model in await client.list_models("server")] == [
                    "text-embedding-3-small"
                ]

    run_fault(fault, main)


@pytest.mark.row("H08")
@pytest.mark.parametrize("name", ["500", "502", "503", "504", "520"])
def test_a_transient_failure_is_retried(name: str) -> None:
    """Lists are asked for again, as embeddings are."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            client_of(server, clock=clock) as client,
        ):
            find_fault("H08", name).inject(server)
            assert len(await client.list_models("server")) == 1
            assert len(server.requests) == 2

    run_simulated(main)


LISTS: dict[str, tuple[Any, list[str]]] = {
    "no models": (catalog([]), []),
    "duplicate ids": (catalog([{"id": "one"}, {"id": "two"}, {"id": "one"}]), ["one", "two"]),
    "unknown fields": (catalog([{"id": "one", "novel": {"deep": [1, {}]}}], novel=True), ["one"]),
    "missing fields": (catalog([{"id": "one"}]), ["one"]),
    "missing id": (catalog([{"object": "model"}, {"id": "one"}]), ["one"]),
    "entries that are no objects": (catalog([None, "one", 3, [], {"id": "two"}]), ["two"]),
    "bare list": (json_answer([{"id": "one"}]), ["one"]),
}


@pytest.mark.row("P13")
@pytest.mark.parametrize(("answer", "ids"), LISTS.values(), ids=LISTS)
def test_odd_entries_do_not_invalidate_a_list(answer: Any, ids: list[str]) -> None:
    """What can be read is read."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            client_of(server, clock=clock) as client,
        ):
            server.default(answer)
            assert [model.id for model in await client.list_models("server")] == ids

    run_simulated(main)


@pytest.mark.row("P13")
def test_many_models_keep_their_order() -> None:

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            client_of(server, clock=clock) as client,
        ):
            find_fault("P13", "many models").inject(server)
            found = await client.list_models("server")
        assert [model.id for model in found] == [f"m{number}" for number in range(MANY_MODELS)]

    run_simulated(main)


@pytest.mark.row("P13")
def test_a_description_of_ten_megabytes_is_read_and_not_shown() -> None:
    """It is read, and not shown."""

    async def main(clock: SimulatedClock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            client_of(server, clock=clock) as client,
        ):
            find_fault("P13", "long description").inject(server)
            found = await client.list_models("server")
        assert [model.id for model in found] == ["one"]
        assert len(repr(found)) < 10_000

    run_simulated(main)


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


@pytest.mark.row("P13")
@pytest.mark.parametrize("ends", ["repeats", "never"])
async def test_endless_pages_are_stopped(ends: str) -> None:
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
