"""A secret key and a secret text appear nowhere, through every fault of the server."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import llmopt
from tests.engine.leaks import Gathered
from tests.support.faults import ROWS, Answer, FaultServer, Request, answer_openai, json_answer
from tests.support.faults.fault import Fault
from tests.support.faults.script import Reply
from tests.support.scale import NIGHTLY

KEY = "canary-key-58d1c07e"
TOKEN = "canary-token-93b1e6aa"
PARAMETER = "canary-parameter-6d0f"
TEXT = "canary-text-a07c"
LONG = f"{TEXT} and so on. " * 400
"""Long enough for a body that is compressed."""
AT_ONCE = 24
TIMEOUT_S = 0.3
DEADLINE_S = 2.0


SPELLINGS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in base64": lambda key: b64encode(key.encode()).decode(),
    "in base64 behind a user": lambda key: b64encode(b"me:" + key.encode()).decode(),
}


KEY_HEADERS = ("x-request-id", "content-type", "content-encoding", "apim-request-id", "cf-ray")


def texts(call: int) -> list[str]:
    return [f"{TEXT} {number} {call}" for number in ("one", "two", "three")]


def validator(request: Request) -> Answer:
    """Refuse as FastAPI does: with the value that it did not like."""
    given = request.json() if request.body else None
    return json_answer({"detail": [{"loc": ["body"], "msg": "no", "input": given}]}, status=422)


def echoes() -> Iterator[Fault]:
    """Servers that repeat in their answer, in every place there is, what they were sent."""

    def said(request: Request) -> str:
        given = request.json() if request.body else {}
        words = " ".join(given.get("input") or [each["content"] for each in given.get("messages", ())])
        return f"bad: {words} ({request.header('authorization')}, {request.header('x-gateway-token')}, {request.target})"

    def body(status: int, **others: str) -> Any:
        def reply(request: Request) -> Reply:
            fields = {name: said(request) for name in others}
            return json_answer({"error": {"message": said(request), **fields}}, status=status)

        return reply

    def header(status: int, name: str) -> Any:
        return lambda request: Answer(status, b"{}", [(name, said(request))])

    for status in (200, 400, 401, 404, 413, 422, 429, 500, 503, 600):
        yield Fault("S02", f"echo in a {status}", body(status))
    yield Fault("S02", "echo in all fields", body(400, code="", type="", param=""))
    yield Fault("S02", "echo in plain text", lambda request: Answer(400, said(request).encode()))
    yield Fault("S02", "echo instead of JSON", lambda request: Answer(200, said(request).encode()))
    yield Fault("S02", "echo in the reason", lambda request: Answer(400, b"{}", reason=said(request)))
    yield Fault("S02", "echo as validators do", validator)
    for spelling, spell in SPELLINGS.items():

        def key(request: Request, spell: Callable[[str], str] = spell) -> str:
            return spell((request.header("authorization") or " ").rpartition(" ")[2])

        def error(request: Request, key: Callable[[Request], str] = key) -> Answer:
            return json_answer(
                {"error": {"message": f"bad: {key(request)}", "code": key(request)}}, status=400
            )

        yield Fault("S02", f"the key {spelling} in a 400", error)
        for name in KEY_HEADERS if spelling == "as it is" else KEY_HEADERS[:2]:
            for status in (200, 400):

                def headed(
                    request: Request,
                    name: str = name,
                    status: int = status,
                    key: Callable[[Request], str] = key,
                ) -> Answer:
                    good = answer_openai(request)
                    body = good.body if status == 200 else b"{}"
                    return Answer(status, body, [*good.headers, (name, key(request))])

                yield Fault("S02", f"the key {spelling} in {name} of a {status}", headed)
    for name in (
        "x-request-id",
        "retry-after",
        "location",
        "content-type",
        "set-cookie",
        "x-ratelimit-limit-requests",
    ):
        for status in (200, 302, 400, 429):
            yield Fault("S02", f"echo in {name} of a {status}", header(status, name))


OF_EMBEDDINGS = {"N06", *(f"P{number:02}" for number in range(1, 13))}
"""Their replies are made from the texts of the request."""

FIRST_OF_ROWS = list({fault.row: fault for fault in reversed(list(ROWS))}.values())
FAULTS = [*(ROWS if NIGHTLY else FIRST_OF_ROWS), *echoes()]
"""One fault of each row for every change, all of them at night; every echo always."""


def config(server: FaultServer, folder: Path, number: int) -> dict[str, Any]:
    timeouts = {"connect": TIMEOUT_S, "read": TIMEOUT_S, "pool": TIMEOUT_S, "catalog": TIMEOUT_S}
    entry = {
        "plugin": "local",
        "base_url": server.base_url,
        "api_key": KEY,
        "headers": {"x-gateway-token": TOKEN},
        "query": {"subscription-key": PARAMETER},
        "timeouts": timeouts,
        "retry_delay": 0.001,
        # Long bodies are sent compressed, and again uncompressed where that is refused.
        "compress_requests": True,
    }
    return {"providers": {f"server{number}": entry}, "cache_dir": str(folder)}


async def meet(fault: Fault, number: int, folder: Path, gathered: Gathered) -> None:
    """Let embeddings and the catalogue of one client meet a fault, and look at all that comes of it."""
    async with (
        FaultServer() as server,
        llmopt.AsyncClient(config(server, folder, number), on_event=gathered) as client,
    ):
        server.default(answer_openai)
        name = f"server{number}"
        embeds = [
            # Other texts for each call, or the cache would answer the second one.
            lambda: client.embed(f"{name}/m", texts(1), deadline=DEADLINE_S, extra={"user": TEXT}),
            lambda: client.embed(f"{name}/m", [*texts(2), LONG], errors="return", deadline=DEADLINE_S),
        ]
        catalog = [lambda: client.list_models(name, deadline=DEADLINE_S)]
        said = [{"role": "user", "content": f"{TEXT} in a chat, {LONG}"}]

        async def streamed() -> object:
            async with client.stream(f"{name}/m", said, deadline=DEADLINE_S) as answer:
                return [event async for event in answer]

        chats = [lambda: client.chat(f"{name}/m", said, deadline=DEADLINE_S), streamed]
        calls: list[Callable[[], Awaitable[object]]] = [
            *(embeds if fault.row != "P13" else []),
            *(catalog if fault.row not in OF_EMBEDDINGS else []),
            *(chats if not fault.row.startswith("P") and fault.row not in OF_EMBEDDINGS else []),
        ]
        for call in calls:
            fault.inject(server)
            try:
                found = await call()
            except llmopt.LLMOptError as error:
                gathered.error(str(fault), error)
            else:
                gathered.look(f"{fault}: result", repr(found), str(found))
                for error in getattr(found, "errors", {}).values():
                    gathered.error(str(fault), error)
        gathered.look(f"{fault}: stats", repr(client.stats()), repr(client))
        if number % 40 == 0:
            gathered.objects()


@pytest.mark.row("S02")
async def test_keys_and_input_texts_do_not_leak(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Logs at DEBUG, tracebacks with our locals, pickles, events, stats, reprs, output, files: no hit."""
    gathered = Gathered(
        keys=[KEY, TOKEN, PARAMETER, *(spell(KEY)[8:20] for spell in SPELLINGS.values())], texts=[TEXT]
    )
    room = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, fault: Fault) -> None:
        async with room:
            await meet(fault, number, tmp_path, gathered)

    with gathered.listening():
        await asyncio.gather(*(one(number, fault) for number, fault in enumerate(FAULTS)))
    gathered.folder(tmp_path)
    gathered.look("standard output and error", *capfd.readouterr())
    assert gathered.hits() == []
    # It looked at something: more than one error for every second fault, and every request's events.
    assert gathered.errors > len(FAULTS) / 2
    assert gathered.events > 10 * len(FAULTS)
    assert gathered.records > len(FAULTS)


class LocalVariables:
    """Looks at the local variables of every frame of llmopt at the moment when it returns or raises."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.frames = 0
        self.hits: set[str] = set()

    def trace(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        if "/llmopt" not in code.co_filename:
            return None
        frame.f_trace_lines = False
        if event in ("return", "exception"):
            self.frames += 1
            for name, value in frame.f_locals.items():
                with suppress(Exception):
                    shown = repr(value)
                    self.hits |= {f"{code.co_qualname}: {name}" for word in self._words if word in shown}
        return self.trace


@pytest.mark.row("S02")
@pytest.mark.parametrize("plugin", ["compatible", "openai", "mistral", "azure"])
async def test_no_local_variable_of_a_request_shows_a_key(plugin: str) -> None:
    """So no traceback with local variables does, wherever a request fails. A server's answer is hidden as well."""
    variables = LocalVariables([KEY, TOKEN, PARAMETER])
    async with FaultServer() as server:
        entry = {
            "plugin": plugin,
            "base_url": server.base_url,
            "api_key": KEY,
            "headers": {"x-gateway-token": TOKEN},
            "query": {"subscription-key": PARAMETER},
        }
        async with llmopt.AsyncClient({"providers": {"server": entry}}, cache=False) as client:
            said = [{"role": "user", "content": "Hello?"}]
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: client.embed("server/m", ["a"]),
                lambda: client.list_models("server"),
                lambda: client.chat("server/m", said),
            ]
            sys.settrace(variables.trace)
            try:
                for answer in (answer_openai, Answer(400, b"{}"), Answer(401, b"{}")):
                    server.default(answer)
                    for call in calls:
                        with suppress(llmopt.LLMOptError):
                            await call()
            finally:
                sys.settrace(None)
    assert variables.hits == set()
    assert variables.frames > 500
