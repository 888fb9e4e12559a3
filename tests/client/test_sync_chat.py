"""Chats of the synchronous client."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import llmopt
from tests.support.faults import (
    Script,
    Send,
    ServerThread,
    Stall,
    answer_openai,
    error_answer,
    serving,
    stream_answer,
    stream_events,
)
from tests.support.streams import (
    MESSAGES,
    MODEL,
    TEXT,
    WORDS,
    chunk,
    config,
    head,
    is_idle,
    stream_script,
    unfinished_stream,
    word_events,
)

NEVER_ENDING = Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()])


@pytest.fixture
def thread() -> Iterator[ServerThread]:
    with serving() as made:
        made.server.default(answer_openai)
        yield made


@pytest.fixture
def client(thread: ServerThread) -> Iterator[llmopt.Client]:
    with llmopt.Client(config(thread.server)) as made:
        yield made


def resting(client: llmopt.Client, thread: ServerThread) -> bool:
    """Whether nothing is held, once the server has seen its connections go."""
    thread.run(thread.server.wait_all_closed())
    return is_idle(client)  # type: ignore[arg-type] # looks at the stats alone


def test_a_chat_returns_its_reply(client: llmopt.Client) -> None:
    """In one piece."""
    assert client.chat(MODEL, MESSAGES, temperature=0).text == "Hello world"


@pytest.mark.parametrize("size", [1, 2, 100])
def test_a_stream_returns_its_events(size: int, client: llmopt.Client, thread: ServerThread) -> None:
    """All its events, and the answer afterwards."""
    thread.server.default(lambda _: stream_script(*stream_events(WORDS)))
    with client.stream(MODEL, MESSAGES, buffer_size=size) as stream:
        events = list(stream)
        assert list(stream) == []
    assert "".join(each.text for each in events) == stream.text == TEXT
    assert (events[-1].last, stream.finish_reason, stream.reply.text) == (True, "stop", TEXT)


def test_events_are_delivered_as_they_arrive(client: llmopt.Client, thread: ServerThread) -> None:
    """Each before the next is sent, and the answer grows with what was handed out."""
    gates = [asyncio.Event() for _ in word_events()]
    steps = []
    from tests.support.faults import Wait

    for piece, gate in zip(word_events(), gates, strict=True):
        steps += [Send(chunk(piece)), Wait(gate)]  # type: ignore[list-item] # steps of two kinds
    thread.server.default(Script([Send(head()), *steps, Send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")]))
    with client.stream(MODEL, MESSAGES) as stream:
        for count, gate in enumerate(gates):
            next(stream)
            assert stream.text == "".join(WORDS[:count])
            thread.call(gate.set)
        assert next(stream).last


def test_a_stream_works_without_a_with_block(client: llmopt.Client) -> None:
    """Begun by the first event asked for."""
    stream = client.stream(MODEL, MESSAGES)
    assert [each.text for each in stream] == ["", "Hello", " world", "", ""]


@pytest.mark.row("E04")
def test_error_statuses_raise(client: llmopt.Client, thread: ServerThread) -> None:
    """Raised on entering, and by a chat."""
    thread.server.default(error_answer(404, "no such model"))
    with pytest.raises(llmopt.NotFound), client.stream(MODEL, MESSAGES):
        raise AssertionError
    with pytest.raises(llmopt.NotFound):
        client.chat(MODEL, MESSAGES)
    with pytest.raises(llmopt.InvalidInput):
        client.stream(MODEL, "Hello?")  # type: ignore[arg-type] # what is tested


@pytest.mark.row("E03")
def test_a_stream_without_an_end(client: llmopt.Client, thread: ServerThread) -> None:
    """With what had come, which was handed out before."""
    thread.server.default(unfinished_stream(*word_events()))
    got = []
    with pytest.raises(llmopt.StreamInterrupted) as caught:
        for each in client.stream(MODEL, MESSAGES):
            got.append(each.text)  # what came before the error is wanted
    assert "".join(got) == caught.value.text == TEXT


@pytest.mark.row("E11")
@pytest.mark.parametrize("how", ["break", "raise", "close"])
def test_leaving_the_block_early_closes_the_stream(
    how: str, client: llmopt.Client, thread: ServerThread
) -> None:
    """The connection is released; events already delivered stay."""
    thread.server.default(NEVER_ENDING)
    try:
        with client.stream(MODEL, MESSAGES) as stream:
            for _ in stream:
                if how == "raise":
                    raise KeyError
                if how == "close":
                    stream.close()
                break
    except KeyError:
        assert how == "raise"
    assert resting(client, thread)
    assert list(stream) == []


@pytest.mark.row("E11")
def test_a_dropped_stream_warns(client: llmopt.Client, thread: ServerThread) -> None:
    """With a warning."""
    thread.server.default(NEVER_ENDING)
    stream = client.stream(MODEL, MESSAGES)
    next(stream)
    with pytest.warns(ResourceWarning, match="unclosed <SyncChatStream running"):
        del stream
    assert resting(client, thread)


def test_ctrl_c_ends_the_wait(client: llmopt.Client, thread: ServerThread) -> None:
    """The answer so far stays, and the request is given up."""
    thread.server.default(NEVER_ENDING)
    with client.stream(MODEL, MESSAGES) as stream:
        for _ in word_events():
            next(stream)
        killer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
        killer.start()
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        assert stream.text == TEXT
    assert resting(client, thread)


def test_closing_the_client_ends_its_streams(thread: ServerThread) -> None:
    """The next look says so, and closing the stream does no harm."""
    thread.server.default(NEVER_ENDING)
    client = llmopt.Client(config(thread.server))
    stream = client.stream(MODEL, MESSAGES)
    next(stream)
    client.close()
    with pytest.raises(llmopt.LLMOptError):
        for _ in stream:
            pass
    stream.close()
    with pytest.raises(llmopt.ClientClosed):
        client.stream(MODEL, MESSAGES)
    del stream
    gc.collect()


@pytest.mark.row("C08")
def test_streams_work_in_threads_and_inside_a_running_loop(
    client: llmopt.Client, thread: ServerThread
) -> None:
    """Several streams at once."""
    thread.server.default(stream_answer(WORDS))

    def one(_: int) -> str:
        with client.stream(MODEL, MESSAGES) as stream:
            return "".join(each.text for each in stream)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(40))) == [TEXT] * 40

    async def inside() -> str:
        return one(0)

    assert asyncio.run(inside()) == TEXT
