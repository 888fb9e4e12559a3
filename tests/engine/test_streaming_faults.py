"""Rows E01 to E12 of the fault matrix: streams over real sockets, as the caller sees them."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

import llmopt
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support.faults import (
    Answer,
    Close,
    FaultServer,
    Framing,
    Repeat,
    Request,
    Reset,
    Script,
    Send,
    Stall,
    Wait,
    answer_openai,
    chat_payload,
    error_answer,
    stream_answer,
    stream_events,
)
from tests.support.scale import scaled
from tests.support.streams import (
    DONE,
    END,
    MESSAGES,
    MODEL,
    TEXT,
    WORDS,
    chunk,
    config,
    error_event,
    event,
    events_of,
    head,
    is_idle,
    stream_script,
    text_of,
    unfinished_stream,
    until,
    word_events,
)

WHOLE = b"".join(stream_events(WORDS))


async def interrupted(client: llmopt.AsyncClient, **options: Any) -> llmopt.StreamInterrupted:
    """The error of a stream that breaks off after it began."""
    with pytest.raises(llmopt.StreamInterrupted) as caught:
        await events_of(client, **options)
    return caught.value


# However it is cut.


@pytest.mark.row("E01")
@pytest.mark.parametrize("size", [1, 10, 100])
async def test_a_stream_split_at_any_byte(size: int) -> None:
    """The events are the same for every cut, and for every number of them parsed together."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_answer(WORDS))
        expected = await events_of(client)
        assert "".join(each.text for each in expected) == TEXT
        for cut in range(1, len(WHOLE), 1 if size == 100 else 7):
            server.play(stream_script(WHOLE[:cut], WHOLE[cut:]))
            assert await events_of(client, buffer_size=size) == expected, cut
        await until(lambda: is_idle(client))


@pytest.mark.row("E01")
@pytest.mark.parametrize("size", [1, 100])
async def test_a_stream_in_single_bytes(size: int) -> None:
    """As slow as a stream can be."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_answer(WORDS), stream_script(*(WHOLE[at : at + 1] for at in range(len(WHOLE)))))
        assert await events_of(client) == await events_of(client, buffer_size=size)


@pytest.mark.row("E02")
@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b"\n", b"\r\n"),
        lambda body: body.replace(b"\n", b"\r"),
        lambda body: b"\xef\xbb\xbf" + body,
        lambda body: body.replace(b"data:", b": a comment\n\ndata:"),
        lambda body: body.replace(b"data: ", b"data:"),
        lambda body: body.replace(b'"choices"', b'\ndata: "choices"'),
        lambda body: body.replace(b"data:", b"id: 7\nretry: 1\nunknown\ndata:"),
        lambda body: body.removesuffix(b"\n"),
        lambda body: body.removesuffix(b"\n\n"),
    ],
    ids=[
        "CRLF",
        "CR",
        "BOM",
        "comments",
        "no space",
        "two lines",
        "other fields",
        "no blank line",
        "no line end",
    ],
)
async def test_every_form_that_the_sse_standard_allows(change: Callable[[bytes], bytes]) -> None:
    """Whatever is allowed makes no difference."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(change(WHOLE)))
        assert await text_of(client) == TEXT


@pytest.mark.row("E02")
async def test_unicode_separators_do_not_end_lines() -> None:
    """U+2028 and U+0085 stand in a text like any other character."""
    words = ["a\u2028b", "c\u0085d", "e\u2029f"]
    body = b"".join(event(choices=[{"index": 0, "delta": {"content": word}}]) for word in words)
    raw = body.decode("unicode_escape").encode("utf-8")
    assert "\u2028".encode() in raw
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(raw, DONE))
        assert await text_of(client) == "".join(words)


# No end.


@pytest.mark.row("E03")
@pytest.mark.parametrize("end", [Send(END), Close()], ids=["ended chunks", "FIN"])
async def test_a_stream_without_its_end_is_an_error(end: Send | Close) -> None:
    """Never taken for a whole one, and not sent again."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(stream_script(*word_events(), end=(end, Close())))
        error = await interrupted(client)
        assert is_idle(client)
    assert (error.text, error.partial and error.partial.text) == (TEXT, TEXT)
    assert error.partial is not None
    assert error.partial.finish_reason is None
    assert len(server.requests) == 1
    assert [attempt.outcome for attempt in error.attempts] == ["StreamInterrupted"]


@pytest.mark.row("E03")
async def test_a_stream_without_done_needs_a_finish_reason() -> None:
    """A finish reason and then the end of the body is an end, where the profile says so."""
    finish = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(unfinished_stream(*word_events(), finish))
        assert await text_of(client) == TEXT


@pytest.mark.row("E03")
async def test_an_empty_stream_is_retried_once() -> None:
    """Nothing was handed out."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(unfinished_stream())
        server.default(answer_openai)
        assert await text_of(client) == "Hello world"
    assert len(server.requests) == 2


# Errors in the stream.


@pytest.mark.row("E04")
@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (error_event(), llmopt.LLMOptError),
        (b'event: error\ndata: {"message": "it broke"}\n\n', llmopt.LLMOptError),
        (b'error: {"code": 500, "message": "it broke"}\n\n' + DONE, llmopt.LLMOptError),
    ],
    ids=["data", "event", "field"],
)
async def test_an_error_as_first_event_is_like_an_http_error(
    told: bytes, kind: type[llmopt.LLMOptError]
) -> None:
    """It is tried again; when it stays, it is raised as itself and not as a stream's."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_retries=1)) as client:
        server.play(stream_script(told))
        server.default(answer_openai)
        assert await text_of(client) == "Hello world"
        assert len(server.requests) == 2
        server.default(stream_script(told))
        with pytest.raises(kind) as caught:
            await events_of(client)
        assert not isinstance(caught.value, llmopt.StreamError)
        assert is_idle(client)
    assert len(server.requests) == 4


@pytest.mark.row("E04")
async def test_an_exhausted_quota_as_first_event_is_not_retried() -> None:
    """By its verdict, as with an HTTP error."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(stream_script(error_event(code="insufficient_quota")))
        with pytest.raises(llmopt.QuotaExhausted):
            await events_of(client)
    assert len(server.requests) == 1


@pytest.mark.row("E04")
@pytest.mark.parametrize("size", [1, 10, 100])
@pytest.mark.parametrize("done", [False, True])
async def test_an_error_after_text_interrupts_the_stream(size: int, done: bool) -> None:
    """All words before it come first; nothing is repeated; the kind is the cause."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        told = error_event() + (DONE if done else b"")
        server.default(Answer(200, b"".join(word_events()) + told, [("content-type", "text/event-stream")]))
        got = ""
        with pytest.raises(llmopt.StreamInterrupted, match="it broke") as caught:
            async with client.stream(MODEL, MESSAGES, buffer_size=size) as stream:
                async for each in stream:
                    got += each.text
        assert got == stream.text == caught.value.text == TEXT
        assert isinstance(caught.value.__cause__, llmopt.LLMOptError)
        assert is_idle(client)
    assert len(server.requests) == 1


# Too much.


@pytest.mark.row("E05")
async def test_an_endless_line_is_refused() -> None:
    """Stopped at a mebibyte, and not asked for again: the same would come."""
    flood = Repeat([Send(chunk(b"x" * 65536))])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(Script([Send(head()), Send(chunk(b"data: ")), flood]))
        with pytest.raises(llmopt.InvalidResponse, match="line") as caught:
            await events_of(client)
        assert caught.value.reason == "too_large"
        assert len(server.requests) == 1
        server.play(Script([Send(head()), Send(chunk(b"".join(word_events()) + b"data: ")), flood]))
        assert (await interrupted(client)).text == TEXT
        await server.wait_all_closed()
        assert is_idle(client)


@pytest.mark.row("E05")
async def test_an_event_of_two_mebibytes_is_read() -> None:
    """In many lines, none of them long."""
    lines = b"".join(b"data: " + b"x" * 1000 + b"\n" for _ in range(2200))
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(*word_events(), lines + b"\n"))
        error = await interrupted(client)
    assert error.text == TEXT
    assert isinstance(error.__cause__, llmopt.InvalidResponse)
    assert error.__cause__.reason == "too_large"


@pytest.mark.row("E05")
async def test_a_flood_of_tiny_events_is_read_in_steady_memory() -> None:
    """Neither comments nor empty events pile up, however many."""
    tiny = chunk(b": ping\n\ndata:\n\n" * 1000)
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        flood = Repeat([Send(tiny)], times=50)
        server.play(Script([Send(head()), Send(chunk(word_events()[1])), flood, Send(chunk(DONE) + END)]))
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
            tracemalloc.start()
            try:
                got = [each async for each in stream]
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
    assert [each.last for each in got] == [True]
    assert peak < 32 << 20


# Silence, in simulated time and with the times that a hosted provider has.

PINGS = b'event: ping\ndata: {"type": "ping"}\n\n'
SIGNS = [None, b": comment\n\n", PINGS]


def in_simulated_time(
    play: Script, test: Callable[[llmopt.AsyncClient, SimulatedClock], Coroutine[Any, Any, None]]
) -> list[Request]:
    """Run a test against a server that plays a script for every request; nothing must be held at its end.

    Returns:
        The requests that were made.
    """

    async def main(clock: SimulatedClock) -> list[Request]:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.default(play)
            entry = {"plugin": "openai", "base_url": server.base_url, "api_key": "test-key"}
            async with llmopt.AsyncClient({"providers": {"server": entry}}, clock=clock) as client:
                await test(client, clock)
                await asyncio.sleep(1)
                assert is_idle(client)
            return server.requests

    return run_simulated(main)


def silent(*pieces: bytes, signs: bytes | None) -> Script:
    """These pieces, and then nothing but signs of life, one in ten seconds, if any."""
    alive = [Repeat([Wait(10.0), Send(chunk(signs))])] if signs else [Stall()]
    return Script([Send(head()), *(Send(chunk(piece)) for piece in pieces), *alive])


@pytest.mark.row("E06")
@pytest.mark.parametrize("signs", SIGNS, ids=["still", "comments", "pings"])
def test_a_missing_first_event_times_out(signs: bytes | None) -> None:
    """Signs of life are no event. It is tried again once, since it may have been carried out."""

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        with pytest.raises(llmopt.AttemptTimeout, match="no first event within 60 s"):
            await events_of(client)
        assert 121 <= clock.elapsed < 123

    assert len(in_simulated_time(silent(signs=signs), test)) == 2


@pytest.mark.row("E06")
def test_missing_response_headers_time_out() -> None:
    """The same time holds for it."""

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        with pytest.raises(llmopt.AttemptTimeout):
            await events_of(client)
        assert 121 <= clock.elapsed < 123

    assert len(in_simulated_time(Script([Stall()]), test)) == 2


@pytest.mark.row("E06")
@pytest.mark.parametrize("first", [b": thinking\n\n", word_events()[0]], ids=["comment", "role"])
def test_a_reasoning_model_has_five_minutes_to_the_first_event(first: bytes) -> None:
    """For its first word, whether or not the stream began with an event before it."""
    play = Script([Send(head()), Send(chunk(first)), Wait(290.0), Send(chunk(WHOLE) + END)])

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        assert await text_of(client, reasoning_effort="low") == TEXT

    assert len(in_simulated_time(play, test)) == 1


@pytest.mark.row("E06")
@pytest.mark.parametrize(
    ("signs", "seconds", "told"),
    [
        (None, 60, "nothing came for 60 s"),
        (SIGNS[1], 120, "keep-alives came for 120 s"),
        (PINGS, 120, "keep-alives came for 120 s"),
    ],
    ids=["still", "comments", "pings"],
)
def test_silence_in_a_stream_times_out(signs: bytes | None, seconds: float, told: str) -> None:
    """Bytes set one clock back, only words the other; what came is kept, nothing is repeated."""

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        with pytest.raises(llmopt.StreamIdle, match=told) as caught:
            await events_of(client)
        assert clock.elapsed == pytest.approx(seconds, abs=0.1)
        assert caught.value.text == TEXT

    assert len(in_simulated_time(silent(*word_events(), signs=signs), test)) == 1


@pytest.mark.row("E06")
def test_a_slow_reader_does_not_time_out() -> None:
    """The timeout counts only while the reader waits."""
    first, *others = word_events()
    play = Script([Send(head()), Send(chunk(first)), Wait(700.0), Send(chunk(b"".join(others) + DONE) + END)])

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
            await asyncio.sleep(690)
            async for _ in stream:
                await asyncio.sleep(100)
        assert stream.text == TEXT

    in_simulated_time(play, test)


@pytest.mark.row("E06")
def test_a_slow_writer_does_not_time_out() -> None:
    """A word in 59 seconds is enough."""
    steps = [step for piece in word_events() for step in (Wait(59.0), Send(chunk(piece)))]
    play = Script([Send(head()), *steps, Send(chunk(DONE) + END)])

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        assert await text_of(client) == TEXT
        assert clock.elapsed > 300

    in_simulated_time(play, test)


def test_the_deadline_holds_for_the_whole_stream() -> None:
    """It ends an active stream; the events received so far can be read."""
    word = Repeat([Send(chunk(word_events()[1])), Wait(10.0)])

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        with pytest.raises(llmopt.DeadlineExceeded, match="middle of the response"):
            async with client.stream(MODEL, MESSAGES, deadline=45) as stream:
                async for _ in stream:
                    pass
        assert clock.elapsed == pytest.approx(45)
        assert stream.text == WORDS[0] * 5

    in_simulated_time(Script([Send(head()), word]), test)


@pytest.mark.row("C11")
def test_a_blocked_loop_reads_received_data_before_it_times_out() -> None:
    """What lies in the socket when the timer is due wins."""
    words = word_events()
    play = Script(
        [Send(head()), Send(chunk(words[0])), Wait(30.0), Send(chunk(b"".join(words[1:]) + DONE) + END)]
    )

    async def test(client: llmopt.AsyncClient, clock: SimulatedClock) -> None:
        async def hold_up() -> None:
            # While nobody else has a turn, the server's time and the timeout both pass.
            await asyncio.sleep(30.0)
            clock.advance(100.0)

        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
            holding = asyncio.create_task(hold_up())
            async for _ in stream:
                pass
            await holding
        assert stream.text == TEXT

    in_simulated_time(play, test)


# The end.


@pytest.mark.row("E07")
async def test_the_final_event_ends_a_stream_on_an_open_connection() -> None:
    """It returns at once; the connection is closed soon after."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(WHOLE, end=[Stall()]))
        async with client.stream(MODEL, MESSAGES) as stream:
            assert [each.last async for each in stream][-1]
            assert client.stats()["server"][server.base_url]["in_flight"] == 0
        await server.wait_all_closed()
        assert is_idle(client)


@pytest.mark.row("E07")
async def test_the_last_chunk_may_follow_the_final_event_later() -> None:
    """Then the connection is kept."""
    gate = asyncio.Event()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(WHOLE, end=[Wait(gate), Send(END)]))
        assert await text_of(client) == TEXT
        gate.set()
        await until(lambda: is_idle(client))
        server.play(stream_script(WHOLE))
        assert await text_of(client) == TEXT
    assert server.connections == 1


@pytest.mark.row("E07")
async def test_a_client_closed_while_the_stream_ends() -> None:
    """Does not wait for that end, and leaves nothing behind."""
    async with FaultServer() as server:
        server.play(stream_script(WHOLE, end=[Stall()]))
        async with llmopt.AsyncClient(config(server)) as client:
            assert await text_of(client) == TEXT
        await server.wait_all_closed()


@pytest.mark.row("E08")
@pytest.mark.parametrize(
    "after",
    [DONE, word_events()[1], error_event(), b"data: no JSON\n\n", b"\xff\xfe"],
    ids=["a second end", "words", "an error", "no JSON", "no UTF-8"],
)
@pytest.mark.parametrize("together", [False, True])
async def test_bytes_after_the_final_event_are_ignored(after: bytes, together: bool) -> None:
    """Whatever it is."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(
            stream_script(WHOLE + after) if together else stream_script(WHOLE, after), stream_script(WHOLE)
        )
        for _ in range(2):
            assert await text_of(client) == TEXT


@pytest.mark.row("E08")
@pytest.mark.parametrize("almost", [b"data: [DONE]x\n\n", b"data: DONE\n\n", b"data: [done]\n\n"])
async def test_an_inexact_final_event_interrupts_the_stream(almost: bytes) -> None:
    """Anything near it is no JSON and no end."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(*word_events(), almost, DONE))
        assert (await interrupted(client)).text == TEXT


# Unreadable.


@pytest.mark.row("E09")
@pytest.mark.parametrize(
    "broken",
    [
        b"data: {broken\n\n",
        b"data: []\n\n",
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b"data: \xff\xfe\n\n",
        b'data: {"choices":[{"index":0,"delta":{"content":"K\xf6nig"}}]}\n\n',
    ],
    ids=["no JSON", "no object", "no text", "no UTF-8", "latin-1"],
)
async def test_an_unreadable_event_interrupts_the_stream(broken: bytes) -> None:
    """First it is tried again once; later it ends the stream. Never a replacement, never silence."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(stream_script(broken, DONE))
        with pytest.raises(llmopt.InvalidResponse):
            await events_of(client)
        assert len(server.requests) == 2
        server.default(stream_script(*word_events(), broken, DONE))
        error = await interrupted(client)
        assert error.text == TEXT
        assert isinstance(error.__cause__, llmopt.InvalidResponse)
        assert is_idle(client)
    assert len(server.requests) == 3


@pytest.mark.row("E09")
async def test_the_charset_parameter_is_ignored() -> None:
    """Streams are UTF-8, by the standard."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(WHOLE, kind="text/event-stream; charset=latin1"))
        assert await text_of(client) == TEXT


@pytest.mark.row("E09")
@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "application/octet-stream", None])
async def test_an_unspecific_content_type_is_accepted(kind: str | None) -> None:
    """What comes tells: a stream, an answer in one piece, or an error. However it is cut."""
    headers = [("content-type", kind)] if kind else []
    whole = json.dumps(chat_payload(["Hello"])).encode()
    error = json.dumps({"error": {"message": "no", "code": "insufficient_quota"}}).encode()
    start = Answer(200, b"", headers, Framing.CHUNKED).head()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        for body, text in ((WHOLE, TEXT), (b"\xef\xbb\xbf" + WHOLE, TEXT), (b" \n" + whole, "Hello")):
            pieces = [Send(chunk(body[:9])), Wait(0.0), Wait(0.0), Send(chunk(body[9:]) + END)]
            server.play(Script([Send(start), *pieces]))
            assert await text_of(client) == text
        server.play(Script([Send(start), Send(END)]))
        server.default(Answer(200, error, headers))
        with pytest.raises(llmopt.QuotaExhausted):
            await events_of(client)


@pytest.mark.row("E09")
async def test_an_html_page_instead_of_a_stream_is_refused() -> None:
    """A proxy's, as a rule."""
    page = Answer(200, b"<html>Sign in</html>", [("content-type", "text/html")])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(page)
        with pytest.raises(llmopt.InvalidResponse, match="not JSON"):
            await events_of(client)
    assert len(server.requests) == 2


@pytest.mark.row("E09")
async def test_a_json_response_instead_of_a_stream() -> None:
    """Its whole answer is one event, and its error an error."""

    def whole(request: Request) -> Answer:
        return answer_openai(Request(**{**vars_of(request), "body": b"{}"}))

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(whole)
        async with client.stream(MODEL, MESSAGES) as stream:
            events = [each async for each in stream]
        assert ([each.text for each in events], events[0].last) == (["Hello world"], True)
        assert stream.usage is not None
        assert stream.usage.requests == 1
        assert stream.reply.finish_reason == "stop"
        server.default(error_answer(200, "no", code="insufficient_quota"))
        with pytest.raises(llmopt.QuotaExhausted):
            await events_of(client)


def vars_of(request: Request) -> dict[str, Any]:
    import attrs

    return {each.name: getattr(request, each.name) for each in attrs.fields(Request)}


# Broken connections.


@pytest.mark.row("E10")
@pytest.mark.parametrize("end", [Reset(), Close()], ids=["RST", "FIN"])
async def test_a_break_after_every_event(end: Reset | Close) -> None:
    """What came is kept, exactly; a request is repeated only while nothing was handed out, and once."""
    events = word_events()
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, flags={"breaker": False})) as client,
    ):
        for count in range(len(events) + 1):
            server.requests.clear()
            server.default(stream_script(*events[:count], end=[end]))
            if count == 0:
                with pytest.raises((llmopt.ConnectionLost, llmopt.InvalidResponse)):
                    await events_of(client)
                assert len(server.requests) == 2
                continue
            error = await interrupted(client)
            assert error.text == "".join(WORDS[: count - 1])
            assert len(server.requests) == 1
            assert is_idle(client)


# Readers that go.


@pytest.mark.row("E11")
async def test_many_streams_left_after_the_first_event() -> None:
    """Neither connection nor task nor memory stays behind."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server, pool_size=10)) as client:
        server.default(Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()]))

        async def one() -> None:
            async with client.stream(MODEL, MESSAGES) as stream:
                async for _ in stream:
                    break

        async def many(count: int) -> None:
            for _ in range(count // 10):
                await asyncio.gather(*(one() for _ in range(10)))

        await many(100)
        await server.wait_all_closed()
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            await many(scaled(300, nightly=900))
            await server.wait_all_closed()
            server.requests.clear()
            gc.collect()
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert grown < scaled(100_000, nightly=300_000)
        assert is_idle(client)
        server.default(answer_openai)
        assert await text_of(client) == "Hello world"
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.row("E11")
async def test_an_exception_in_the_block_releases_the_connection() -> None:
    """It is raised unchanged; the connection is released."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()]))
        with pytest.raises(KeyError, match="mine"):
            async with client.stream(MODEL, MESSAGES) as stream:
                async for _ in stream:
                    raise KeyError("mine")
        await server.wait_all_closed()
        assert is_idle(client)
        assert stream.reply.finish_reason is None


@pytest.mark.row("E11")
async def test_a_stream_that_is_not_closed_warns() -> None:
    """The garbage collector releases it with a ResourceWarning."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()]))
        stream = client.stream(MODEL, MESSAGES)
        await anext(stream)
        with pytest.warns(ResourceWarning, match="unclosed <ChatStream running"):
            del stream
        await server.wait_all_closed()
        assert is_idle(client)


@pytest.mark.row("E11")
async def test_an_unused_stream_does_not_warn() -> None:
    """Nothing was sent, so there is nothing to warn of."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            client.stream(MODEL, MESSAGES)
            gc.collect()
    assert server.requests == []


@pytest.mark.row("E11")
async def test_the_client_does_not_read_ahead_of_a_slow_reader() -> None:
    """What is not asked for stays with the server, but for the socket's buffers."""
    word = chunk(event(choices=[{"index": 0, "delta": {"content": "x" * 1000}}]) * 100)
    sent = 0

    class Counted:
        async def run(self, line: Any) -> None:
            nonlocal sent
            await line.send(word)
            sent += len(word)

    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(Script([Send(head()), Repeat([Counted()])]))
        async with client.stream(MODEL, MESSAGES) as stream:
            await anext(stream)
            before = -1
            while before != sent:
                before = sent
                for _ in range(300):
                    await asyncio.sleep(0)
            assert sent < 16 << 20
        await server.wait_all_closed()


# Refusals.


@pytest.mark.row("E12")
@pytest.mark.parametrize("status", [429, 500])
@pytest.mark.parametrize("size", [100, 200_000], ids=["short", "long"])
async def test_a_hundred_refusals_leave_nothing_behind(status: int, size: int) -> None:
    """On ten connections; of a long body no more is read than is needed."""
    flags = {"retry": False, "breaker": False, "limiter": False}
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, pool_size=10, max_concurrency=10), flags=flags) as client,
    ):
        server.default(error_answer(status, "x" * size))

        async def refused() -> None:
            with pytest.raises(llmopt.ProviderError) as caught:
                await events_of(client)
            assert caught.value.status == status

        await asyncio.gather(*(refused() for _ in range(100)))
        assert len(server.requests) == 100
        assert is_idle(client)
        if size == 100:
            assert server.connections <= 10
        server.default(answer_openai)
        assert await text_of(client) == "Hello world"


async def test_a_stream_that_ends_with_the_connection() -> None:
    """Ended by the connection's end, it is as good as any."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_answer(WORDS, framing=Framing.EOF))
        assert await text_of(client) == TEXT
        await until(lambda: is_idle(client))
