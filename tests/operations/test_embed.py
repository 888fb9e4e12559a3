"""Texts and options that are refused before any I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmopt
from llmopt import InvalidInput
from llmopt.client.components import check_word
from llmopt.operations.call_options import EmbedOptions
from llmopt.operations.embed import check_texts_argument, embed_call, text_error
from tests.support.configuration import provider_config
from tests.support.faults import (
    Answer,
    FaultServer,
    Request,
    Respond,
    Script,
    Stall,
    Wait,
    answer_openai,
    error_answer,
    serving,
    vector_for,
)


@pytest.mark.row("I02")
@pytest.mark.parametrize("text", ["a", " ", "\x00", "\u2028", "\ufeff", "é", "👩‍👩‍👧", "a" * 100_000])
def test_odd_texts_can_be_sent(text: str) -> None:
    """White space, NUL, line separators, BOM and emoji are texts like any other."""
    assert text_error(text, 0) is None


@pytest.mark.row("I01")
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "empty"),
        (b"a", "bytes"),
        (None, "NoneType"),
        (3, "int"),
        (["a"], "list"),
        ("a\ud800b", "surrogate"),
    ],
)
def test_unusable_texts_are_named_by_index(text: object, word: str) -> None:
    """The message says which one and what is wrong with it."""
    fault = text_error(text, 17)
    assert fault is not None
    assert fault.index == 17
    assert "17" in fault.message
    assert word in fault.message


@pytest.mark.row("I01")
@pytest.mark.parametrize("texts", ["one text", b"bytes", {"a": 1}, None, 5, object()])
def test_anything_but_a_list_of_texts_is_refused(texts: Any) -> None:
    """A single text is not taken for a list of characters."""
    with pytest.raises(InvalidInput, match="list of str"):
        check_texts_argument(texts)


@pytest.mark.row("I05")
@pytest.mark.parametrize("dimensions", [0, -1, True, "5", 1.5, 10**9])
def test_invalid_dimensions_are_refused(dimensions: Any) -> None:
    """Only a positive whole number of sensible size will do."""
    with pytest.raises(InvalidInput, match="dimensions"):
        embed_call("m", EmbedOptions(dimensions=dimensions))


@pytest.mark.row("I05")
def test_extra_must_be_json() -> None:
    """Cycles, foreign objects and numbers that are not finite are refused."""
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    for extra in (
        {"a": object()},
        cycle,
        {"a": float("nan")},
        {"a": [1, {"b": float("inf")}]},
        {1: "a"},
        ["a"],
    ):
        with pytest.raises(InvalidInput, match="extra"):
            embed_call("m", EmbedOptions(extra=extra))  # type: ignore[arg-type] # wrong on purpose


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("errors", "'raise' or 'return'"),
        ("when_open", "'fail' or 'wait'"),
        ("priority", "'interactive' or 'bulk'"),
        ("cached", "'auto', 'refresh' or 'offline'"),
        ("order", "'input' or 'completion'"),
    ],
)
def test_an_option_that_is_none_of_its_words_is_refused(option: str, words: str) -> None:
    """The message has the words, and what was given instead."""
    with pytest.raises(llmopt.ConfigError, match=f"^{option} must be {words}, not 'x'.$"):
        check_word(option, "x")


def test_extra_is_a_copy() -> None:
    """What the caller does with the mapping later changes nothing."""
    extra = {"user": "x"}
    call = embed_call("m", EmbedOptions(extra=extra))
    extra["user"] = "y"
    assert call.extra == {"user": "x"}


# What is handed in, and that it comes back in its place.

MODEL = "server/m"


config = provider_config


def rows(texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array([vector_for(text) for text in texts], dtype=np.float32)


@pytest.mark.row("I01")
async def test_nothing_to_embed_sends_nothing() -> None:
    """Of any kind of iterable."""

    async def none() -> AsyncIterator[str]:
        for text in ():
            yield text

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        for texts in ([], (), iter([]), none(), {}.keys()):
            found = await client.embed(MODEL, texts)
            assert found.vectors.shape == (0, 0)
        assert [part async for part in client.embed_iter(MODEL, [])] == []
    assert server.requests == []


@pytest.mark.row("I01")
async def test_every_kind_of_iterable_is_accepted() -> None:
    """And texts that are a subclass of str, numpy's among them."""

    class Text(str):
        __slots__ = ()

    async def asynchronous() -> AsyncIterator[str]:
        for text in ("a", "b"):
            yield text

    kinds: list[Any] = [
        ["a", "b"],
        ("a", "b"),
        iter(["a", "b"]),
        (text for text in "ab"),
        asynchronous(),
        dict.fromkeys(["a", "b"]).keys(),
        [Text("a"), np.str_("b")],
        np.array(["a", "b"]),
    ]
    async with FaultServer() as server, llmopt.AsyncClient(config(server), flags={"cache": False}) as client:
        for texts in kinds:
            np.testing.assert_array_equal((await client.embed(MODEL, texts)).vectors, rows(["a", "b"]))


@pytest.mark.row("I01", "I02")
@pytest.mark.parametrize("bad", ["", None, 3, b"b", ["b"], "\ud800"])
async def test_a_bad_text_is_named_by_its_index_before_sending(bad: Any) -> None:
    """With errors="return" the others are embedded, and it alone is not."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        with pytest.raises(llmopt.InvalidInput) as caught:
            await client.embed(MODEL, ["a", "b", bad, "c"])
        assert caught.value.index == 2
        assert server.requests == []
        found = await client.embed(MODEL, ["a", "b", bad, "c"], errors="return")
        assert set(found.errors) == {2}
        np.testing.assert_array_equal(found.vectors[[0, 1, 3]], rows(["a", "b", "c"]))


@pytest.mark.row("I02")
async def test_a_text_of_ten_megabytes_is_sent_unchanged() -> None:
    """Unless the provider says that it is too long."""
    text = "ä" * 5_000_000
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(answer_openai)
        found = await client.embed(MODEL, [text], errors="return")
        if not found.errors:
            np.testing.assert_array_equal(found.vectors, rows([text]))
        else:
            assert isinstance(found.errors[0], llmopt.ItemTooLong)
            assert server.requests == []


@pytest.mark.row("I03")
async def test_a_repeated_text_is_sent_once() -> None:
    """And a thousand rows."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        found = await client.embed(MODEL, ["same", "other", *["same"] * 998])
        parts = [part async for part in client.embed_iter(MODEL, ["again"] * 30)]
    assert [request.json()["input"] for request in server.requests] == [["same", "other"], ["again"]]
    np.testing.assert_array_equal(found.vectors, rows(["same", "other", *["same"] * 998]))
    assert sum(len(part) for part in parts) == 30


@pytest.mark.row("I04")
async def test_an_iterable_that_raises_delivers_earlier_results_first() -> None:
    """What was taken is finished and comes first; nothing is under way afterwards."""

    def source() -> Iterator[str]:
        for number in range(100):
            yield f"text {number}"
        raise OSError("cursor lost")

    got: list[int] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        with pytest.raises(OSError, match="cursor lost"):
            async for part in client.embed_iter(MODEL, source()):
                np.testing.assert_array_equal(
                    part.vectors, rows([f"text {part.start + row}" for row in range(len(part))])
                )
                got += range(part.start, part.start + len(part))
        assert got == list(range(100))
        with pytest.raises(OSError, match="cursor lost"):
            await client.embed(MODEL, source())
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("I04")
async def test_an_endless_iterable_is_read_as_far_as_needed() -> None:
    """Leaving the block stops it."""
    taken = 0

    async def source() -> AsyncIterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield f"text {taken}"

    seen = 0
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_batch_size=4)) as client:
        async with client.embed_iter(MODEL, source()) as parts:
            async for part in parts:
                seen += len(part)
                assert taken <= seen + 4 * 8 * 3
                if seen >= 200:
                    break
        stopped = taken
        await client.embed(MODEL, ["afterwards"])
        assert taken == stopped
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("I04")
async def test_a_slow_iterable_does_not_delay_finished_batches() -> None:
    """The parts of what it gave come while it thinks of more, and cancelling it leaves nothing behind."""
    gate = asyncio.Event()

    async def source() -> AsyncIterator[str]:
        for number in range(8):
            yield f"text {number}"
        await gate.wait()
        yield "last"

    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_batch_size=4)) as client:
        parts = client.embed_iter(MODEL, source())
        assert [(await anext(parts)).start for _ in range(2)] == [0, 4]
        waiting = asyncio.ensure_future(anext(parts))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await parts.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("I04")
async def test_in_the_order_of_completion_a_slow_part_holds_up_no_other() -> None:
    """It comes last, and ``start`` tells its place; an exception of the iterable comes after all parts."""

    def source() -> Iterator[str]:
        yield from (f"text {number}" for number in range(12))
        raise OSError("cursor lost")

    def reply(request: Request) -> Answer | Script:
        slow = "text 0" in request.json()["input"]
        return Script([Wait(gate), Respond(answer_openai)]) if slow else answer_openai(request)

    gate = asyncio.Event()
    got: dict[int, np.ndarray[Any, Any]] = {}
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_batch_size=2)) as client:
        server.default(reply)
        with pytest.raises(OSError, match="cursor lost"):
            async for part in client.embed_iter(MODEL, source(), order="completion"):
                got[part.start] = part.vectors
                if len(got) == 5:
                    gate.set()
    assert sorted(got) == list(range(0, 12, 2))
    assert list(got)[-1] == 0
    in_order = np.concatenate([got[start] for start in sorted(got)])
    np.testing.assert_array_equal(in_order, rows([f"text {number}" for number in range(12)]))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("I04")
async def test_in_the_order_of_completion_a_failure_is_raised_at_once() -> None:
    """While an earlier part is under way, which is cancelled; with ``errors="return"`` all parts come."""

    def reply(request: Request) -> Answer | Script:
        (text,) = request.json()["input"]
        if text == "slow":
            return Script([Stall()])
        return error_answer(400, "bad text") if text == "bad" else answer_openai(request)

    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_batch_size=1)) as client:
        server.default(reply)
        texts = ["slow", "bad", "good"]
        with pytest.raises(llmopt.LLMOptError, match="bad text"):
            async for part in client.embed_iter(MODEL, texts, order="completion"):
                assert part.start == 2
        async with client.embed_iter(MODEL, texts, errors="return", order="completion") as parts:
            found = {part.start: dict(part.errors) for part in [await anext(parts), await anext(parts)]}
        assert sorted(found) == [1, 2]
        assert not found[2]
        assert isinstance(found[1][1], llmopt.BadRequest)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("I04")
async def test_a_list_changed_during_the_call_is_embedded_unchanged() -> None:
    """The call has its own."""
    texts = [f"text {number}" for number in range(50)]
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        call = asyncio.create_task(client.embed(MODEL, texts))
        await server.wait_requests(1)
        texts[:] = ["changed"] * 3
        found = await call
    np.testing.assert_array_equal(found.vectors, rows([f"text {number}" for number in range(50)]))


@pytest.mark.row("I05")
@pytest.mark.parametrize("extra", [{"a": float("nan")}, {"a": object()}, {1: 2}])
async def test_invalid_options_are_refused_before_sending(extra: Any) -> None:
    """Of the caller's own making, so the message says which."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        with pytest.raises(llmopt.InvalidInput, match="extra"):
            await client.embed(MODEL, ["a"], extra=extra)
        for dimensions in (0, -1, True, "5", 10**9):
            with pytest.raises(llmopt.InvalidInput, match="dimensions"):
                await client.embed(MODEL, ["a"], dimensions=dimensions)  # type: ignore[arg-type] # wrong on purpose
    assert server.requests == []


@pytest.mark.row("I06")
def test_rows_match_their_texts_for_any_texts_and_batches() -> None:
    """Each row is its text's, through any cutting into requests."""
    texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), max_size=40)
    with serving() as thread:
        thread.server.default(answer_openai)
        clients = {
            size: llmopt.Client(config(thread.server, max_batch_size=size), flags={"cache": False})
            for size in (1, 2, 7, 64)
        }

        @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(texts, st.sampled_from(sorted(clients)))
        def check(given_texts: list[str], size: int) -> None:
            found = clients[size].embed(MODEL, given_texts)
            if given_texts:
                np.testing.assert_array_equal(found.vectors, rows(given_texts))
            else:
                assert found.vectors.shape == (0, 0)

        check()
        for client in clients.values():
            client.close()
