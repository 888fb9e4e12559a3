"""P13: lists of models that are empty, huge, wrong or without end; asked for, kept, and read again."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmopt
from tests.support.faults import Answer, FaultServer, answer_openai, error_answer, faults_of
from tests.support.faults.fault import Fault

P13 = [fault for fault in faults_of("P") if fault.row == "P13"]
MODELS = {
    "no models": 0,
    "100,000 models": 100_000,
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


def config(server: FaultServer) -> dict[str, object]:
    return {"providers": {"s": {"plugin": "local", "base_url": server.base_url, "max_retries": 0}}}


def test_every_fault_is_expected() -> None:
    """A new one must be thought about."""
    assert {fault.name for fault in P13} == {*MODELS, *BROKEN}


@pytest.mark.parametrize("fault", P13, ids=str)
async def test_p13(fault: Fault, tmp_path: Path) -> None:
    """The right models or one clear error; the same again from memory and from disk; the next call is served."""
    async with FaultServer() as server:
        fault.inject(server)
        if fault.name in BROKEN:
            # Every page is the same.
            server.default(fault.reply)
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            if fault.name in BROKEN:
                with pytest.raises(BROKEN[fault.name], match="no end"):
                    await client.list_models("s")
                assert len(server.requests) <= 3
                server.default(answer_openai)
                assert len(await client.list_models("s")) == 1
                return
            found = await client.list_models("s")
            again = await client.list_models("s")
        async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
            stored = await client.list_models("s")
    assert len(server.requests) == 1
    assert len(found) == len(again) == len(stored) == MODELS[fault.name]
    for at in {0, len(found) // 2, len(found) - 1} if len(found) else ():
        assert found[at] == again[at] == stored[at]
        assert dict(found[at].raw) == dict(stored[at].raw)


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
async def test_no_list_at_all(fault: str, tmp_path: Path) -> None:
    """One clear error, and nothing of it is kept."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server), cache=tmp_path) as client:
        server.default(NOT_JSON[fault])
        with pytest.raises(llmopt.InvalidResponse):
            await client.list_models("s")
        server.default(answer_openai)
        assert len(await client.list_models("s")) == 1


async def test_one_malformed_entry_spoils_only_itself(tmp_path: Path) -> None:
    """Among a hundred good ones; how many were left out is told, from the cache too."""
    import json

    entries: list[object] = [{"id": f"m{number}", "object": "model"} for number in range(100)]
    entries[50:50] = [{"id": 7}, None, {"id": ""}, {"id": "odd", "context_length": "many", "created": []}]
    body = json.dumps({"data": entries}).encode()
    async with FaultServer() as server:
        server.default(Answer(200, body, [("content-type", "application/json")]))
        for _ in range(2):
            async with llmopt.AsyncClient(config(server), cache=tmp_path) as client:
                found = await client.list_models("s")
                assert len(found) == 101
                assert found.dropped == 3
                assert found[50].id == "odd"
                assert found[50].context_length is None
    assert len(server.requests) == 1


async def test_what_a_plugin_cannot_write_down_is_kept_in_memory(tmp_path: Path) -> None:
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


async def test_a_failure_is_not_kept(tmp_path: Path) -> None:
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
