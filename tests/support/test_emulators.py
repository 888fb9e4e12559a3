"""Tests of the emulators: their answers follow docs/development/provider-facts.md, as seen by plain HTTP, by official
clients, and by JSON schemas.
"""

import asyncio
import base64
import gzip
import io
import itertools
import json
import math
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from multidict import CIMultiDictProxy

from tests.support.emulators import (
    AzureEmulator,
    Emulator,
    MistralEmulator,
    OllamaEmulator,
    OllamaModel,
    OpenAIEmulator,
    TEIEmulator,
    go_duration,
    serve_in_thread,
    token_count,
    vector_for,
)
from tests.support.emulators.base import Budget
from tests.support.scale import NIGHTLY

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT.parent / "shared" / "samples"

SMALL = "text-embedding-3-small"
CLASSIC = "/openai/deployments/{}/{}?api-version=2024-10-21"
HELLO: list[Any] = [{"role": "user", "content": "Hello there, world"}]
HELLO_PIECES = ["You", " said:", " Hello", " there,", " world"]
HELLO_TEXT = "You said: Hello there, world"


@dataclass(frozen=True)
class Response:
    """One response, read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of a server-sent event stream; ``[DONE]`` stays text."""
        assert self.headers["Content-Type"].startswith("text/event-stream")
        blocks = self.body.decode().removesuffix("\n\n").split("\n\n")
        data = [block.removeprefix("data: ") for block in blocks]
        return [text if text == "[DONE]" else json.loads(text) for text in data]


async def send(
    server: Emulator,
    path: str,
    body: Any = None,
    *,
    key: str | None = "test-key",
    headers: Mapping[str, str] | None = None,
) -> Response:
    """POST a JSON value or bytes, or GET where there is no body."""
    sent = {"Content-Type": "application/json", **(headers or {})}
    if key is not None:
        sent.setdefault("Authorization", f"Bearer {key}")
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            "GET" if body is None else "POST",
            server.origin + path,
            data=None if body is None else io.BytesIO(data),  # aiohttp warns of large bodies given as bytes
            headers=sent,
        ) as response,
    ):
        return Response(response.status, response.headers, await response.read())


async def embed(server: Emulator, given: Any, path: str = "/v1/embeddings", **more: Any) -> Response:
    """POST an OpenAI-shaped embeddings request for the server's usual model."""
    model = {MistralEmulator: "mistral-embed", OllamaEmulator: "nomic-embed-text"}.get(type(server), SMALL)
    return await send(server, path, {"model": model, "input": given, **more})


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


def rows_of(response: Response) -> list[Any]:
    """The vectors of an OpenAI-shaped reply, by index."""
    data = sorted(response.json["data"], key=lambda row: row["index"])
    return [row["embedding"] for row in data]


def decode_base64(text: str, dtype: str = "<f4") -> Any:
    return np.frombuffer(base64.b64decode(text), dtype=dtype)


def tokens(count: int) -> str:
    """A text of `count` tokens."""
    return "abcd" * count


class Clock:
    """Time that stands still until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def openai() -> AsyncIterator[OpenAIEmulator]:
    async with OpenAIEmulator() as server:
        yield server


@pytest.fixture
async def azure() -> AsyncIterator[AzureEmulator]:
    async with AzureEmulator(accept_tokens={"entra-token"}) as server:
        yield server


@pytest.fixture
async def mistral() -> AsyncIterator[MistralEmulator]:
    async with MistralEmulator() as server:
        yield server


@pytest.fixture
async def ollama() -> AsyncIterator[OllamaEmulator]:
    async with OllamaEmulator() as server:
        yield server


@pytest.fixture
async def tei() -> AsyncIterator[TEIEmulator]:
    async with TEIEmulator() as server:
        yield server


# -- shared ground --------------------------------------------------------------------------------------


def test_vectors_belong_to_their_text() -> None:
    """A vector is float32, of unit length, the same every time, and another for another text."""
    vector = vector_for("hello", 256)
    assert vector.dtype == np.float32
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(vector, vector_for("hello", 256))
    assert not np.allclose(vector, vector_for("hallo", 256))
    assert not np.allclose(vector, vector_for([1, 2], 256))


def test_shorter_vectors_are_renormalised_heads() -> None:
    """A request for fewer dimensions gets the head of the long vector, at unit length."""
    head = vector_for("hello", 1536)[:64]
    assert np.allclose(head / np.linalg.norm(head), vector_for("hello", 64), atol=1e-6)


def test_token_count_is_characters_by_four() -> None:
    """Four characters are a token, rounded up, at least one; token ids count themselves."""
    assert [token_count(item) for item in ("", "abcd", "abcde", [7, 8, 9])] == [1, 1, 2, 3]


def test_steady_budget_refills_in_proportion() -> None:
    """One unit of a budget of 60 comes back each second; more than the limit never does."""
    clock = Clock()
    budget = Budget(60, clock, steady=True)
    budget.spend(60)
    assert (budget.remaining, budget.wait_for(1), budget.reset) == (0, 1.0, 60.0)
    clock.now = 1.0
    assert (budget.remaining, budget.wait_for(1)) == (1, 0.0)
    assert budget.wait_for(61) == math.inf


def test_minute_budget_refills_at_the_boundary() -> None:
    """The whole budget comes back when the clock's minute changes, nothing before."""
    clock = Clock(50.0)
    budget = Budget(60, clock, steady=False)
    budget.spend(60)
    assert budget.wait_for(1) == 10.0
    clock.now = 59.9
    assert budget.remaining == 0
    clock.now = 60.0
    assert budget.remaining == 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.012, "12ms"),
        (1, "1s"),
        (360, "6m0s"),
        (90.951, "1m30.951s"),
        (18.642, "18.642s"),
        (3600, "1h0m0s"),
    ],
)
def test_go_durations(seconds: float, text: str) -> None:
    """Reset times are written as Go writes durations."""
    assert go_duration(seconds) == text


async def test_requests_are_recorded(openai: OpenAIEmulator) -> None:
    """Method, path, query, headers and decoded body of each request can be read afterwards."""
    await send(openai, "/v1/embeddings?trace=1", {"model": "x"}, headers={"X-Trace": "7"})
    [request] = openai.requests
    assert (request.method, request.path, request.query) == ("POST", "/v1/embeddings", {"trace": "1"})
    assert request.headers["x-trace"] == "7"
    assert request.json == {"model": "x"}
    assert request.body == b'{"model": "x"}'


async def test_scripted_answers_come_first_and_unchanged(openai: OpenAIEmulator) -> None:
    """fail_next answers the next requests, before authentication, with nothing added."""
    openai.fail_next(502, "<html>bad gateway</html>", {"content-type": "text/html"}, times=2)
    openai.fail_next(503, {"error": "busy"})
    response = [await embed(openai, "a") for _ in range(4)]
    assert [answer.status for answer in response] == [502, 502, 503, 200]
    assert response[0].body == b"<html>bad gateway</html>"
    assert response[0].headers.getall("Content-Type") == ["text/html"]
    assert "x-request-id" not in response[0].headers
    assert response[2].json == {"error": "busy"}


async def test_requests_in_flight_are_counted(
    openai: OpenAIEmulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """most_in_flight is the largest number of requests answered at the same time."""
    gate = asyncio.Event()
    monkeypatch.setattr(openai, "work", gate.wait)
    calls = [asyncio.ensure_future(embed(openai, text)) for text in "abc"]
    await until(lambda: openai.in_flight == 3)
    gate.set()
    assert [response.status for response in await asyncio.gather(*calls)] == [200, 200, 200]
    assert (openai.in_flight, openai.most_in_flight) == (0, 3)


async def test_gzip_request_bodies_are_decoded_only_if_switched_on() -> None:
    """Off by default."""
    body = gzip.compress(json.dumps({"model": SMALL, "input": "a"}).encode())
    for accepts, status in [(False, 400), (True, 200)]:
        async with OpenAIEmulator(accepts_gzip=accepts) as server:
            response = await send(server, "/v1/embeddings", body, headers={"Content-Encoding": "gzip"})
            assert response.status == status
            assert server.requests[0].body.startswith(b"{" if accepts else b"\x1f\x8b")


async def test_large_replies_pass(openai: OpenAIEmulator) -> None:
    """Many megabytes of floats are answered without a warning."""
    response = await embed(openai, [str(number) for number in range(300)])
    assert len(response.body) > 5_000_000
    assert np.array_equal(np.float32(rows_of(response)[299]), vector_for("299", 1536))


@pytest.mark.parametrize(
    "kind",
    [OpenAIEmulator, AzureEmulator, MistralEmulator, OllamaEmulator, TEIEmulator],
    ids=lambda kind: kind.__name__,
)
async def test_invalid_bodies_get_a_4xx(kind: type[Emulator]) -> None:
    """A value of the wrong type under any key is answered with success or 4xx, never with a 500."""
    sound = {"model": SMALL, "input": "a", "inputs": "a", "prompt": "a", "messages": HELLO}
    odd: list[Any] = [None, True, -1, "\ud800", [None], {"a": [1]}]
    keys = [
        "stream",
        "stream_options",
        "max_tokens",
        "options",
        "dimensions",
        "output_dimension",
        "output_dtype",
        "encoding_format",
    ]
    keys += [*sound, "truncate", "truncation_direction", "prompt_name", "normalize"]
    async with kind() as server, aiohttp.ClientSession() as session:
        models = {
            "AzureEmulator": "embed-small",
            "MistralEmulator": "mistral-embed",
            "OllamaEmulator": "qwen3:0.6b",
        }
        sound["model"] = models.get(kind.__name__, SMALL)
        paths = [
            path.format(deployment="embed-small") for method, path, _ in server.routes() if method == "POST"
        ]
        for path, key, value in itertools.product(paths, keys, odd):
            url = f"{server.origin}{path}" + ("?api-version=2024-10-21" if "deployments" in path else "")
            headers = {"Authorization": "Bearer test-key", "api-key": "test-key"}
            async with session.post(url, json=sound | {key: value}, headers=headers) as response:
                await response.read()
            assert response.status < 500, (path, key, value)


async def test_each_provider_words_a_wrong_type() -> None:
    async with (
        OpenAIEmulator() as openai,
        MistralEmulator() as mistral,
        OllamaEmulator() as ollama,
        TEIEmulator() as tei,
    ):
        assert (await embed(openai, "a", dimensions="8")).error["param"] == "dimensions"
        assert (await embed(mistral, "a", encoding_format=1)).json["detail"][0]["type"] == "string_type"
        assert (await embed(ollama, "a", dimensions="8")).error["type"] == "invalid_request_error"
        response = await embed(tei, "a", dimensions="8")
        assert (response.status, response.body[:33]) == (422, b"Failed to deserialize the JSON bo")


async def test_rows_can_be_reversed(openai: OpenAIEmulator) -> None:
    """With rows_reversed only ``index`` identifies a row."""
    openai.rows_reversed = True
    response = await embed(openai, ["a", "b"], dimensions=4)
    assert [row["index"] for row in response.json["data"]] == [1, 0]
    assert np.array_equal(np.float32(rows_of(response)[0]), vector_for("a", 4))


def test_an_emulator_runs_in_a_thread() -> None:
    """Synchronous code can use a server, twice over, and reads its record afterwards."""
    server = OllamaEmulator()
    for _ in range(2):
        with server.in_thread() as running, urllib.request.urlopen(running.base_url) as response:
            assert response.read() == b"Ollama is running"
    assert len(server.requests) == 2
    assert repr(server) == "<OllamaEmulator stopped, 2 requests>"
    with pytest.raises(RuntimeError, match="OllamaEmulator is not running"):
        server.base_url  # noqa: B018 - the property raises


@pytest.mark.parametrize(
    "provider", ["openai", "azure", "mistral", "ollama", "tei"] if NIGHTLY else ["openai"]
)
def test_an_emulator_starts_from_the_shell(provider: str) -> None:
    """``python -m tests.support.emulators NAME`` prints its base URL and stops quietly at Ctrl-C."""
    command = [sys.executable, "-m", "tests.support.emulators", provider]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10) == (b"", b"")


# -- OpenAI -----------------------------------------------------------------------------------------------


async def test_openai_embeds_in_both_encodings(openai: OpenAIEmulator) -> None:
    """Floats and base64 hold the same float32 numbers, row i for input i; usage counts tokens."""
    texts = ["one", "two, longer"]
    floats, encoded = await embed(openai, texts), await embed(openai, texts, encoding_format="base64")
    assert floats.json["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    assert floats.json["model"] == SMALL
    for text, numbers, blob in zip(texts, rows_of(floats), rows_of(encoded), strict=True):
        assert np.array_equal(np.float32(numbers), vector_for(text, 1536))
        assert np.array_equal(decode_base64(blob), vector_for(text, 1536))


@pytest.mark.parametrize(
    ("given", "rows"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1, 2], [3]], [[1, 2], [3]])],
)
async def test_openai_input_forms(openai: OpenAIEmulator, given: Any, rows: list[Any]) -> None:
    """A text, a list of texts, one list of token ids, a list of such lists."""
    response = rows_of(await embed(openai, given, dimensions=3))
    assert [np.float32(row).tolist() for row in response] == [vector_for(row, 3).tolist() for row in rows]


async def test_openai_keys(openai: OpenAIEmulator) -> None:
    """A wrong key and no key are 401 in the envelope."""
    for key in ("wrong-key", None):
        response = await send(openai, "/v1/models", key=key)
        assert (response.status, response.error["code"]) == (401, "invalid_api_key")
        assert set(response.error) == {"message", "type", "param", "code"}


async def test_openai_unknown_model_is_as_recorded(openai: OpenAIEmulator) -> None:
    """The 404 is, byte for byte in meaning, the recorded one."""
    response = await send(openai, "/v1/embeddings", {"model": "nonexistent", "input": "a"})
    assert response.status == 404
    assert response.error == {
        "code": "model_not_found",
        "message": "The model `nonexistent` does not exist or you do not have access to it.",
        "param": None,
        "type": "invalid_request_error",
    }


@pytest.mark.parametrize(
    "fault",
    [
        {"input_type": "query"},
        {"input": ""},
        {"input": []},
        {"input": ["a", ""]},
        {"input": ["a", [1]]},
        {"input": [True]},
        {"input": None},
        {"input": ["a"] * 2049},
        {"dimensions": 0},
        {"dimensions": 1537},
        {"encoding_format": "int8"},
        {"model": None},
        {"model": "text-embedding-ada-002", "dimensions": 8},
    ],
    ids=str,
)
async def test_openai_refuses(openai: OpenAIEmulator, fault: dict[str, Any]) -> None:
    """Unknown keys, empty or mixed input, too many items and odd sizes are 400 invalid_request_error."""
    response = await send(openai, "/v1/embeddings", {"model": SMALL, "input": "a"} | fault)
    assert (response.status, response.error["type"]) == (400, "invalid_request_error")


async def test_openai_accepts_the_exact_limits(openai: OpenAIEmulator) -> None:
    """2,048 items, 8,192 tokens an item and 300,000 tokens a request."""
    assert (await embed(openai, ["a"] * 2048, dimensions=1)).status == 200
    full = [tokens(8192)] * 36
    assert (await embed(openai, [*full, tokens(300_000 - 36 * 8192)], dimensions=1)).status == 200


async def test_openai_token_limits(openai: OpenAIEmulator) -> None:
    """An item too long has a null code and the known phrase; a request too large has its own code."""
    response = await embed(openai, ["a", tokens(8193)])
    assert (response.status, response.error["code"], response.error["type"]) == (
        400,
        None,
        "invalid_request_error",
    )
    assert "maximum context length is 8192 tokens" in response.error["message"]
    response = await embed(openai, [tokens(8000)] * 38)
    assert response.status == 400
    assert response.error == {
        "message": "Requested 304000 tokens, max 300000 tokens per request",
        "type": "max_tokens_per_request",
        "param": None,
        "code": "max_tokens_per_request",
    }


async def test_openai_rate_headers_and_refusals() -> None:
    """Headers carry Go durations; a 429 says which limit in ``type`` and how long in text and Retry-After."""
    clock = Clock()
    async with OpenAIEmulator(rpm=60, tpm=100, clock=clock) as server:
        response = await embed(server, tokens(60))
        rates = {
            name.lower(): value for name, value in response.headers.items() if "ratelimit" in name.lower()
        }
        assert rates == {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1s",
            "x-ratelimit-limit-tokens": "100",
            "x-ratelimit-remaining-tokens": "40",
            "x-ratelimit-reset-tokens": "36s",
        }
        response = await embed(server, tokens(41))
        assert response.status == 429
        assert response.error == {
            "message": f"Rate limit reached for {SMALL} in organization org-example on tokens per min (TPM): "
            "Limit 100, Used 60, Requested 41. Please try again in 600ms.",
            "type": "tokens",
            "param": None,
            "code": "rate_limit_exceeded",
        }
        assert response.headers["Retry-After"] == "1"
        clock.now = 0.6
        assert (await embed(server, tokens(41))).status == 200


async def test_openai_request_above_the_whole_budget() -> None:
    """More than a minute's tokens is a 429 that no wait helps: "Request too large", no Retry-After."""
    async with OpenAIEmulator(tpm=100) as server:
        response = await embed(server, tokens(101))
        assert (response.status, response.error["type"], response.error["code"]) == (
            429,
            "tokens",
            "rate_limit_exceeded",
        )
        assert response.error["message"].startswith(
            f"Request too large for {SMALL} in organization org-example"
        )
        assert response.error["message"].endswith("Limit 100, Requested 101.")
        assert "Retry-After" not in response.headers


async def test_openai_requests_a_minute() -> None:
    """The budget of requests refuses with type ``requests``; catalogues cost nothing."""
    async with OpenAIEmulator(rpm=1, clock=Clock()) as server:
        await send(server, "/v1/models")
        statuses = [(await embed(server, "a")).status for _ in range(2)]
        assert statuses == [200, 429]
        assert (await embed(server, "a")).error["type"] == "requests"


async def test_openai_content_filter(openai: OpenAIEmulator) -> None:
    """A text with the blocked word is a 400 content_policy_violation."""
    response = await embed(openai, ["fine", "not [blocked] fine"])
    assert (response.status, response.error["code"]) == (400, "content_policy_violation")


async def test_openai_models(openai: OpenAIEmulator) -> None:
    """The list has no capability flags, a shutdown date or null, and one model can be asked for."""
    listed = (await send(openai, "/v1/models")).json
    assert set(listed["data"][0]) == {"id", "object", "created", "owned_by", "shutdown_date"}
    assert {card["id"]: card["shutdown_date"] for card in listed["data"]}[
        "text-embedding-ada-002"
    ] == "2026-10-23"
    assert (await send(openai, f"/v1/models/{SMALL}")).json == listed["data"][0]
    assert (await send(openai, "/v1/models/nothing")).error["code"] == "model_not_found"


async def test_openai_unknown_path(openai: OpenAIEmulator) -> None:
    """A path that is not served is a 404 in the envelope; so is a wrong method."""
    assert (await send(openai, "/v1/nothing")).error["message"] == "Invalid URL (GET /v1/nothing)"
    assert (await send(openai, "/v1/models", {})).status == 404


async def test_openai_chat(openai: OpenAIEmulator) -> None:
    """A reply in one piece repeats the message and counts its words."""
    response = (await send(openai, "/v1/chat/completions", {"model": "gpt-4o-mini", "messages": HELLO})).json
    assert response["choices"][0]["message"]["content"] == HELLO_TEXT
    assert response["choices"][0]["finish_reason"] == "stop"
    assert (response["usage"]["prompt_tokens"], response["usage"]["completion_tokens"]) == (5, 5)


async def test_openai_chat_stream_with_usage(openai: OpenAIEmulator) -> None:
    """With include_usage every chunk has a null usage, and one last chunk has it and no choices."""
    body = {
        "model": "gpt-4o-mini",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, usage, done = (await send(openai, "/v1/chat/completions", body)).events
    assert done == "[DONE]"
    assert usage["choices"] == []
    assert usage["usage"]["total_tokens"] == 10
    assert all(chunk["usage"] is None and "obfuscation" in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert [delta["content"] for delta in deltas[1:-1]] == HELLO_PIECES
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]


async def test_openai_chat_stream_without_extras(openai: OpenAIEmulator) -> None:
    """Unasked there is no usage key; obfuscation can be switched off; max_tokens ends with ``length``."""
    options = {"include_obfuscation": False}
    body = {
        "model": "gpt-4o-mini",
        "messages": HELLO,
        "stream": True,
        "stream_options": options,
        "max_tokens": 2,
    }
    *chunks, _ = (await send(openai, "/v1/chat/completions", body)).events
    assert not any("usage" in chunk or "obfuscation" in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_openai_chat_stream_failure(openai: OpenAIEmulator) -> None:
    """A failure is an event with ``error``, then the stream ends without ``[DONE]``."""
    openai.break_stream_after = 1
    body = {"model": "gpt-4o-mini", "messages": HELLO, "stream": True}
    *_, last = (await send(openai, "/v1/chat/completions", body)).events
    assert last["error"]["type"] == "server_error"


async def test_openai_chat_too_long(openai: OpenAIEmulator) -> None:
    """A conversation above the context names code and param."""
    long = [{"role": "user", "content": tokens(128_001)}]
    response = await send(openai, "/v1/chat/completions", {"model": "gpt-4o-mini", "messages": long})
    assert (response.status, response.error["code"], response.error["param"]) == (
        400,
        "context_length_exceeded",
        "messages",
    )


# -- Azure ------------------------------------------------------------------------------------------------

EMBED = CLASSIC.format("embed-small", "embeddings")
CHAT = CLASSIC.format("chat-mini", "chat/completions")


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (EMBED, {"api-key": "test-key"}, 200),
        (EMBED, {"Authorization": "Bearer entra-token"}, 200),
        (EMBED, {"Authorization": "Bearer test-key"}, 401),
        (EMBED, {"Authorization": "Bearer other-token"}, 401),
        (EMBED, {"api-key": "wrong-key"}, 401),
        (EMBED, {}, 401),
        ("/openai/v1/embeddings", {"api-key": "test-key"}, 200),
        ("/openai/v1/embeddings", {"Authorization": "Bearer test-key"}, 200),
        ("/openai/v1/embeddings", {"Authorization": "Bearer entra-token"}, 200),
        ("/openai/v1/embeddings", {"Authorization": "Bearer wrong-key"}, 401),
    ],
)
async def test_azure_credentials(
    azure: AzureEmulator, path: str, headers: dict[str, str], status: int
) -> None:
    """The key goes in api-key, on v1 also as Bearer; an Entra token always as Bearer; a 401 is flat."""
    response = await send(azure, path, {"model": "embed-small", "input": "a"}, key=None, headers=headers)
    assert response.status == status
    if status == 401:
        assert response.json == {
            "statusCode": 401,
            "message": "Unauthorized. Access token is missing, invalid, audience is incorrect "
            "(https://cognitiveservices.azure.com), or have expired.",
        }


async def azure_send(server: AzureEmulator, path: str, body: Any = None) -> Response:
    return await send(server, path, body, key=None, headers={"api-key": "test-key"})


@pytest.mark.parametrize(
    "path",
    [
        "/openai/deployments/embed-small/embeddings",
        "/openai/deployments/embed-small/embeddings?api-version=v1",
        "/openai/v1/embeddings?api-version=2024-10-21",
        "/openai/v2/embeddings",
        "/v1/embeddings",
    ],
)
async def test_azure_wrong_address(azure: AzureEmulator, path: str) -> None:
    """A wrong path, or an api-version that is missing or wrong, is a 404 with the code "404"."""
    response = await azure_send(azure, path, {"model": "embed-small", "input": "a"})
    assert response.status == 404
    assert response.error == {"code": "404", "message": "Resource not found"}


async def test_azure_can_be_limited_to_some_versions() -> None:
    """api_versions restricts which dated versions exist."""
    async with AzureEmulator(api_versions=["2024-10-21"]) as server:
        body = {"input": "a"}
        assert (await azure_send(server, EMBED, body)).status == 200
        assert (await azure_send(server, EMBED.replace("2024-10", "2023-05"), body)).error["code"] == "404"


async def test_azure_deployments_decide(azure: AzureEmulator) -> None:
    """The path's deployment decides on the classic surface, whatever the body says; on v1 the body's model does."""
    response = await azure_send(azure, EMBED, {"model": "ignored", "input": "a", "input_type": "query"})
    assert response.json["model"] == SMALL
    assert np.array_equal(np.float32(rows_of(response)[0]), vector_for("a", 1536))
    response = await azure_send(
        azure, "/openai/v1/embeddings?api-version=preview", {"model": "embed-small", "input": "a"}
    )
    assert response.json["model"] == SMALL
    assert (await azure_send(azure, "/openai/v1/embeddings", {"input": "a"})).status == 400


async def test_azure_unknown_deployment(azure: AzureEmulator) -> None:
    """A deployment that is not there is DeploymentNotFound on both surfaces; a base model's name is none."""
    for path in (CLASSIC.format(SMALL, "embeddings"), "/openai/v1/embeddings"):
        response = await azure_send(azure, path, {"model": SMALL, "input": "a"})
        assert (response.status, response.error["code"]) == (404, "DeploymentNotFound")
        assert "within the last 5 minutes" in response.error["message"]


async def test_azure_wrong_operation(azure: AzureEmulator) -> None:
    """Embedding with a chat deployment is OperationNotSupported."""
    response = await azure_send(azure, CLASSIC.format("chat-mini", "embeddings"), {"input": "a"})
    assert (response.status, response.error["code"]) == (400, "OperationNotSupported")


async def test_azure_too_long(azure: AzureEmulator) -> None:
    """An item too long carries context_length_exceeded; empty input is "$.input is invalid"."""
    response = await azure_send(azure, EMBED, {"input": [tokens(8193)]})
    assert (response.status, response.error["code"]) == (400, "context_length_exceeded")
    assert "'$.input' is invalid" in (await azure_send(azure, EMBED, {"input": ""})).error["message"]


@pytest.mark.parametrize(
    ("path", "spelling"),
    [(EMBED, "innererror"), (CHAT, "innererror"), ("/openai/v1/embeddings", "inner_error")],
)
async def test_azure_content_filter(azure: AzureEmulator, path: str, spelling: str) -> None:
    """The filter's finding is in innererror, on v1 in inner_error."""
    messages = [{"role": "user", "content": "[blocked]"}]
    response = await azure_send(
        azure, path, {"model": "embed-small", "input": "[blocked]", "messages": messages}
    )
    assert (response.status, response.error["code"]) == (400, "content_filter")
    assert response.error[spelling]["code"] == "ResponsibleAIPolicyViolation"
    assert response.error[spelling]["content_filter_result"]["violence"]["filtered"] is True
    assert len(set(response.error) & {"innererror", "inner_error"}) == 1


async def test_azure_rate_headers_and_refusals() -> None:
    """Resets are bare seconds; a 429 has the code "429" and tells the wait in text and two headers."""
    async with AzureEmulator(rpm=6, tpm=60, clock=Clock()) as server:
        response = await azure_send(server, EMBED, {"input": tokens(55)})
        assert response.headers["x-ratelimit-reset-requests"] == "10"
        assert response.headers["x-ratelimit-reset-tokens"] == "55"
        assert response.headers["x-ratelimit-remaining-tokens"] == "5"
        response = await azure_send(server, EMBED, {"input": tokens(20)})
        assert (response.status, response.error["code"]) == (429, "429")
        assert response.error["message"].startswith(
            "Requests to the Embeddings_Create Operation under Azure OpenAI API version 2024-10-21 have exceeded "
            "token rate limit"
        )
        assert response.error["message"].endswith("Please retry after 15 seconds.")
        assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("15", "15000")
        for _ in range(5):
            response = await azure_send(server, EMBED, {"input": "a"})
        response = await azure_send(server, EMBED, {"input": "a"})
        assert "have exceeded call rate limit" in response.error["message"]


async def test_azure_catalogues(azure: AzureEmulator) -> None:
    """Classic lists base models with created_at and capabilities, v1 in OpenAI's shape; neither lists deployments."""
    classic = (await azure_send(azure, "/openai/models?api-version=2024-10-21")).json["data"]
    by_id = {card["id"]: card for card in classic}
    assert by_id[SMALL]["capabilities"]["embeddings"] is True
    assert by_id["gpt-4o-mini"]["capabilities"]["chat_completion"] is True
    assert "created" not in by_id[SMALL]
    assert by_id[SMALL]["lifecycle_status"] == "generally-available"
    v1 = (await azure_send(azure, "/openai/v1/models")).json["data"]
    assert set(v1[0]) == {"id", "object", "created", "owned_by"}
    assert "embed-small" not in {card["id"] for card in classic + v1}


async def test_azure_deployment_listing(azure: AzureEmulator) -> None:
    """The undocumented listing answers to one api-version only."""
    path = "/openai/deployments?api-version="
    listed = (await azure_send(azure, path + "2023-03-15-preview")).json
    assert [(each["id"], each["model"], each["object"]) for each in listed["data"]] == [
        ("embed-small", SMALL, "deployment"),
        ("chat-mini", "gpt-4o-mini", "deployment"),
    ]
    assert (await azure_send(azure, path + "2024-10-21")).error["code"] == "404"


async def test_azure_chat_stream() -> None:
    """The first chunk has no choices; the asynchronous filter adds one without delta after the finish."""
    async with AzureEmulator(async_filter=True) as server:
        body = {"messages": HELLO, "stream": True}
        first, *chunks, late, done = (await azure_send(server, CHAT, body)).events
    assert (first["id"], first["choices"], first["usage"]) == ("", [], None)
    assert "prompt_filter_results" in first
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert "delta" not in late["choices"][0]
    assert "content_filter_offsets" in late["choices"][0]
    assert done == "[DONE]"


async def test_azure_chat_annotations_are_as_recorded(azure: AzureEmulator) -> None:
    """A reply in one piece carries the filter's findings under the recorded keys."""
    sample = SAMPLES / "recorded" / "azure-chat-content-filter-annotations.json"
    if not sample.exists():
        pytest.skip("shared samples are not here")
    recorded = json.loads(sample.read_text())["exchanges"][0]["response"]["body"]
    response = (await azure_send(azure, CHAT, {"messages": HELLO})).json
    assert set(recorded) - set(response) == {"system_fingerprint"}
    assert set(response["choices"][0]) == set(recorded["choices"][0])
    assert response["prompt_filter_results"] == recorded["prompt_filter_results"]


# -- Mistral ----------------------------------------------------------------------------------------------


async def test_mistral_embeds(mistral: MistralEmulator) -> None:
    """The reply is OpenAI-shaped with an id and Mistral's own usage; output_dimension shortens."""
    response = await embed(mistral, ["one", "two"], output_dimension=16, encoding_format="base64")
    assert len(response.json["id"]) == 32
    assert response.json["model"] == "mistral-embed"
    assert response.json["usage"]["prompt_tokens"] == 2
    assert {"prompt_tokens_details", "prompt_token_details"} <= set(response.json["usage"])
    assert np.array_equal(decode_base64(rows_of(response)[1]), vector_for("two", 16))


@pytest.mark.parametrize(("dtype", "length"), [("int8", 16), ("uint8", 16), ("binary", 2), ("ubinary", 2)])
async def test_mistral_output_dtypes(mistral: MistralEmulator, dtype: str, length: int) -> None:
    """Other dtypes give one byte a number, or a bit; base64 packs those bytes."""
    asked: dict[str, Any] = {"output_dimension": 16, "output_dtype": dtype}
    [numbers] = rows_of(await embed(mistral, "a", **asked))
    [blob] = rows_of(await embed(mistral, "a", **asked, encoding_format="base64"))
    signed = dtype in ("int8", "binary")
    assert len(numbers) == length
    assert decode_base64(blob, "i1" if signed else "u1").tolist() == numbers


async def test_mistral_keys(mistral: MistralEmulator) -> None:
    """A wrong key is a 401 with ``detail``."""
    response = await send(mistral, "/v1/models", key="wrong-key")
    assert (response.status, response.json) == (401, {"detail": "Unauthorized"})


@pytest.mark.parametrize(
    ("fault", "kind", "loc"),
    [
        ({"dimensions": 8}, "extra_forbidden", ["body", "dimensions"]),
        ({"user": "u"}, "extra_forbidden", ["body", "user"]),
        ({"input": [[1, 2]]}, "string_type", ["body", "input", "list[str]", 0]),
        ({"input": [1, 2]}, "string_type", ["body", "input", "list[str]", 0]),
        ({"output_dimension": 0}, "greater_than", ["body", "output_dimension"]),
        ({"encoding_format": "hex"}, "enum", ["body", "encoding_format"]),
    ],
    ids=str,
)
async def test_mistral_validation(mistral: MistralEmulator, fault: Any, kind: str, loc: list[Any]) -> None:
    """Unknown keys, token arrays and odd values are a 422 with a list that says where."""
    response = await embed(
        mistral, **({"given": "a"} | fault if "input" not in fault else {"given": fault["input"]})
    )
    assert response.status == 422
    assert (response.json["detail"][0]["type"], response.json["detail"][0]["loc"]) == (kind, loc)


async def test_mistral_missing_keys(mistral: MistralEmulator) -> None:
    """What is missing, and a body that is no JSON, are 422 as well."""
    response = await send(mistral, "/v1/embeddings", {"model": "mistral-embed"})
    assert response.json["detail"][0]["type"] == "missing"
    response = await send(mistral, "/v1/embeddings", b"{")
    assert (response.status, response.json["detail"][0]["type"]) == (422, "json_invalid")


async def test_mistral_batch_limits(mistral: MistralEmulator) -> None:
    """512 items and 16,384 tokens fit; one more is a flat 400 with code 3210."""
    assert (await embed(mistral, ["a"] * 512)).status == 200
    assert (await embed(mistral, [tokens(8192)] * 2)).status == 200
    for given, word in [
        (["a"] * 513, "inputs in request"),
        ([tokens(8192), tokens(8192), "a"], "tokens overall"),
    ]:
        response = await embed(mistral, given)
        assert response.status == 400
        assert response.json == {
            "object": "error",
            "message": f"Too many {word}, split into more batches.",
            "type": "invalid_request_prompt",
            "param": None,
            "code": "3210",
            "raw_status_code": 400,
        }


async def test_mistral_older_errors() -> None:
    """The wording of 2024: a null code with the numbers, and a bare message for the rate."""
    async with MistralEmulator(older_errors=True, rpm=1) as server:
        response = await embed(server, [tokens(8000)] * 3)
        assert (response.status, response.json["code"]) == (400, None)
        assert response.json["message"] == "Too many tokens in batch. Max is 16384 got 24000"
        response = await embed(server, "a")
        assert (response.status, response.json) == (429, {"message": "Requests rate limit exceeded"})


async def test_mistral_unknown_model(mistral: MistralEmulator) -> None:
    """An unknown model is a flat 404, or the 400 that is reported too."""
    body = {"model": "nothing", "input": "a"}
    response = await send(mistral, "/v1/embeddings", body)
    assert (response.status, response.json["code"]) == (404, "unknown_model")
    async with MistralEmulator(unknown_model_status=400) as server:
        response = await send(server, "/v1/embeddings", body)
        assert (response.status, response.json["type"], response.json["code"]) == (
            400,
            "invalid_model",
            "1500",
        )


@pytest.mark.parametrize(
    ("generation", "headers"),
    [
        (
            "x-ratelimitbysize",
            {
                "x-ratelimitbysize-limit-minute": "100",
                "x-ratelimitbysize-remaining-minute": "93",
                "x-ratelimitbysize-limit-month": "4000000000",
                "x-ratelimitbysize-remaining-month": "3999999993",
            },
        ),
        (
            "ratelimitbysize",
            {
                "ratelimitbysize-limit": "100",
                "ratelimitbysize-remaining": "93",
                "ratelimitbysize-reset": "20",
                "ratelimitbysize-query-cost": "7",
            },
        ),
        (
            "x-ratelimit",
            {
                "x-ratelimit-limit-tokens-minute": "100",
                "x-ratelimit-remaining-tokens-minute": "93",
                "x-ratelimit-tokens-query-cost": "7",
                "x-ratelimit-limit-req-minute": "9",
                "x-ratelimit-remaining-req-minute": "8",
            },
        ),
    ],
)
async def test_mistral_rate_headers(generation: Any, headers: dict[str, str]) -> None:
    """Each generation of headers has its own names; the newest has no reset."""
    async with MistralEmulator(rate_generation=generation, rpm=9, tpm=100, clock=Clock(40.0)) as server:
        response = await embed(server, tokens(7))
        found = {
            name.lower(): value for name, value in response.headers.items() if "ratelimit" in name.lower()
        }
        assert found == headers


async def test_mistral_rate_refusal() -> None:
    """A 429 is flat, code "1300", type rate_limited; the budget returns when the minute turns."""
    clock = Clock(50.0)
    async with MistralEmulator(tpm=10, clock=clock) as server:
        await embed(server, tokens(10))
        response = await embed(server, "a")
        assert (response.status, response.json["code"], response.json["type"]) == (
            429,
            "1300",
            "rate_limited",
        )
        clock.now = 60.0
        assert (await embed(server, "a")).status == 200


async def test_mistral_models(mistral: MistralEmulator) -> None:
    """One card for each alias, all with the same name; embedding models are those that cannot chat."""
    cards = (await send(mistral, "/v1/models")).json["data"]
    embedders = [card for card in cards if not card["capabilities"]["completion_chat"]]
    assert {card["id"] for card in embedders} == {"mistral-embed", "mistral-embed-2312"}
    assert {card["name"] for card in embedders} == {"mistral-embed-2312"}
    assert {card["id"]: card["aliases"] for card in embedders}["mistral-embed"] == ["mistral-embed-2312"]
    [leaving] = [card for card in cards if card["deprecation"]]
    assert leaving["deprecation_replacement_model"] == "mistral-small-latest"


async def test_mistral_chat_stream(mistral: MistralEmulator) -> None:
    """Usage comes on the chunk with the finish reason, unasked; stream_options is refused."""
    body = {"model": "mistral-small-latest", "messages": HELLO, "stream": True}
    *chunks, last, done = (await send(mistral, "/v1/chat/completions", body)).events
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == HELLO_TEXT
    assert not any("usage" in chunk for chunk in chunks)
    assert (last["choices"][0]["finish_reason"], last["usage"]["total_tokens"], done) == (
        "stop",
        10,
        "[DONE]",
    )
    response = await send(mistral, "/v1/chat/completions", body | {"stream_options": {"include_usage": True}})
    assert (response.status, response.json["detail"][0]["loc"]) == (422, ["body", "stream_options"])


async def test_mistral_chat_stream_failure(mistral: MistralEmulator) -> None:
    """A failure ends the stream with finish_reason ``error``."""
    mistral.break_stream_after = 1
    body = {"model": "mistral-small-latest", "messages": HELLO, "stream": True}
    events = (await send(mistral, "/v1/chat/completions", body)).events
    assert events[-2]["choices"][0]["finish_reason"] == "error"


# -- Ollama -----------------------------------------------------------------------------------------------


async def native(server: OllamaEmulator, given: Any, **more: Any) -> Response:
    return await send(server, "/api/embed", {"model": "nomic-embed-text", "input": given, **more}, key=None)


async def test_ollama_embeds_natively(ollama: OllamaEmulator) -> None:
    """A name without tag means latest; vectors come in input order, durations in nanoseconds."""
    response = (await native(ollama, ["one", "two"], dimensions=8)).json
    assert set(response) == {"model", "embeddings", "total_duration", "load_duration", "prompt_eval_count"}
    assert response["model"] == "nomic-embed-text"
    assert np.array_equal(np.float32(response["embeddings"][1]), vector_for("two", 8))
    assert (await native(ollama, "one")).json["prompt_eval_count"] == 1


async def test_ollama_empty_list_is_no_error(ollama: OllamaEmulator) -> None:
    """Natively an empty list gives an empty list; under /v1 it is invalid."""
    response = await native(ollama, [])
    assert (response.status, response.json["embeddings"]) == (200, [])
    response = await embed(ollama, [])
    assert (response.status, response.error["type"]) == (400, "invalid_request_error")


async def test_ollama_truncates_silently(ollama: OllamaEmulator) -> None:
    """A text beyond the context is truncated without an error, unless truncate is false."""
    long = tokens(2048) + "tail"
    response = (await native(ollama, long)).json
    assert np.array_equal(np.float32(response["embeddings"][0]), vector_for(tokens(2048), 768))
    assert response["prompt_eval_count"] == 2048
    got_refused = await native(ollama, long, truncate=False)
    assert (got_refused.status, got_refused.json) == (
        400,
        {"error": "the input length exceeds the context length"},
    )


@pytest.mark.parametrize("path", ["/api/embed", "/v1/embeddings"])
async def test_ollama_does_not_decode_gzip(ollama: OllamaEmulator, path: str) -> None:
    """A gzip body reaches the JSON parser undecoded."""
    body = gzip.compress(b'{"model": "nomic-embed-text", "input": "a"}')
    response = await send(ollama, path, body, headers={"Content-Encoding": "gzip"})
    message = response.error["message"] if path.startswith("/v1") else response.error
    assert response.status == 400
    assert message == r"invalid character '\x1f' looking for beginning of value"


async def test_ollama_v1_embeds(ollama: OllamaEmulator) -> None:
    """/v1 speaks OpenAI's shape, strings only, floats or base64."""
    response = await embed(ollama, ["one", "two"], encoding_format="base64", dimensions=8)
    assert np.array_equal(decode_base64(rows_of(response)[1]), vector_for("two", 8))
    assert response.json["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert (await embed(ollama, [1, 2])).error["message"] == "invalid input type"


async def test_ollama_old_embedding_route(ollama: OllamaEmulator) -> None:
    """/api/embeddings takes one prompt and gives one vector."""
    response = await send(ollama, "/api/embeddings", {"model": "nomic-embed-text", "prompt": "one"})
    assert np.array_equal(np.float32(response.json["embedding"]), vector_for("one", 768))


async def test_ollama_unknown_model(ollama: OllamaEmulator) -> None:
    """A model that was not pulled is a 404: bare text natively, an envelope under /v1."""
    body = {"model": "nothing", "input": "a"}
    text = "model 'nothing' not found, try pulling it first"
    assert (await send(ollama, "/api/embed", body)).json == {"error": text}
    response = await send(ollama, "/v1/embeddings", body)
    assert response.status == 404
    assert response.error == {"message": text, "type": "not_found_error", "param": None, "code": None}


async def test_ollama_queue_and_cloud() -> None:
    """A full queue is a 503; the cloud asks for its key."""
    async with OllamaEmulator(max_queue=0) as server:
        response = await native(server, "a")
        assert response.status == 503
        assert response.error == "server busy, please try again.  maximum pending requests exceeded"
        assert (await embed(server, "a")).error["type"] == "api_error"
    async with OllamaEmulator(key="test-key") as server:
        response = await send(server, "/api/tags", key=None)
        assert response.status == 401
        assert "signin_url" in response.json
        assert (await send(server, "/api/tags")).status == 200


async def test_ollama_catalogue(ollama: OllamaEmulator) -> None:
    """tags, show, ps and /v1/models list the same models; the newer keys can be left out."""
    cards = (await send(ollama, "/api/tags")).json["models"]
    assert [card["name"] for card in cards] == ["nomic-embed-text:latest", "qwen3:0.6b"]
    assert cards[0]["capabilities"] == ["embedding"]
    assert cards[0]["details"]["embedding_length"] == 768
    shown = (await send(ollama, "/api/show", {"model": "nomic-embed-text"})).json
    assert shown["model_info"]["nomic-bert.context_length"] == 2048
    assert shown["capabilities"] == ["embedding"]
    assert (await send(ollama, "/api/show", {"model": "nothing"})).json == {
        "error": "model 'nothing' not found"
    }
    assert (await send(ollama, "/api/ps")).json["models"] == []
    await native(ollama, "a")
    assert (await send(ollama, "/api/ps")).json["models"][0]["context_length"] == 2048
    listed = (await send(ollama, "/v1/models")).json["data"]
    assert set(listed[0]) == {"id", "object", "created", "owned_by"}
    async with OllamaEmulator(
        recent_details=False, models=[OllamaModel(name="x:latest", family="x")]
    ) as older:
        [card] = (await send(older, "/api/tags")).json["models"]
        assert "capabilities" not in card
        assert "context_length" not in card["details"]


async def test_ollama_chat_streams_by_default(ollama: OllamaEmulator) -> None:
    """Native chat is NDJSON unless stream is false; the last line has done, reason and counts."""
    response = await send(ollama, "/api/chat", {"model": "qwen3:0.6b", "messages": HELLO})
    assert response.headers["Content-Type"] == "application/x-ndjson"
    *lines, last = [json.loads(text) for text in response.body.splitlines()]
    assert [each["message"]["content"] for each in lines] == HELLO_PIECES
    assert not any(each["done"] for each in lines)
    assert (last["done"], last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == (
        True,
        "stop",
        5,
        5,
    )
    response = await send(ollama, "/api/chat", {"model": "qwen3:0.6b", "messages": HELLO, "stream": False})
    assert response.json["message"]["content"] == HELLO_TEXT


async def test_ollama_v1_chat_stream(ollama: OllamaEmulator) -> None:
    """include_usage adds a chunk without choices before ``[DONE]``."""
    body = {
        "model": "qwen3:0.6b",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    *chunks, usage, done = (await send(ollama, "/v1/chat/completions", body)).events
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == HELLO_TEXT
    assert (usage["choices"], usage["usage"]["total_tokens"], done) == ([], 10, "[DONE]")


async def test_ollama_stream_failures(ollama: OllamaEmulator) -> None:
    """Natively a failure is a line with ``error``; under /v1 the stream just lacks its ``[DONE]``."""
    ollama.break_stream_after = 1
    response = await send(ollama, "/api/chat", {"model": "qwen3:0.6b", "messages": HELLO})
    assert set(json.loads(response.body.splitlines()[-1])) == {"error"}
    body = {"model": "qwen3:0.6b", "messages": HELLO, "stream": True}
    *_, last = (await send(ollama, "/v1/chat/completions", body)).events
    assert last["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": None,
    }


# -- TEI --------------------------------------------------------------------------------------------------


async def test_tei_info(tei: TEIEmulator) -> None:
    """/info gives the limits that a client needs."""
    info = (await send(tei, "/info")).json
    assert (info["max_client_batch_size"], info["max_input_length"]) == (32, 512)
    assert (info["max_concurrent_requests"], info["auto_truncate"]) == (512, True)
    assert info["model_type"] == {"embedding": {"pooling": "cls"}}


async def test_tei_embeds_natively(tei: TEIEmulator) -> None:
    """/embed gives bare vectors in input order, and metrics in headers."""
    response = await send(tei, "/embed", {"inputs": ["one", "two"], "dimensions": 8})
    assert np.array_equal(
        np.float32(response.json), np.stack([vector_for(text, 8) for text in ("one", "two")])
    )
    assert (response.headers["x-compute-tokens"], response.headers["x-compute-characters"]) == ("2", "6")
    raw = (await send(tei, "/embed", {"inputs": "one", "normalize": False})).json
    assert np.linalg.norm(raw) == pytest.approx(3.0, abs=1e-5)


async def test_tei_v1_embeds(tei: TEIEmulator) -> None:
    """The OpenAI-like route ignores the model's name and answers with its own."""
    response = await embed(tei, ["one", "two"], encoding_format="base64")
    assert response.json["model"] == "BAAI/bge-small-en-v1.5"
    assert response.json["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert np.array_equal(decode_base64(rows_of(response)[1]), vector_for("two", 384))
    [row] = rows_of(await embed(tei, [5, 6, 7]))
    assert np.array_equal(np.float32(row), vector_for([5, 6, 7], 384))


async def test_tei_keys() -> None:
    """A wrong key is a 401 with an empty body; /health stays open."""
    async with TEIEmulator(key="test-key") as server:
        response = await send(server, "/info", key="wrong-key")
        assert (response.status, response.body) == (401, b"")
        assert (await send(server, "/health", key=None)).status == 200
        assert (await send(server, "/info")).status == 200


async def both_routes(server: TEIEmulator, given: Any) -> tuple[Response, Response]:
    """The same inputs by the native and by the OpenAI-like route."""
    return await send(server, "/embed", {"inputs": given}), await embed(server, given)


def tei_error(kind: str, status: int, text: str) -> tuple[Any, Any]:
    """One fault as the two routes word it."""
    return {"error": text, "error_type": kind}, {"message": text, "code": status, "type": kind}


@pytest.mark.parametrize(
    ("given", "status", "kind", "text"),
    [
        (["a"] * 33, 422, "Validation", "batch size 33 > maximum allowed batch size 32"),
        ([], 400, "Empty", "`inputs` cannot be empty"),
        ([""], 400, "Empty", "`inputs` cannot be empty"),
        (
            [tokens(600)],
            422,
            "Validation",
            "Input validation error: `inputs` must have less than 512 tokens. Given: 600",
        ),
        (
            ["a" * 128_001],
            422,
            "Validation",
            "Input validation error: `inputs` must have less than 128000 characters. Given: 128001",
        ),
    ],
    ids=["items", "none", "empty", "tokens", "characters"],
)
async def test_tei_faults(given: Any, status: int, kind: str, text: str) -> None:
    """Faults of the input have their status, CamelCase type and a shape for each route."""
    async with TEIEmulator(auto_truncate=False) as server:
        response = await both_routes(server, given)
    assert tuple(each.status for each in response) == (status, status)
    assert tuple(each.json for each in response) == tei_error(kind, status, text)


async def test_tei_truncation(tei: TEIEmulator) -> None:
    """The server cuts by default; on /embed the request may decide, and from which end."""
    long = tokens(512) + "tail"
    for response in await both_routes(tei, [long]):
        vector = response.json[0] if isinstance(response.json, list) else rows_of(response)[0]
        assert np.array_equal(np.float32(vector), vector_for(tokens(512), 384))
    response = await send(tei, "/embed", {"inputs": long, "truncate": False})
    assert response.status == 422
    response = await send(tei, "/embed", {"inputs": long, "truncation_direction": "Left"})
    assert np.array_equal(np.float32(response.json[0]), vector_for(long[4:], 384))


async def test_tei_web_layer(tei: TEIEmulator) -> None:
    """What the web layer refuses is plain text: too many bytes, no JSON, wrong type, wrong shape."""
    padding = b'{"inputs": "' + b"a" * 1_999_986 + b'"}'
    assert len(padding) == 2_000_000
    assert (await send(tei, "/embed", padding)).status == 200
    cases = [
        (padding + b" ", {}, 413),
        (b"{", {}, 400),
        (gzip.compress(b'{"inputs": "a"}'), {"Content-Encoding": "gzip"}, 400),
        (b'{"inputs": "a"}', {"Content-Type": "text/plain"}, 415),
        (b'{"input": "a"}', {}, 422),
        (b"[]", {}, 422),
    ]
    for body, headers, status in cases:
        response = await send(tei, "/embed", body, headers=headers)
        assert response.status == status
        assert response.headers["Content-Type"] == "text/plain; charset=utf-8"


async def test_tei_backend_and_health(tei: TEIEmulator) -> None:
    """The backend can be made to fail (424), the whole server to be unhealthy (503)."""
    tei.backend_fails = True
    native_response, v1_response = await both_routes(tei, ["a"])
    assert (native_response.status, native_response.json["error_type"]) == (424, "Backend")
    assert (v1_response.json["code"], v1_response.json["type"]) == (424, "Backend")
    tei.healthy = False
    assert (await send(tei, "/health")).json == {"error": "unhealthy", "error_type": "Unhealthy"}
    assert (await send(tei, "/embed", {"inputs": "a"})).status == 503


async def test_tei_takes_a_permit_for_each_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Items in flight hold permits; an item too many is a 429 at once, without Retry-After."""
    gate = asyncio.Event()
    async with TEIEmulator(max_concurrent_requests=3) as server:
        monkeypatch.setattr(server, "work", gate.wait)
        first = asyncio.ensure_future(send(server, "/embed", {"inputs": ["a", "b"]}))
        await until(lambda: server.permits_taken == 2)
        response = await both_routes(server, ["c", "d"])
        assert tuple(each.json for each in response) == tei_error("Overloaded", 429, "Model is overloaded")
        assert "Retry-After" not in response[0].headers
        gate.set()
        assert (await first).status == 200
        assert (await send(server, "/embed", {"inputs": ["c", "d", "e"]})).status == 200
        assert server.permits_taken == 0


async def test_tei_batches_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches_wait a list waits for its permits; a single text is still refused."""
    gate = asyncio.Event()
    async with TEIEmulator(max_concurrent_requests=1, batches_wait=True) as server:
        monkeypatch.setattr(server, "work", gate.wait)
        first = asyncio.ensure_future(send(server, "/embed", {"inputs": ["a"]}))
        await until(lambda: server.permits_taken == 1)
        second = asyncio.ensure_future(send(server, "/embed", {"inputs": ["b"]}))
        assert (await send(server, "/embed", {"inputs": "c"})).status == 429
        gate.set()
        assert [response.status for response in await asyncio.gather(first, second)] == [200, 200]


async def test_tei_prompts() -> None:
    """A named prompt goes in front of each text; an unknown name is a fault."""
    async with TEIEmulator(prompts={"query": "query: "}) as server:
        response = await send(server, "/embed", {"inputs": ["a"], "prompt_name": "query"})
        assert np.array_equal(np.float32(response.json[0]), vector_for("query: a", 384))
        assert (await send(server, "/embed", {"inputs": ["a"], "prompt_name": "x"})).status == 422


# -- JSON schemas of the providers ------------------------------------------------------------------------


def with_null(schema: Any) -> Any:
    """Turn OpenAPI's ``nullable: true`` into JSON Schema."""
    if isinstance(schema, list):
        return [with_null(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: with_null(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [plain, {"type": "null"}]} if schema.get("nullable") is True else plain


def check(provider: str, name: str, value: Any) -> None:
    """Validate a value against a named schema of a provider's description."""
    jsonschema = pytest.importorskip("jsonschema")
    spec = SAMPLES / "specs" / f"{provider}.json"
    if not spec.exists():
        pytest.skip("shared samples are not here")
    components = with_null(json.loads(spec.read_text())["components"])
    schema = {"$ref": f"#/components/schemas/{name}", "components": components}
    jsonschema.Draft202012Validator(schema).validate(value)


async def test_openai_matches_its_description(openai: OpenAIEmulator) -> None:
    """Embeddings, models, errors, chat and chunks validate against OpenAI's schemas."""
    spec = "openai-openapi-slice"
    check(spec, "CreateEmbeddingResponse", (await embed(openai, ["a", "b"])).json)
    check(spec, "ErrorResponse", (await embed(openai, "")).json)
    check(spec, "ListModelsResponse", (await send(openai, "/v1/models")).json)
    body = {"model": "gpt-4o-mini", "messages": HELLO}
    check(spec, "CreateChatCompletionRequest", body)
    check(spec, "CreateChatCompletionResponse", (await send(openai, "/v1/chat/completions", body)).json)
    streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
    for event in (await send(openai, "/v1/chat/completions", streamed)).events[:-1]:
        check(spec, "CreateChatCompletionStreamResponse", event)


async def test_mistral_matches_its_description(mistral: MistralEmulator) -> None:
    """Replies validate against Mistral's schemas, save for the ``data`` that its chat reply asks for by mistake."""
    spec = "mistral-openapi-slice"
    check(spec, "EmbeddingResponse", (await embed(mistral, ["a", "b"])).json)
    check(spec, "HTTPValidationError", (await embed(mistral, "a", user="u")).json)
    check(spec, "ModelList", (await send(mistral, "/v1/models")).json)
    body = {"model": "mistral-small-latest", "messages": HELLO}
    check(spec, "ChatCompletionRequest", body)
    whole = (await send(mistral, "/v1/chat/completions", body)).json
    check(spec, "ChatCompletionResponse", whole | {"data": []})
    for event in (await send(mistral, "/v1/chat/completions", body | {"stream": True})).events[:-1]:
        check(spec, "CompletionChunk", event)


async def test_tei_matches_its_description(tei: TEIEmulator) -> None:
    """Replies validate against TEI's schemas, save for ``type``, which the description calls error_type."""
    spec = "tei-openapi"
    check(spec, "Info", (await send(tei, "/info")).json)
    for given in ("a", ["a", "b"], [1, 2]):
        native_response, v1_response = await both_routes(tei, given)
        check(spec, "EmbedResponse", native_response.json)
        check(spec, "OpenAICompatResponse", v1_response.json)
    check(spec, "OpenAICompatResponse", (await embed(tei, "a", encoding_format="base64")).json)
    native_response, v1_response = await both_routes(tei, ["a"] * 33)
    check(spec, "ErrorResponse", native_response.json)
    flat = v1_response.json
    check(spec, "OpenAICompatErrorResponse", flat | {"error_type": flat.pop("type")})


# -- official clients: openai ------------------------------------------------------------------------------


async def test_openai_client_embeds(openai: OpenAIEmulator) -> None:
    """openai requests base64 and decodes the exact numbers."""
    sdk = pytest.importorskip("openai")
    async with sdk.AsyncOpenAI(base_url=openai.base_url, api_key="test-key") as client:
        made = await client.embeddings.create(model=SMALL, input=["one", "two"], dimensions=8)
        plain = await client.embeddings.create(model=SMALL, input="one", encoding_format="float")
        models = [model.id async for model in client.models.list()]
    assert openai.requests[0].json["encoding_format"] == "base64"
    assert np.allclose(made.data[1].embedding, vector_for("two", 8))
    assert np.allclose(plain.data[0].embedding, vector_for("one", 1536))
    assert made.usage.total_tokens == 2
    assert SMALL in models


async def test_openai_client_maps_errors(openai: OpenAIEmulator) -> None:
    """Each refusal becomes the exception that openai has for it."""
    sdk = pytest.importorskip("openai")
    url = openai.base_url
    async with sdk.AsyncOpenAI(base_url=url, api_key="wrong-key", max_retries=0) as client:
        with pytest.raises(sdk.AuthenticationError) as caught:
            await client.models.list()
        assert caught.value.code == "invalid_api_key"
    async with sdk.AsyncOpenAI(base_url=url, api_key="test-key", max_retries=0) as client:
        with pytest.raises(sdk.NotFoundError) as caught:
            await client.embeddings.create(model="nothing", input="a")
        assert (caught.value.code, caught.value.request_id) == ("model_not_found", "req_00000002")
        with pytest.raises(sdk.BadRequestError) as caught:
            await client.embeddings.create(model=SMALL, input=[tokens(8000)] * 38)
        assert (caught.value.code, caught.value.type) == ("max_tokens_per_request", "max_tokens_per_request")
        with pytest.raises(sdk.BadRequestError):
            await client.embeddings.create(model=SMALL, input="a", extra_body={"other": 1})
        openai.fail_next(503, {"error": {"message": "busy", "code": "server_is_overloaded"}})
        with pytest.raises(sdk.InternalServerError) as caught:
            await client.embeddings.create(model=SMALL, input="a")
        assert caught.value.code == "server_is_overloaded"


async def test_openai_client_rate_limit() -> None:
    """A 429 is a RateLimitError that names the limit."""
    sdk = pytest.importorskip("openai")
    async with (
        OpenAIEmulator(rpm=1, clock=Clock()) as server,
        sdk.AsyncOpenAI(base_url=server.base_url, api_key="test-key", max_retries=0) as client,
    ):
        await client.embeddings.create(model=SMALL, input="a")
        with pytest.raises(sdk.RateLimitError) as caught:
            await client.embeddings.create(model=SMALL, input="a")
        assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")


async def test_openai_client_chats(openai: OpenAIEmulator) -> None:
    """Whole and streamed replies are read by openai, and a failure in the stream raises APIError."""
    sdk = pytest.importorskip("openai")
    asked: dict[str, Any] = {"model": "gpt-4o-mini", "messages": HELLO}
    async with sdk.AsyncOpenAI(base_url=openai.base_url, api_key="test-key") as client:
        whole = await client.chat.completions.create(**asked)
        options = {"include_usage": True}
        stream = await client.chat.completions.create(**asked, stream=True, stream_options=options)
        chunks = [chunk async for chunk in stream]
        openai.break_stream_after = 2
        broken = await client.chat.completions.create(**asked, stream=True)
        with pytest.raises(sdk.APIError, match="The server failed"):
            [chunk async for chunk in broken]
    assert whole.choices[0].message.content == HELLO_TEXT
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert (text, chunks[-1].usage.total_tokens) == (HELLO_TEXT, 10)


def test_openai_sync_client_over_a_thread() -> None:
    """The synchronous client works with a server in a thread."""
    sdk = pytest.importorskip("openai")
    with (
        serve_in_thread(OpenAIEmulator(key="other-key")) as server,
        sdk.OpenAI(base_url=server.base_url, api_key="other-key") as client,
    ):
        made = client.embeddings.create(model=SMALL, input="one")
        assert np.allclose(made.data[0].embedding, vector_for("one", 1536))


@pytest.mark.parametrize(
    "credential", [{"api_key": "test-key"}, {"azure_ad_token": "entra-token"}], ids=["key", "entra"]
)
async def test_azure_client_on_the_classic_surface(azure: AzureEmulator, credential: dict[str, str]) -> None:
    """openai's Azure client embeds, lists and chats by deployment, with key or Entra token."""
    sdk = pytest.importorskip("openai")
    settings = {"azure_endpoint": azure.base_url, "api_version": "2024-10-21", "max_retries": 0, **credential}
    async with sdk.AsyncAzureOpenAI(**settings) as client:
        made = await client.embeddings.create(model="embed-small", input=["one", "two"])
        models = [model.id async for model in client.models.list()]
        stream = await client.chat.completions.create(model="chat-mini", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
        with pytest.raises(sdk.NotFoundError) as caught:
            await client.embeddings.create(model="nothing", input="a")
    assert azure.requests[0].path == "/openai/deployments/embed-small/embeddings"
    assert np.allclose(made.data[1].embedding, vector_for("two", 1536))
    assert models == [*azure.embedding_models, *azure.chat_models]
    assert chunks[0].choices == []
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[1:]) == HELLO_TEXT
    assert caught.value.code == "DeploymentNotFound"


def test_azure_client_errors() -> None:
    """Bad credentials, filter and rate limit become openai's exceptions; the flat 401 has no code."""
    sdk = pytest.importorskip("openai")
    server = AzureEmulator(rpm=2, clock=Clock())
    with server.in_thread():
        settings = {"azure_endpoint": server.base_url, "api_version": "2024-10-21", "max_retries": 0}
        with (
            sdk.AzureOpenAI(**settings, api_key="wrong-key") as client,
            pytest.raises(sdk.AuthenticationError) as bad,
        ):
            client.embeddings.create(model="embed-small", input="a")
        assert (bad.value.code, bad.value.body["statusCode"]) == (None, 401)
        with sdk.AzureOpenAI(**settings, api_key="test-key") as client:
            with pytest.raises(sdk.BadRequestError) as filtered:
                client.chat.completions.create(
                    model="chat-mini", messages=[{"role": "user", "content": "[blocked]"}]
                )
            assert filtered.value.code == "content_filter"
            for _ in range(2):
                client.embeddings.create(model="embed-small", input="a")
            with pytest.raises(sdk.RateLimitError) as limited:
                client.embeddings.create(model="embed-small", input="a")
            assert (limited.value.code, limited.value.response.headers["retry-after-ms"]) == ("429", "30000")


@pytest.mark.parametrize("credential", ["test-key", "entra-token"])
async def test_openai_client_on_azure_v1(azure: AzureEmulator, credential: str) -> None:
    """The plain OpenAI client works on v1 with the key, or a token, as Bearer."""
    sdk = pytest.importorskip("openai")
    async with sdk.AsyncOpenAI(base_url=azure.v1_url, api_key=credential, max_retries=0) as client:
        made = await client.embeddings.create(model="embed-small", input="one")
        models = [model.id async for model in client.models.list()]
        whole = await client.chat.completions.create(model="chat-mini", messages=HELLO)
        with pytest.raises(sdk.NotFoundError) as caught:
            await client.embeddings.create(model=SMALL, input="a")
    assert np.allclose(made.data[0].embedding, vector_for("one", 1536))
    assert SMALL in models
    assert whole.choices[0].message.content == HELLO_TEXT
    assert caught.value.code == "DeploymentNotFound"


async def test_openai_client_on_ollama_and_tei(ollama: OllamaEmulator, tei: TEIEmulator) -> None:
    """Both OpenAI-like surfaces serve openai's client; their errors map by status."""
    sdk = pytest.importorskip("openai")
    async with sdk.AsyncOpenAI(base_url=f"{ollama.base_url}/v1", api_key="none", max_retries=0) as client:
        made = await client.embeddings.create(model="nomic-embed-text", input=["one"])
        assert np.allclose(made.data[0].embedding, vector_for("one", 768))
        assert [model.id async for model in client.models.list()] == list(ollama.models_by_name)
        stream = await client.chat.completions.create(model="qwen3:0.6b", messages=HELLO, stream=True)
        assert "".join([chunk.choices[0].delta.content async for chunk in stream]) == HELLO_TEXT
        with pytest.raises(sdk.NotFoundError) as missing:
            await client.embeddings.create(model="nothing", input="a")
        assert missing.value.type == "not_found_error"
    async with sdk.AsyncOpenAI(base_url=f"{tei.base_url}/v1", api_key="none", max_retries=0) as client:
        made = await client.embeddings.create(model="any", input=["one"])
        assert np.allclose(made.data[0].embedding, vector_for("one", 384))
        with pytest.raises(sdk.UnprocessableEntityError) as many:
            await client.embeddings.create(model="any", input=["a"] * 33)
        assert (many.value.code, many.value.type) == ("422", "Validation")


# -- official clients: mistralai, ollama -------------------------------------------------------------------


@pytest.fixture
def mistral_in_thread() -> Iterator[MistralEmulator]:
    with MistralEmulator().in_thread() as server:
        yield server


def test_mistral_client(mistral_in_thread: MistralEmulator) -> None:
    """mistralai embeds, lists models and reads whole and streamed chat."""
    sdk = pytest.importorskip("mistralai.client")
    server = mistral_in_thread
    with sdk.Mistral(api_key="test-key", server_url=server.origin) as client:
        made = client.embeddings.create(model="mistral-embed", inputs=["one", "two"], output_dimension=8)
        assert np.allclose(made.data[1].embedding, vector_for("two", 8))
        assert (made.usage.prompt_tokens, made.model) == (2, "mistral-embed")
        cards = client.models.list().data
        assert [type(card).__name__ for card in cards] == ["BaseModelCard"] * len(server.models_by_name)
        assert [card.id for card in cards if not card.capabilities.completion_chat] == [
            "mistral-embed-2312",
            "mistral-embed",
        ]
        assert [card.id for card in cards if card.deprecation] == ["mistral-small-2409"]
        whole = client.chat.complete(model="mistral-small-latest", messages=HELLO)
        assert whole.choices[0].message.content == HELLO_TEXT
        with client.chat.stream(model="mistral-small-latest", messages=HELLO) as stream:
            chunks = [event.data for event in stream]
        assert "".join(chunk.choices[0].delta.content for chunk in chunks) == HELLO_TEXT
        assert chunks[-1].usage.total_tokens == 10


def test_mistral_client_errors(mistral_in_thread: MistralEmulator) -> None:
    """A 422 becomes HTTPValidationError with its list, everything else SDKError with status and body."""
    sdk = pytest.importorskip("mistralai.client")
    errors = pytest.importorskip("mistralai.client.errors")
    url = mistral_in_thread.origin
    with (
        sdk.Mistral(api_key="wrong-key", server_url=url) as client,
        pytest.raises(errors.SDKError) as unauthorised,
    ):
        client.models.list()
    assert (unauthorised.value.status_code, unauthorised.value.body) == (401, '{"detail":"Unauthorized"}')
    with sdk.Mistral(api_key="test-key", server_url=url) as client:
        with pytest.raises(errors.SDKError) as many:
            client.embeddings.create(model="mistral-embed", inputs=["a"] * 513)
        assert json.loads(many.value.body)["code"] == "3210"
        with pytest.raises(errors.HTTPValidationError) as invalid:
            client.embeddings.create(model="mistral-embed", inputs="a", output_dimension=0)
        assert invalid.value.data.detail[0].loc == ["body", "output_dimension"]


async def test_ollama_client(ollama: OllamaEmulator) -> None:
    """ollama embeds, lists, shows and chats, and its ResponseError has status and text."""
    sdk = pytest.importorskip("ollama")
    client = sdk.AsyncClient(host=ollama.base_url)
    made = await client.embed(model="nomic-embed-text", input=["one", "two"], dimensions=8)
    assert np.allclose(made.embeddings[1], vector_for("two", 8))
    assert made.prompt_eval_count == 2
    old = await client.embeddings(model="nomic-embed-text", prompt="one")
    assert np.allclose(old.embedding, vector_for("one", 768))
    assert [model.model for model in (await client.list()).models] == list(ollama.models_by_name)
    shown = await client.show("nomic-embed-text")
    assert (shown.capabilities, shown.modelinfo["nomic-bert.embedding_length"]) == (["embedding"], 768)
    assert (await client.ps()).models[0].context_length == 2048
    stream = await client.chat(model="qwen3:0.6b", messages=HELLO, stream=True)
    parts = [part async for part in stream]
    assert "".join(part.message.content for part in parts) == HELLO_TEXT
    assert (parts[-1].done_reason, parts[-1].eval_count) == ("stop", 5)
    whole = await client.chat(model="qwen3:0.6b", messages=HELLO)
    assert whole.message.content == HELLO_TEXT
    with pytest.raises(sdk.ResponseError, match="not found, try pulling it first") as missing:
        await client.embed(model="nothing", input="a")
    assert missing.value.status_code == 404
    with pytest.raises(sdk.ResponseError, match="exceeds the context length") as long:
        await client.embed(model="nomic-embed-text", input=tokens(2049), truncate=False)
    assert long.value.status_code == 400
    ollama.break_stream_after = 1
    broken = await client.chat(model="qwen3:0.6b", messages=HELLO, stream=True)
    with pytest.raises(sdk.ResponseError, match="an error was encountered"):
        [part async for part in broken]
    await client.close()
