"""Gzip request bodies, and servers that refuse them."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

import llmopt
from llmopt.engine import request
from llmopt.engine.telemetry import EndpointMetrics
from llmopt.testing.clock import SimulatedClock, run_simulated
from llmopt.values.events import CompressionRefused, RequestCompression, ResponseCompression
from tests.support.emulators import OllamaEmulator, OpenAIEmulator, TEIEmulator
from tests.support.faults import (
    Answer,
    FaultServer,
    Request,
    Respond,
    Script,
    Stall,
    Wait,
    answer_openai,
    chat_payload,
    error_answer,
    json_answer,
    stream_answer,
)
from tests.support.streams import DONE, MODEL, config, word_events

LONG = "The bodies of requests are prose, and prose can be packed. " * 200
BAD = error_answer(400, "no such thing")
QUESTION = [{"role": "user", "content": LONG}]


def compressed(request: Request) -> bool:
    return request.header("content-encoding") == "gzip"


def unless_compressed(refusal: Answer, otherwise: Any = answer_openai) -> Callable[[Request], Any]:
    """A server that refuses compressed bodies."""

    def reply(request: Request) -> Any:
        if compressed(request):
            return refusal
        return otherwise(request) if callable(otherwise) else otherwise

    return reply


def client(server: FaultServer, **more: Any) -> llmopt.AsyncClient:
    options = {name: more.pop(name) for name in ("flags", "on_event", "clock", "transport") if name in more}
    return llmopt.AsyncClient(config(server, compress_requests=True, **more), **options)


def of(made: llmopt.AsyncClient) -> dict[str, Any]:
    (endpoints,) = made.stats().values()
    (found,) = endpoints.values()
    stats: dict[str, Any] = found
    return stats


async def test_bodies_of_8_kib_and_more_are_compressed() -> None:
    """One byte less is sent uncompressed."""
    async with FaultServer() as server, client(server) as made:
        server.default(answer_openai)
        await made.embed(MODEL, ["a"])
        around = len(server.requests[0].body) - 1
        await made.embed(MODEL, ["a" * (8191 - around)])
        await made.embed(MODEL, ["a" * (8192 - around)])
        stats = of(made)["compression"]
    assert [len(request.content()) for request in server.requests[1:]] == [8191, 8192]
    assert [compressed(request) for request in server.requests] == [False, False, True]
    last = server.requests[2]
    assert last.header("content-length") == str(len(last.body))
    assert last.header("content-type") == "application/json"
    assert last.json()["input"] == ["a" * (8192 - around)]
    saved = 8192 - len(last.body)
    assert saved > 8000
    assert stats == {"on": True, "compressed": 1, "refused": 0, "saved_sent": saved, "saved_received": 0}


async def test_requests_are_compressed_only_when_configured() -> None:
    """The profile of a server says no, a configuration may say yes, the flag no to both."""
    async with FaultServer() as server:
        server.default(answer_openai)
        async with llmopt.AsyncClient(config(server)) as made:
            await made.embed(MODEL, [LONG])
            assert of(made)["compression"]["on"] is False
        async with client(server, flags={"compression": False}) as made:
            await made.embed(MODEL, [LONG])
            assert of(made)["compression"]["on"] is False
    assert not any(compressed(request) for request in server.requests)


async def test_a_retry_sends_the_same_bytes() -> None:
    """Compressed once."""
    events: list[Any] = []
    async with FaultServer() as server, client(server, on_event=events.append) as made:
        server.play(error_answer(503, "busy"))
        server.default(answer_openai)
        await made.embed(MODEL, [LONG])
        stats = of(made)["compression"]
        origin = server.base_url
    first, second = server.requests
    assert first.body == second.body
    assert compressed(first)
    assert compressed(second)
    (told,) = [event for event in events if isinstance(event, RequestCompression)]
    assert (told.size, told.sent) == (len(first.content()), len(first.body))
    assert (told.provider, told.model, told.endpoint) == ("server", "m", origin)
    assert told.ratio > 2
    assert (stats["compressed"], stats["saved_sent"]) == (2, 2 * (told.size - told.sent))


async def test_a_long_body_is_compressed_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 256 KiB on; shorter ones are quicker where they are."""
    threads: list[tuple[int, bool]] = []
    usual = request._gzip

    def noted(body: bytes) -> bytes:
        threads.append((len(body), threading.current_thread() is threading.main_thread()))
        return usual(body)

    monkeypatch.setattr(request, "_gzip", noted)
    async with FaultServer() as server, client(server) as made:
        server.default(json_answer(chat_payload(["yes"])))
        for times in (4, 30):
            await made.chat(MODEL, [{"role": "user", "content": LONG * times}])
    assert [here for _, here in threads] == [True, False]
    assert threads[0][0] < 256 * 1024 < threads[1][0]
    assert [request.json()["messages"][0]["content"] for request in server.requests] == [LONG * 4, LONG * 30]


async def test_a_body_that_compression_does_not_shrink_is_sent_uncompressed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the reason."""
    monkeypatch.setattr(request, "_gzip", lambda body: body + b".")
    async with FaultServer() as server, client(server) as made:
        server.default(answer_openai)
        await made.embed(MODEL, [LONG])
    assert not compressed(server.requests[0])


REFUSALS = [
    error_answer(415, "Unsupported Media Type"),
    Answer(415, b""),
    json_answer({"error": r"invalid character '\x1f' looking for beginning of value"}, status=400),
    error_answer(400, "x", code="request_body_encoding_unsupported"),
    json_answer({"detail": "There was an error parsing the body"}, status=400),
    json_answer({"detail": [{"type": "json_invalid", "loc": ["body", 0], "msg": "bad"}]}, status=422),
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=range(len(REFUSALS)))
async def test_one_refusal_switches_compression_off(refusal: Answer) -> None:
    """The same request goes again at once as it is, without a retry; later ones are not compressed at all."""
    events: list[Any] = []
    async with FaultServer() as server, client(server, max_retries=0, on_event=events.append) as made:
        server.default(unless_compressed(refusal))
        for text in (LONG, LONG + "again"):
            found = await made.embed(MODEL, [text])
            assert found.vectors.shape == (1, 4)
        stats, origin = of(made), server.base_url
    assert [compressed(request) for request in server.requests] == [True, False, False]
    first, second, _ = server.requests
    assert second.body == first.content()
    assert (stats["requests"], stats["succeeded"], stats["errors"], stats["retries"]) == (3, 2, {}, 0)
    assert stats["breakers"]["m embeddings"] == {"origin": "closed", "model": "closed"}
    assert stats["budget"] == 500
    compression = stats["compression"]
    assert (compression["on"], compression["compressed"], compression["refused"]) == (False, 1, 1)
    assert compression["saved_sent"] == -len(first.body)
    (told,) = [event for event in events if isinstance(event, CompressionRefused)]
    assert (told.status, told.provider, told.endpoint) == (refusal.status, "server", origin)
    assert told.name == "compression.refused"


@pytest.mark.parametrize("proven", [True, False])
async def test_a_bad_request_keeps_compression_on(proven: bool) -> None:
    """It costs one more at most, and none where compressed bodies were taken before; compression stays on."""
    async with FaultServer() as server, client(server) as made:
        server.default(answer_openai)
        if proven:
            await made.embed(MODEL, [LONG])
        server.play(*[BAD] * (1 if proven else 2))
        with pytest.raises(llmopt.BadRequest, match="no such thing") as caught:
            await made.embed(MODEL, [LONG + "bad"])
        assert len(caught.value.attempts) == 1
        assert server.unplayed == 0
        await made.embed(MODEL, [LONG + "good"])
        assert of(made)["compression"]["on"] is True
    expected = [True, True, True] if proven else [True, False, True]
    assert [compressed(request) for request in server.requests] == expected


async def test_all_concurrent_refused_requests_are_sent_again() -> None:
    """Those that were under way when the first was refused, too; it is told once."""
    events: list[Any] = []
    texts = [f"{number} {LONG}" for number in range(12)]
    async with FaultServer() as server:
        server.default(unless_compressed(Answer(415, b"")))
        async with client(server, max_retries=0, max_batch_size=1, on_event=events.append) as made:
            found = await made.embed(MODEL, texts)
            assert found.vectors.shape == (12, 4)
            await made.embed(MODEL, [LONG])
    assert len([event for event in events if isinstance(event, CompressionRefused)]) == 1
    assert sum(not compressed(request) for request in server.requests) == 13


async def test_an_uncompressed_resend_that_fails_is_retried() -> None:
    """Its error is the attempt's, and is retried as such; the timeout holds for both together."""
    async with FaultServer() as server, client(server, max_retries=1) as made:
        server.play(Answer(415, b""), error_answer(503, "busy"))
        server.default(unless_compressed(Answer(415, b"")))
        found = await made.embed(MODEL, [LONG])
        assert found.vectors.shape == (1, 4)
        assert of(made)["errors"] == {"Overloaded": 1}
    # An outage says nothing about compression.
    assert [compressed(request) for request in server.requests] == [True, False, True, False]


def test_the_resend_shares_the_timeout_of_the_attempt() -> None:
    """The second has what the first has left of it."""

    async def main(clock: SimulatedClock) -> None:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:
            server.play(Script([Wait(1.5), Respond(Answer(415, b""))]), Script([Stall()]))
            async with client(server, max_retries=0, timeouts={"read": 2}, clock=clock) as made:
                started = clock.elapsed
                with pytest.raises(llmopt.AttemptTimeout):
                    await made.embed(MODEL, [LONG])
                assert clock.elapsed - started == pytest.approx(2)

    run_simulated(main)


async def test_chats_and_streams_are_compressed() -> None:
    """Compressed, and sent again uncompressed where that is refused."""
    async with FaultServer() as server, client(server) as made:
        server.default(json_answer(chat_payload(["yes"])))
        assert (await made.chat(MODEL, QUESTION)).text == "yes"
        server.default(stream_answer(["so", " be it"]))
        async with made.stream(MODEL, QUESTION) as stream:
            assert "".join([event.text async for event in stream]) == "so be it"
    assert [compressed(request) for request in server.requests] == [True, True]
    assert [request.json()["messages"] for request in server.requests] == [QUESTION] * 2


@pytest.mark.parametrize("refusal", REFUSALS[:3], ids=range(3))
async def test_a_refused_stream_request_is_sent_again_uncompressed(refusal: Answer) -> None:
    """At once and once; the next one is not compressed."""
    async with FaultServer() as server, client(server, max_retries=0) as made:
        server.default(unless_compressed(refusal, stream_answer(["so", " be it"])))
        for _ in range(2):
            async with made.stream(MODEL, QUESTION) as stream:
                assert "".join([event.text async for event in stream]) == "so be it"
        stats = of(made)
    assert [compressed(request) for request in server.requests] == [True, False, False]
    assert (stats["requests"], stats["succeeded"], stats["errors"]) == (3, 2, {})
    assert stats["compression"]["refused"] == 1


async def test_a_bad_stream_request_keeps_compression_on() -> None:
    """For streams too, with what the server says of it."""
    async with FaultServer() as server, client(server) as made:
        server.default(BAD)
        with pytest.raises(llmopt.BadRequest, match="no such thing"):
            async with made.stream(MODEL, QUESTION) as stream:
                await anext(stream)
        assert of(made)["compression"]["on"] is True
    assert [compressed(request) for request in server.requests] == [True, False]


async def test_a_custom_transport_sends_a_refused_request_again() -> None:
    """The same there."""
    async with FaultServer() as server:
        server.default(unless_compressed(Answer(415, b"")))
        async with client(server, transport=httpx.AsyncHTTPTransport()) as made:
            for _ in range(2):
                assert (await made.embed(MODEL, [LONG])).vectors.shape == (1, 4)
    assert [compressed(request) for request in server.requests] == [True, False, False]


@pytest.mark.parametrize(
    ("make", "entry", "reference"),
    [
        (OllamaEmulator, {"plugin": "local", "flavour": "ollama"}, "p/nomic-embed-text"),
        (OpenAIEmulator, {"plugin": "openai", "api_key": "test-key"}, "p/text-embedding-3-small"),
        (TEIEmulator, {"plugin": "local", "flavour": "tei"}, "p/m"),
    ],
    ids=["ollama", "openai", "tei"],
)
async def test_servers_that_do_not_decompress_switch_compression_off(
    make: Any, entry: dict[str, Any], reference: str
) -> None:
    """Each refuses with its own error message."""
    texts = [f"text number {number} of many that make a long request" for number in range(30)] * 7
    texts = [f"{text} {index}" for index, text in enumerate(texts)][: 32 if "tei" in str(entry) else None]
    texts = [text + " and so on and on" * 20 for text in texts]
    async with make() as server:
        entry = {**entry, "base_url": server.base_url, "compress_requests": True, "max_retries": 0}
        async with llmopt.AsyncClient({"providers": {"p": entry}}) as made:
            found = await made.embed(reference, texts)
            assert found.vectors.shape[0] == len(texts)
            stats = of(made)["compression"]
    assert (stats["on"], stats["refused"] >= 1) == (False, True)


async def test_a_server_that_decompresses_receives_compressed_requests() -> None:
    """Gets every long request compressed."""
    texts = [f"text number {number} of many that make a long request" for number in range(300)]
    async with OpenAIEmulator(accepts_gzip=True) as server:
        entry = {"base_url": server.base_url, "api_key": "test-key", "compress_requests": True}
        async with llmopt.AsyncClient({"providers": {"openai": entry}}) as made:
            found = await made.embed("openai/text-embedding-3-small", texts, dimensions=8)
            assert found.vectors.shape == (300, 8)
            stats = of(made)["compression"]
    assert (stats["on"], stats["compressed"], stats["refused"]) == (True, 1, 0)
    assert stats["saved_sent"] > 10_000


@pytest.mark.parametrize("own", [True, False])
async def test_accept_encoding_is_sent_unless_switched_off(own: bool) -> None:
    """Of our pool and of a transport of the user's."""
    async with FaultServer() as server:
        server.default(answer_openai)
        for flags in ({}, {"compression": False}):
            transport = None if own else httpx.AsyncHTTPTransport()
            async with client(server, flags=flags, transport=transport) as made:
                await made.embed(MODEL, ["a"])
    asked = [request.header_values("accept-encoding") for request in server.requests]
    assert asked == [["gzip, deflate"], ["identity"]]


async def test_a_compressed_stream_emits_its_sizes() -> None:
    """When it is over; likewise in the statistics."""
    events: list[Any] = []
    body = b"".join([*word_events(), DONE])
    sent = gzip.compress(body)
    async with FaultServer() as server, client(server, on_event=events.append) as made:
        headers = [("content-type", "text/event-stream"), ("content-encoding", "gzip")]
        server.default(Answer(200, sent, headers))
        async with made.stream(MODEL, QUESTION) as stream:
            [event async for event in stream]
        assert of(made)["compression"]["saved_received"] == len(body) - len(sent)
    (told,) = [event for event in events if isinstance(event, ResponseCompression)]
    assert (told.received, told.size) == (len(sent), len(body))


async def test_the_bytes_saved_by_compressed_responses_are_counted() -> None:
    """Bytes saved, whether or not anybody listens."""
    async with FaultServer() as server, client(server) as made:

        def reply(request: Request) -> Answer:
            plain = answer_openai(request)
            return Answer(200, gzip.compress(plain.body), [*plain.headers, ("content-encoding", "gzip")])

        server.default(reply)
        await made.embed(MODEL, [f"text {number}" for number in range(30)])
        (request,) = server.requests
        plain = answer_openai(request).body
        assert of(made)["compression"]["saved_received"] == len(plain) - len(gzip.compress(plain))
        json.dumps(made.stats())


def test_compression_counters_start_at_zero() -> None:
    """All there, all zero."""
    assert set(EndpointMetrics().stats()["compression"].values()) == {0}


async def test_without_pooling_each_request_opens_a_connection() -> None:
    """And the request has ``connection: close``."""
    async with FaultServer() as server:
        server.default(answer_openai)
        for pooling, connections in ((True, [1, 1, 1]), (False, [2, 3, 4])):
            before = len(server.requests)
            async with client(server, flags={"pooling": pooling}) as made:
                for number in range(3):
                    await made.embed(MODEL, [f"text {number}"])
                found = of(made)["connections"]
            requests = server.requests[before:]
            assert [request.connection for request in requests] == connections
            expected = [None if pooling else "close"] * 3
            assert [request.header("connection") for request in requests] == expected
            assert (found["created"], found["reused"]) == ((1, 2) if pooling else (3, 0))
            assert found["in_use"] == 0
            assert found["idle"] == (1 if pooling else 0)


async def test_an_in_process_engine_compresses_nothing() -> None:
    """There is no wire to spare."""
    entry = {"compress_requests": True}
    async with llmopt.AsyncClient({"providers": {"local": entry}}) as made:
        await made.embed("local/default", [LONG])
        assert of(made)["compression"]["on"] is False
