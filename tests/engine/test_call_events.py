"""Every event names its call and its request, and each call has a start and an end."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import Any, get_args

import pytest
from attrs import fields

import llmopt
from llmopt import log
from llmopt.testing import FakeProvider
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values import events
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, MaxItems, Stall, answer_openai
from tests.support.streams import MESSAGES, stream_script, unfinished_stream, word_events
from tests.test_size import REPOSITORY

MODEL = "server/m"
DOWN = Answer(500, b'{"error": {"message": "down"}}', [("content-type", "application/json")])
REFUSED = Answer(401, b'{"error": {"message": "who?"}}', [("content-type", "application/json")])

config = functools.partial(provider_config, retry_delay=0.001)


def names(found: list[Any]) -> list[str]:
    """Without those of connections and of parsing, which are not at issue."""
    return [each.name for each in found if not each.name.startswith(("pool.", "json."))]


async def test_the_events_of_a_call_share_its_id_and_those_of_a_request_its_key() -> None:
    """Of concurrent calls in several batches with retries, each event belongs to exactly one."""
    found: list[Any] = []
    async with FaultServer() as server:
        server.default(answer_openai)
        server.play(DOWN)
        entry = config(server, max_batch_size=2)
        async with llmopt.AsyncClient(entry, on_event=found.append) as client:
            calls = (client.embed(MODEL, [f"{name} {n}" for n in range(5)]) for name in "abc")
            await asyncio.gather(*calls)
        origin = server.base_url
    of_calls = [each for each in found if each.name != "pool.size"]
    assert all(each.provider == "server" and each.endpoint == origin for each in found)
    assert all(len(each.call_id) == 16 for each in of_calls)
    starts = [each.call_id for each in found if each.name == "call.start"]
    ends = {each.call_id: each for each in found if each.name == "call.end"}
    assert len(set(starts)) == len(starts) == len(ends) == 3
    requests = [each for each in found if each.name == "request.start"]
    assert len({each.request_key for each in requests}) == len(requests) == 9
    assert all(each.request_key.startswith(f"{each.call_id}-") for each in requests)
    attempts = [each for each in found if each.name == "request.attempt"]
    assert sum(end.requests for end in ends.values()) == len(attempts) == 10
    retried = next(each for each in found if each.name == "request.retry")
    again = [each.attempt for each in attempts if each.request_key == retried.request_key]
    assert again == [1, 2]
    checkouts = [each for each in found if each.name == "pool.checkout"]
    assert {(each.request_key, each.attempt) for each in checkouts} == {
        (each.request_key, each.attempt) for each in attempts
    }


async def test_a_call_ends_with_what_its_responses_say() -> None:
    """Items, failures, usage and the model of an embedding; also finish reason and id of a chat, streamed or not."""
    found: list[Any] = []
    with FakeProvider() as fake:
        async with llmopt.AsyncClient(fake.config, transport=fake.transport, on_event=found.append) as client:
            messages = [{"role": "user", "content": "hello"}]
            reply = await client.chat("fake/fake-chat", messages)
            async with client.stream("fake/fake-chat", messages) as stream:
                async for _ in stream:
                    pass
            vectors = await client.embed("fake/fake-embed", ["a", "", "b"], errors="return")
    chat, streamed, embedded = (each for each in found if each.name == "call.end")
    for end, expected in ((chat, reply), (streamed, stream.reply)):
        assert (end.operation, end.outcome, end.requests, end.items) == ("chat", "ok", 1, 1)
        assert (end.usage, end.response_model) == (expected.usage, expected.model)
        assert (end.finish_reason, end.response_id) == (expected.finish_reason, expected.id)
        assert end.finish_reason
        assert end.response_id
    assert (embedded.items, embedded.failures, embedded.requests) == (3, 1, 1)
    assert (embedded.usage, embedded.response_model) == (vectors.usage, vectors.model)
    first = [each for each in found if each.name == "stream.first_chunk"]
    assert [each.call_id for each in first] == [streamed.call_id]
    start = next(each for each in found if each.call_id == streamed.call_id)
    assert (start.name, start.stream, start.items) == ("call.start", True, 1)


async def test_a_failed_call_ends_with_the_name_of_its_error() -> None:
    """Also one that sends nothing, and one whose caller gives up."""
    found: list[Any] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=found.append) as client:
        server.default(REFUSED)
        for texts in (["a"], [""]):
            with pytest.raises(llmopt.LLMOptError):
                await client.embed(MODEL, texts)
        never = asyncio.create_task(client.embed(MODEL, _endless()))
        await asyncio.sleep(0)
        never.cancel()
        with pytest.raises(asyncio.CancelledError):
            await never
    ends = [(each.outcome, each.requests) for each in found if each.name == "call.end"]
    assert ends == [("AuthError", 1), ("InvalidInput", 0), ("cancelled", 0)]


async def test_a_stream_ends_with_its_call() -> None:
    """Refused before its first event, broken off, and left by its reader; with what was received by then."""
    found: list[Any] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=found.append) as client:
        server.play(
            Answer(400, b'{"error": {"message": "no"}}', [("content-type", "application/json")]),
            unfinished_stream(*word_events()),
            stream_script(*word_events(), end=(Stall(),)),
        )
        for _ in range(2):
            with pytest.raises(llmopt.LLMOptError):
                async for _ in client.stream(MODEL, MESSAGES):
                    pass
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
    ends = [each for each in found if each.name == "call.end"]
    outcomes = [(each.outcome, each.items, each.requests) for each in ends]
    assert outcomes == [("BadRequest", 0, 1), ("StreamInterrupted", 1, 1), ("cancelled", 1, 1)]
    starts = [each.call_id for each in found if each.name == "call.start" and each.stream]
    assert [each.call_id for each in ends] == starts


async def _endless() -> Any:
    await asyncio.Event().wait()
    yield "never"


async def test_parts_of_an_embedding_are_one_call() -> None:
    """Whose end has their sums; a reader that leaves cancels it, and its scope is not left to the reader's next call."""
    found: list[Any] = []
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, max_batch_size=2), on_event=found.append) as client,
    ):
        server.default(answer_openai)
        texts = [f"text {n}" for n in range(6)]
        async with client.embed_iter(MODEL, texts) as parts:
            async for _ in parts:
                # Between two parts of the one call.
                await client.list_models("server")
        async with client.embed_iter(MODEL, texts) as parts:
            await anext(parts)
    ends = [each for each in found if each.name == "call.end" and each.operation == "embeddings"]
    assert [(each.outcome, each.items) for each in ends] == [("ok", 6), ("cancelled", 2)]
    assert ends[0].usage.requests == ends[0].requests == 3
    lists = {each.call_id for each in found if each.name == "call.start" and each.operation == "catalog"}
    assert len(lists) == 3
    assert not lists & {each.call_id for each in ends}


async def test_many_lists_are_one_call_and_each_event_names_its_provider() -> None:
    """The batch concerns several; each list and each request one of them."""
    found: list[Any] = []
    async with FaultServer() as server:
        server.default(answer_openai)
        entry = config(server)["providers"]["server"]
        async with llmopt.AsyncClient(
            {"providers": {"one": entry, "two": entry}}, on_event=found.append
        ) as client:
            await client.batch_list_models()
    of_call = [each for each in found if each.name != "pool.size"]
    assert len({each.call_id for each in of_call}) == 1
    several = {"call.start", "call.end", "catalog.batch", "cache.size"}
    assert {each.provider for each in of_call if each.name not in several} == {"one", "two"}
    requests = [each.request_key for each in found if each.name == "request.start"]
    assert len(set(requests)) == len(requests) == 2
    (end,) = (each for each in found if each.name == "call.end")
    assert (end.items, end.failures, end.requests) == (2, 0, 2)


def test_each_wait_begins_and_ends_with_the_limits_in_force() -> None:
    """Also one that its caller gives up."""

    async def main(clock: SimulatedClock) -> None:
        found: list[Any] = []
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(config(server, rpm=60), clock=clock, on_event=found.append) as client,
        ):
            server.default(answer_openai)
            for number in range(3):
                await client.embed(MODEL, [f"text {number}"])
            given_up = asyncio.create_task(client.embed(MODEL, ["never"]))
            await clock.sleep(0.1)
            given_up.cancel()
            await asyncio.gather(given_up, return_exceptions=True)
        waits = [each for each in found if each.name in {"request.waiting", "request.wait"}]
        assert [each.name for each in waits] == ["request.waiting", "request.wait"] * (len(waits) // 2)
        ended = waits[1::2]
        assert ended
        assert all(each.cause == "limiter" and each.limits["rpm"] > 0 for each in ended)
        assert [each.outcome for each in ended] == ["ok"] * (len(ended) - 1) + ["cancelled"]

    run_simulated(main)


async def test_a_refused_key_is_reported_once() -> None:
    """However many requests were under way with it."""
    found: list[Any] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=found.append) as client:
        server.default(REFUSED)
        calls = (client.embed(MODEL, [f"text {n}"]) for n in range(8))
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(each, llmopt.AuthError) for each in results)
    refused = [each for each in found if each.name == "credential.refused"]
    assert [(each.cause, "who?" in each.message) for each in refused] == [("AuthError", True)]


async def test_splits_and_learned_limits_are_of_their_call() -> None:
    """They are found by the operation, between its requests."""
    found: list[Any] = []
    async with FaultServer() as server:
        server.default(MaxItems(4, state_limit=False))
        async with llmopt.AsyncClient(config(server), on_event=found.append) as client:
            await client.embed(MODEL, [f"text {n}" for n in range(8)])
    of_call = [each for each in found if each.name in {"batch.split", "limit.learned"}]
    assert {each.name for each in of_call} == {"batch.split", "limit.learned"}
    assert {each.call_id for each in of_call} == {found[0].call_id}
    assert all(each.endpoint for each in of_call)


def test_ids_are_made_for_listeners_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one nothing is drawn, for a call that goes well."""

    def never(_: int) -> str:
        raise AssertionError("somebody makes an id")

    monkeypatch.setattr("secrets.token_hex", never)
    with FakeProvider() as fake, llmopt.Client(fake.config, transport=fake.transport) as client:
        client.embed("fake/fake-embed", ["a"])
        client.chat("fake/fake-chat", [{"role": "user", "content": "hello"}])
        client.list_models("fake")


# The documentation


def rows() -> dict[str, tuple[list[str], str]]:
    """The table of events: by name, the fields of its own and the words about its line in the log."""
    page = (REPOSITORY / "docs" / "logging.md").read_text()
    table = page.split("| event | emitted when |")[1].split("\n\n")[0]
    told = {}
    for line in table.splitlines()[2:]:
        name, _, own, written = (cell.strip() for cell in line.strip("|").split(" | "))
        told[name.strip("`")] = ([] if own == "-" else [each.strip("`") for each in own.split(", ")], written)
    return told


def test_the_table_of_events_is_complete() -> None:
    """Each kind once, with the fields that it has, and no others."""
    common = {field.name for field in fields(events.BaseEvent)}
    assert {name: own for name, (own, _) in rows().items()} == {
        kind.name: [field.name for field in fields(kind) if field.name not in common]
        for kind in get_args(events.Event)
    }
    page = (REPOSITORY / "docs" / "logging.md").read_text()
    assert all(f"| `{name}` |" in page or f"`{name}`, " in page or f", `{name}`" in page for name in common)


def test_the_table_of_events_tells_their_lines_in_the_log() -> None:
    """The logger of each, and its highest level; no line where the table says so."""
    # Its two sentences are written where the store is watched.
    written = {name: words for name, (_, words) in rows().items() if name != "shared.degraded"}
    lines = {kind.name: log._LINES[kind] for kind in get_args(events.Event) if kind in log._LINES}
    assert {name for name, words in written.items() if words != "-"} == set(lines)
    for name, (logger, level, _) in lines.items():
        assert f"`{logger._logger.name}`" in written[name]
        assert logging.getLevelName(level) in written[name]
