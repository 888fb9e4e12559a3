"""Bodies that are not JSON: bytes and forms, through retries, compression and the pool."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import tracemalloc
from contextlib import suppress
from email.parser import BytesParser
from typing import Any

import pytest

import llmopt
from llmopt import Call, FormField, HttpRequest, PluginContractError, Settings, hookimpl
from llmopt.testing.harness import encode_request
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, error_answer, json_answer
from tests.support.faults.request import Request

MESSAGES = [{"role": "user", "content": "what is said here?"}]
REPLY = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]
}


class Builds:
    """Sends each chat with a body of its own."""

    def __init__(self, **body: Any) -> None:
        self.body = body

    @hookimpl
    def build_request(self, call: Call, settings: Settings) -> HttpRequest:
        return HttpRequest(
            method="POST",
            path="/audio",
            headers={"Content-Type": "of/json", **settings.headers, **settings.auth_headers()},
            **self.body,
        )


def parts_of(kind: str | None, body: bytes) -> list[tuple[str | None, str | None, str, bytes]]:
    """Name, file name, type and value of each field, as the standard library reads them."""
    message = BytesParser().parsebytes(f"content-type: {kind}\r\n\r\n".encode() + body)
    assert message.is_multipart()
    assert not message.defects
    found: list[tuple[str | None, str | None, str, bytes]] = []
    for part in message.walk():
        if part is not message:
            name = part.get_param("name", header="content-disposition")
            value = part.get_payload(decode=True)
            assert isinstance(value, bytes)
            found.append((str(name), part.get_filename(), part.get_content_type(), value))
    return found


FORM = (
    FormField("model", "whisper"),
    FormField("file", b"\x00\r\n--\xff", filename="a b.wav", content_type="audio/wav"),
    FormField("prompt", "Grüße\n"),
)


async def test_a_form_arrives_field_by_field() -> None:
    """Text as UTF-8, bytes unchanged, with the names of files."""
    async with FaultServer() as server:
        server.default(json_answer(REPLY))
        async with llmopt.AsyncClient(provider_config(server), plugins=[Builds(form=FORM)]) as client:
            await client.chat("server/m", MESSAGES)
        (request,) = server.requests
    assert parts_of(request.header("content-type"), request.body) == [
        ("model", None, "text/plain", b"whisper"),
        ("file", "a b.wav", "audio/wav", b"\x00\r\n--\xff"),
        ("prompt", None, "text/plain", "Grüße\n".encode()),
    ]


@pytest.mark.parametrize(
    ("body", "kind"),
    [({"content": b"\x00" * 20_000, "content_type": "audio/wav"}, "audio/wav"), ({"form": FORM * 500}, None)],
    ids=["content", "form"],
)
async def test_compression_and_retries_send_the_same_body(body: dict[str, Any], kind: str | None) -> None:
    """An attempt that fails, a refusal of compressed bodies, then the plain body."""

    def answer(request: Request) -> object:
        if len(server.requests) == 1:
            return error_answer(503, "later")
        if request.header("content-encoding"):
            return error_answer(415, "no gzip")
        return json_answer(REPLY)

    async with FaultServer() as server:
        server.default(answer)  # type: ignore[arg-type] # it returns an Answer
        config = provider_config(server, compress_requests=True, retry_delay=0.001)
        async with llmopt.AsyncClient(config, plugins=[Builds(**body)]) as client:
            await client.chat("server/m", MESSAGES)
        first, second, plain = server.requests
    assert first.body == second.body
    assert gzip.decompress(first.body) == plain.body
    kinds = {each.header("content-type") for each in server.requests}
    assert len(kinds) == 1
    assert plain.body == body["content"] if kind else len(parts_of(kinds.pop(), plain.body)) == 1_500


WRONG = [
    ({"json": {}, "content": b"x"}, "gave json and content, but a request has one body"),
    ({"content": b"x", "form": FORM}, "gave content and form, but a request has one body"),
    ({"content": "text"}, "gave content of type str, not bytes"),
    ({"form": ({"name": "a"},)}, "built a form that cannot be sent"),
    ({"form": (FormField("a", 3),)}, "built a form that cannot be sent"),  # type: ignore[arg-type] # the point
    ({"form": (FormField("a", "b", content_type="x\r\ny: z"),)}, "wants to send a header 'content-type'"),
    ({"content": b"x", "content_type": "x\r\ny: z"}, "wants to send a header 'content-type'"),
]


@pytest.mark.parametrize(("body", "words"), WRONG)
def test_a_body_that_cannot_be_sent_is_the_plugins_error(body: dict[str, Any], words: str) -> None:
    """It says what was given."""
    settings = Settings(provider="acme", base_url="https://api.acme.test")
    with pytest.raises(PluginContractError, match=f"the plugin of 'acme' {words}"):
        encode_request(HttpRequest(method="POST", path="/a", **body), settings)


def test_names_cannot_leave_their_place() -> None:
    """As browsers escape them."""
    field = FormField('a"\r\nb: c', b"", filename='x";\r\n\r\n')
    settings = Settings(provider="acme", base_url="https://api.acme.test")
    sent = encode_request(HttpRequest(method="POST", path="/a", form=(field,)), settings)
    assert b'name="a%22%0D%0Ab: c"; filename="x%22;%0D%0A%0D%0A"\r\n\r\n' in (sent.body or b"")


async def test_vectors_are_cached_by_the_whole_body() -> None:
    """Two files of one length are two requests."""
    from llmopt.operations.cache_keys import _request

    class Endpoint:
        settings_without_credential = Settings(provider="acme")
        config = Settings(provider="acme", base_url="https://api.acme.test")

        def __init__(self, **body: Any) -> None:
            self.hooks = Builds(**body)

    bodies: list[dict[str, Any]] = [
        {"content": b"one"},
        {"content": b"two"},
        {"content": b"one", "content_type": "text/plain"},
        {"form": (FormField("a", b"one"),)},
        {"form": (FormField("a", b"two"),)},
        {"form": (FormField("a", b"one", filename="f"),)},
        {"json": None},
    ]
    found = {repr(_canonical(_request(Endpoint(**each), llmopt.EmbedCall(model="m")))) for each in bodies}  # type: ignore[arg-type] # as much of an endpoint as is used
    assert len(found) == len(bodies)


def _canonical(value: Any) -> bytes:
    from llmopt.operations.cache_keys import _canonical_json

    return _canonical_json(value)


async def test_a_file_of_50_megabytes_is_sent_in_bounded_memory() -> None:
    """Beside the file itself: one body for each of two attempts, however many there are, and no copy in the transport."""
    received: list[tuple[int, str]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                left = size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                digest = hashlib.sha1(usedforsecurity=False)
                while left:
                    piece = await reader.read(min(left, 1 << 20))
                    digest.update(piece)
                    left -= len(piece)
                received.append((size, digest.hexdigest()))
                body, status = (
                    (b"{}", b"503 Later") if len(received) < 3 else (json.dumps(REPLY).encode(), b"200 OK")
                )
                writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    form = (FormField("file", bytes(50 << 20), filename="a.wav"),)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1 << 20)
    port = server.sockets[0].getsockname()[1]
    entry = {
        "plugin": "local",
        "base_url": f"http://127.0.0.1:{port}/v1",
        "retry_delay": 0.001,
        "max_retries": 4,
    }
    async with llmopt.AsyncClient({"providers": {"s": entry}}, plugins=[Builds(form=form)]) as client:
        tracemalloc.start()
        try:
            await client.chat("s/m", MESSAGES)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    server.close()
    await server.wait_closed()
    assert len(set(received)) == 1
    assert len(received) == 3
    assert received[0][0] > 50 << 20
    assert peak < 104 << 20
