"""Plugins that were written for the first contract run unchanged; tests/thirdparty/earlier keeps them, and thirdparty/acme is one too."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

import llmopt
from llmopt.testing import installed
from llmopt_conformance import conformance
from tests.support.scale import nightly_only
from tests.thirdparty.earlier import hooks, own

test_own_format_conforms = nightly_only(conformance(own, name="own", samples=own.SAMPLES))
MESSAGES = [{"role": "user", "content": "hello"}]
ANSWERS: dict[str, Any] = {
    "/v1/limits": {"items": 3},
    "/v1/list": {"names": ["a", "b"]},
    "/v1/chat": {"text": "hi"},
}


class Server:
    """Answers in the format of `hooks`, the first request for vectors with 418; keeps what was sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        body = json.loads(request.content or b"null")
        self.sent.append((path, body))
        if path == "/v1/stream":
            events = b"data: he\n\ndata: llo\n\ndata: call\n\ndata: end\n\n"
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=events)
        if path != "/v1/embed":
            return httpx.Response(200, json=ANSWERS[path])
        if len([each for each, _ in self.sent if each == path]) == 1:
            return httpx.Response(418, json={"error": "no tea"})
        return httpx.Response(200, json={"rows": [[len(text), 1.0] for text in body["in"]]})


def test_every_hook_of_the_first_contract_runs_unchanged() -> None:
    """Embeddings with a retry and with limits that were asked for, a list, a chat, a stream with a call, costs."""
    server = Server()

    async def main() -> tuple[Any, ...]:
        config = {"providers": {"earlier": {"api_key": "key", "region": "eu", "retry_delay": 0.0}}}
        async with llmopt.AsyncClient(config, transport=httpx.MockTransport(server), cache=False) as client:
            rows = await client.embed("earlier/m", ["a", "bb", "ccc", "dddd"])
            names = [each.id for each in await client.list_models("earlier")]
            reply = await client.chat("earlier/m", MESSAGES)
            async with client.stream("earlier/m", MESSAGES) as stream:
                said = "".join([event.text async for event in stream])
            return rows, names, reply, said, stream.reply

    with installed("earlier", hooks):
        rows, names, reply, said, streamed = asyncio.run(main())
    assert rows.vectors[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert sorted(len(body["in"]) for path, body in server.sent if path == "/v1/embed") == [2, 2, 2]
    assert names == ["a", "b"]
    assert (reply.text, reply.tool_calls[0].name, reply.finish_reason) == ("hi", "look", "tool_calls")
    assert (said, streamed.text, streamed.tool_calls[0].id) == ("hello", "hello", "c1")
    assert streamed.usage is not None
    assert (streamed.usage.prompt_tokens, streamed.usage.total_tokens) == (1, 2)
