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
    json_answer,
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
FINISH = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])


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
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(unfinished_stream(*word_events(), FINISH))
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


SHAPES: dict[str, dict[str, Any] | list[Any]] = {
    "code and msg": {"code": 50501, "msg": "it broke"},
    "code and message": {"code": 50501, "message": "it broke", "data": None},
    "base_resp": {"id": "1", "choices": None, "base_resp": {"status_code": 1039, "status_msg": "it broke"}},
    "base_resp beside choices": {
        "choices": [{"index": 0, "delta": {}}],
        "base_resp": {"status_code": 1039, "status_msg": "it broke"},
    },
    "error_code": {"error_code": 336100, "error_msg": "it broke"},
    "extension": {"choices": [{"index": 0, "delta": {}}], "x_acme": {"error": "it broke"}},
    "errors": {"success": False, "errors": [{"code": 7009, "message": "it broke"}]},
    "problem details": {"type": "about:blank", "title": "Unavailable", "status": 503, "detail": "it broke"},
    "Spring": {"timestamp": 1, "status": 503, "error": "it broke", "path": "/v1/chat/completions"},
    "list": [{"error": {"code": 503, "message": "it broke"}}],
    "detail in a list": {"detail": [{"loc": ["body"], "msg": "it broke"}]},
    "nested": {"Response": {"Error": {"Code": "X", "Message": "it broke"}, "RequestId": "r"}},
    "flat": {"object": "error", "message": "it broke", "type": "internal", "code": 500},
}


@pytest.mark.row("E13")
@pytest.mark.parametrize("plugin", ["local", "compatible", "openai"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_an_error_of_any_shape_breaks_the_stream(plugin: str, shape: str) -> None:
    """It has no key ``error``, or not where it is expected, and the end follows as if all was well."""
    told = b"data: " + json.dumps(SHAPES[shape]).encode() + b"\n\n"
    entry = {"plugin": plugin, "api_key": "test-key"}
    async with FaultServer() as server, llmopt.AsyncClient(config(server, **entry)) as client:
        server.default(stream_script(*word_events(), told, DONE))
        error = await interrupted(client)
        assert is_idle(client)
    assert error.text == TEXT
    assert "it broke" in str(error)
    assert isinstance(error.__cause__, llmopt.LLMOptError)
    assert len(server.requests) == 1


@pytest.mark.row("E14")
async def test_events_of_unknown_types_pass() -> None:
    """Providers promise new ones: they are counted and kept, and are neither words nor an end."""
    unknown = [
        event(type="reasoning.summary", text="no word of the answer"),
        b'event: usage.hint\ndata: {"tokens": 3}\n\n',
        b"event: heartbeat\ndata: 12:00\n\n",
    ]
    names = ["reasoning.summary", "usage.hint", "heartbeat"]
    told: list[Any] = []
    async with FaultServer() as server, llmopt.AsyncClient(config(server), on_event=told.append) as client:
        where = server.base_url
        mixed = [piece for pair in zip(unknown, word_events()[1:4], strict=True) for piece in pair]
        server.play(stream_script(*mixed, *word_events()[4:], FINISH, DONE))
        found = await events_of(client)
        assert client.stats()["server"][where]["unknown_events"] == 3
    assert "".join(each.text for each in found) == TEXT
    kept = [each for each in found if each.unknown]
    assert [each.unknown for each in kept] == names
    assert kept[0].raw["text"] == "no word of the answer"
    assert kept[2].raw == {"event": "heartbeat", "data": "12:00"}
    counted = [each for each in told if each.name == "stream.unknown"]
    assert [(each.kind, each.model, each.endpoint) for each in counted] == [
        (name, "m", where) for name in names
    ]


@pytest.mark.row("E14")
async def test_unknown_events_do_not_begin_an_answer() -> None:
    """An error behind them is still one before the first event."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(event(type="ping"), event(type="queued", position=2), error_event()))
        server.default(answer_openai)
        assert await text_of(client) == "Hello world"
    assert len(server.requests) == 2


@pytest.mark.row("E15")
@pytest.mark.parametrize("reason", ["error", "network_error", "Error", "upstream error"])
@pytest.mark.parametrize("end", [DONE, b""], ids=["done", "no end"])
async def test_a_finish_reason_that_means_a_failure(reason: str, end: bytes) -> None:
    """Half an answer is no whole one, though the server ends it in good order."""
    finish = event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(stream_script(*word_events(), finish + end))
        error = await interrupted(client)
    assert error.text == TEXT
    assert f'finish_reason "{reason}"' in str(error)


@pytest.mark.row("E15")
@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        ("insufficient_system_resource", llmopt.Overloaded),
        ("abort", llmopt.ServerError),
        ("sensitive", llmopt.ContentFiltered),
        ("model_context_window_exceeded", llmopt.ItemTooLong),
        ("function_call_filter: MALFORMED_FUNCTION_CALL", llmopt.ServerError),
    ],
)
async def test_a_finish_reason_that_means_a_failure_to_its_provider(
    reason: str, cause: type[llmopt.LLMOptError]
) -> None:
    """The words are the plugin's; in a stream and in a whole reply."""
    entry = {"plugin": "compatible", "api_key": "test-key", "max_retries": 0}
    async with FaultServer() as server, llmopt.AsyncClient(config(server, **entry)) as client:
        server.play(
            stream_script(
                *word_events(), event(choices=[{"index": 0, "delta": {}, "finish_reason": reason}]), DONE
            ),
            json_answer({"choices": [{"message": {"content": "half an"}, "finish_reason": reason}]}),
        )
        error = await interrupted(client)
        with pytest.raises(cause):
            await client.chat(MODEL, MESSAGES)
    assert error.text == TEXT
    assert isinstance(error.__cause__, cause)


@pytest.mark.row("E15")
@pytest.mark.parametrize(
    ("own", "whole"), [(False, True), (True, False)], ids=["elsewhere", "at the provider"]
)
async def test_an_end_without_a_finish_reason(own: bool, whole: bool) -> None:
    """It completes nothing, unless the server is one of which nothing is known."""

    class Plugin:
        @llmopt.hookimpl
        def provider_profile(self) -> llmopt.Profile:
            base_url = server.base_url if own else "https://api.acme.example"
            return llmopt.Profile(base_url=base_url, key_required=False, stream_end="finish")

    async with FaultServer() as server:
        server.default(stream_script(*word_events(), DONE))
        async with llmopt.AsyncClient(config(server), plugins=[Plugin()]) as client:
            if whole:
                assert await text_of(client) == TEXT
            else:
                error = await interrupted(client)
                assert error.text == TEXT
                assert "without a finish reason" in str(error)


# Answers in another form than the one that was asked for.

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda body: body,
    "blanks first": lambda body: b"\r\n\n" + body,
    "comments first": lambda body: b": PROCESSING\n\n" * 3 + body,
    "BOM": lambda body: b"\xef\xbb\xbf" + body,
    "CR only": lambda body: body.replace(b"\n", b"\r"),
    "single line feeds": lambda body: body.replace(b"\n\n", b"\n"),
    "a prefix twice": lambda body: body.replace(b"data: ", b"data: data: "),
    "blanks around the end": lambda body: body.replace(b"[DONE]", b"  [DONE]\t"),
}
KINDS = ["application/json", "text/html", "application/stream+json", "binary/octet-stream", "text/plain",
         "text/event-stream, text/event-stream", "application/x-ndjson", ""]  # fmt: skip


@pytest.mark.row("E16")
@pytest.mark.parametrize("form", FORMS)
async def test_a_stream_is_one_whatever_its_content_type_says(form: str) -> None:
    """For a stream that was asked for, and for a whole answer."""
    body = FORMS[form](b"".join(word_events()) + FINISH + DONE)
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        for kind in KINDS:
            server.default(Answer(200, body, [("content-type", kind)] if kind else []))
            assert await text_of(client) == TEXT, kind
            reply = await client.chat(MODEL, MESSAGES)
            assert (reply.text, reply.finish_reason) == (TEXT, "stop"), kind
    assert len(server.requests) == 2 * len(KINDS)


@pytest.mark.row("E16")
@pytest.mark.parametrize("kind", [*KINDS, "text/event-stream"])
async def test_a_whole_answer_is_one_whatever_its_content_type_says(kind: str) -> None:
    """Also where a stream was asked for."""
    payload = json.dumps(chat_payload(WORDS)).encode()
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.default(Answer(200, payload, [("content-type", kind)] if kind else []))
        assert await text_of(client) == TEXT
        assert (await client.chat(MODEL, MESSAGES)).text == TEXT


@pytest.mark.row("E16")
@pytest.mark.parametrize(
    "pieces",
    [
        word_events(),
        [*word_events(), error_event()],
        [*word_events(), event(code=7, msg="it broke"), DONE],
        [DONE],
    ],
    ids=["no end", "an error", "an error and the end", "nothing"],
)
async def test_a_chat_answered_by_half_a_stream(pieces: list[bytes]) -> None:
    """It is no answer, and is asked for again like any other."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(Answer(200, b"".join(pieces), [("content-type", "text/event-stream")]))
        server.default(answer_openai)
        assert (await client.chat(MODEL, MESSAGES)).text == "Hello world"
    assert len(server.requests) == 2


SAID_OTHERWISE: dict[str, dict[str, Any]] = {
    "a whole message": {"message": {"role": "assistant", "content": "Hi"}},
    "text of a completion": {"text": "Hi"},
    "text beside an empty delta": {"delta": {}, "text": "Hi"},
    "typed parts": {"delta": {"content": [{"type": "text", "text": "Hi"}]}},
    "another number": {"index": 1, "delta": {"content": "Hi"}},
}


@pytest.mark.row("E17")
@pytest.mark.parametrize("form", SAID_OTHERWISE)
async def test_words_do_not_vanish(form: str) -> None:
    """Wherever in the choice they stand."""
    choice = {"finish_reason": None, **SAID_OTHERWISE[form]}
    end = {**choice, **{key: {} for key in ("delta", "message") if key in choice}, "finish_reason": "stop"}
    end.pop("text", None)
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(event(choices=[choice]), event(choices=[end]), DONE))
        assert await text_of(client) == "Hi"


@pytest.mark.row("E17")
@pytest.mark.parametrize(
    "thoughts",
    [
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"thinking": "hm"},
        {"reasoning": [{"type": "text", "text": "hm"}]},
        {"reasoning": {"content": "hm"}},
        {"reasoning_details": [{"type": "reasoning.summary", "summary": "hm"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "x"}]},
        {"reasoning": "hm", "reasoning_details": [{"type": "reasoning.text", "text": "hm"}]},
    ],
)
async def test_thoughts_do_not_vanish(thoughts: dict[str, Any]) -> None:
    """Whatever their key and form, and once."""
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(
            stream_script(event(choices=[{"index": 0, "delta": thoughts}]), *word_events(), FINISH, DONE)
        )
        found = await events_of(client)
    assert "".join(each.reasoning for each in found) == "hm"
    assert "".join(each.text for each in found) == TEXT


@pytest.mark.row("E18")
async def test_tool_calls_as_servers_write_them() -> None:
    """With another id in each fragment, without any, by an index that is text, in the old form."""
    ids = [{"index": 0, "id": f"c{number}", "function": {"name": "f", "arguments": piece}}
           for number, piece in enumerate(['{"x"', ": 1", "}"])]  # fmt: skip
    text_index = [
        {"index": "1", "function": {"name": "g", "arguments": '{"y"'}},
        {"index": "1", "function": {"arguments": ": 2}"}},
    ]
    deltas = [{"tool_calls": [call]} for call in (*ids, *text_index)]
    old = {"function_call": {"name": "h", "arguments": "{}"}}
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(
            stream_script(*(event(choices=[{"index": 0, "delta": delta}]) for delta in deltas), FINISH, DONE),
            stream_script(event(choices=[{"index": 0, "delta": old}]), FINISH, DONE),
            json_answer(
                {"choices": [{"message": {"content": None, **old}, "finish_reason": "function_call"}]}
            ),
        )
        async with client.stream(MODEL, MESSAGES) as stream:
            async for _ in stream:
                pass
        async with client.stream(MODEL, MESSAGES) as other:
            async for _ in other:
                pass
        reply = await client.chat(MODEL, MESSAGES)
    assert [(call.name, call.arguments) for call in stream.tool_calls] == [
        ("f", '{"x": 1}'),
        ("g", '{"y": 2}'),
    ]
    assert stream.tool_calls[0].id == "c0"
    made = [stream.tool_calls[1].id, other.tool_calls[0].id, reply.tool_calls[0].id]
    assert all(call_id.startswith("call_") for call_id in made)
    assert len(set(made)) == 3


# Too much.


@pytest.mark.row("E05")
async def test_an_endless_line_is_refused() -> None:
    """Stopped at the configured size, and not asked for again: the same would come."""
    flood = Repeat([Send(chunk(b"x" * 65536))])
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_event_bytes=1 << 20)) as client:
        server.play(Script([Send(head()), Send(chunk(b"data: ")), flood]))
        with pytest.raises(llmopt.InvalidResponse, match="max_event_bytes") as caught:
            await events_of(client)
        assert caught.value.reason == "too_large"
        assert len(server.requests) == 1
        server.play(Script([Send(head()), Send(chunk(b"".join(word_events()) + b"data: ")), flood]))
        assert (await interrupted(client)).text == TEXT
        await server.wait_all_closed()
        assert is_idle(client)


@pytest.mark.row("E05")
async def test_an_event_above_the_maximum_is_refused() -> None:
    """In many lines, none of them long."""
    lines = b"".join(b"data: " + b"x" * 1000 + b"\n" for _ in range(2200))
    async with FaultServer() as server, llmopt.AsyncClient(config(server, max_event_bytes=1 << 20)) as client:
        server.play(stream_script(*word_events(), lines + b"\n"))
        error = await interrupted(client)
    assert error.text == TEXT
    assert isinstance(error.__cause__, llmopt.InvalidResponse)
    assert error.__cause__.reason == "too_large"


@pytest.mark.row("E05")
@pytest.mark.parametrize("key", ["images", "audio"])
async def test_an_image_in_one_event(key: str) -> None:
    """Three megabytes are an honest answer; they stand in what the server sent."""
    data = "A" * (3 << 20)
    image = event(choices=[{"index": 0, "delta": {key: [{"image_url": {"url": data}}]}}])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        server.play(stream_script(*word_events(), image, FINISH, DONE))
        found = await events_of(client)
    assert "".join(each.text for each in found) == TEXT
    (raw,) = (each.raw["choices"][0]["delta"] for each in found if key in str(each.raw)[:200])
    assert raw[key][0]["image_url"]["url"] == data


@pytest.mark.row("E05")
async def test_a_body_that_is_no_stream_has_the_limit_of_a_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it calls itself; it is not read to its end."""
    monkeypatch.setattr("llmopt.engine.event_reader._MAX_BYTES", 200_000)
    flood = Repeat([Send(chunk(b"x" * 65536))])
    async with FaultServer() as server, llmopt.AsyncClient(config(server)) as client:
        for kind in ("text/event-stream", "application/json"):
            server.play(Script([Send(head(kind)), Send(chunk(b'{"x": "')), flood]))
            with pytest.raises(llmopt.InvalidResponse, match="200000 bytes, the limit for a chat") as caught:
                await events_of(client)
            assert caught.value.reason == "too_large"
        await server.wait_all_closed()


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
