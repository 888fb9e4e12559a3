"""The hook `sign_request`: AWS Signature Version 4 over what is sent, through the pool."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

import llmopt
from llmopt import Call, FormField, HttpRequest, PluginContractError, Settings, hookimpl
from llmopt.testing.clock import SimulatedClock, run_simulated
from tests.support import sigv4
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, error_answer, json_answer
from tests.support.faults.request import Request

MESSAGES = [{"role": "user", "content": "hello " * 5_000}]
REPLY = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]
}
KEYS = {"AKIDEXAMPLE": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"}


class Bedrock:
    """Signs instead of sending the key, with a path whose colon is escaped."""

    def __init__(self, body: Mapping[str, Any] | None = None) -> None:
        self.body = {"json": {"messages": MESSAGES}} if body is None else body

    @hookimpl
    def build_request(self, call: Call, settings: Settings) -> HttpRequest:
        return HttpRequest(method="POST", path="/model/a%3A0/invoke", headers=settings.headers, **self.body)

    @hookimpl
    def sign_request(self, request: HttpRequest, now: float, settings: Settings) -> Mapping[str, str]:
        assert settings.credential is not None
        return sigv4.sign(
            request.method,
            request.path,
            request.content or b"",
            key_id="AKIDEXAMPLE",
            secret=settings.credential.reveal(),
            region="us-east-1",
            service="bedrock",
            now=now,
        )


def chats(
    plugin: object,
    *,
    answer: Any = None,
    secret: str = KEYS["AKIDEXAMPLE"],
    messages: Any = MESSAGES,
    **entry: Any,
) -> list[Request]:
    """One chat with a server that checks signatures; its requests."""

    async def main(clock: SimulatedClock) -> list[Request]:
        async with FaultServer(sleep=clock.sleep, clock=clock.now) as server:

            def verify(request: Request) -> Any:
                wrong = sigv4.problem(request, KEYS, clock.wall())
                if wrong is not None:
                    return error_answer(403, wrong)
                return (answer and answer(server, request)) or json_answer(REPLY)

            server.default(verify)
            config = provider_config(server, api_key=secret, **entry)
            async with llmopt.AsyncClient(config, plugins=[plugin], clock=clock, cache=False) as client:
                reply = await client.chat("server/m", messages, headers={"x-tenant": "one"})
                assert reply.text == "ok"
            return list(server.requests)

    return run_simulated(main)


def test_the_signer_of_these_tests_signs_as_aws_does() -> None:
    """The published example "get-vanilla"."""
    found = sigv4.sign(
        "GET",
        "https://example.amazonaws.com/",
        b"",
        key_id="AKIDEXAMPLE",
        secret=KEYS["AKIDEXAMPLE"],
        region="us-east-1",
        service="service",
        now=1_440_938_160.0,
    )
    assert found["x-amz-date"] == "20150830T123600Z"
    assert found["authorization"].endswith("5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31")


@pytest.mark.parametrize(
    "body",
    [
        None,
        {"content": bytes(300_000), "content_type": "audio/wav"},
        {"form": (FormField("a", b"\x00" * 9_000),)},
    ],
    ids=["json", "large", "form"],
)
@pytest.mark.parametrize("compress", [False, True])
def test_the_signature_covers_what_is_sent(body: Mapping[str, Any] | None, compress: bool) -> None:
    """Any body, compressed or not; the key itself is not sent."""
    (request,) = chats(Bedrock(body), compress_requests=compress)
    assert (request.header("content-encoding") == "gzip") is compress
    assert request.header("x-tenant") == "one"
    assert KEYS["AKIDEXAMPLE"] not in str(request)


def test_each_attempt_is_signed_anew() -> None:
    """With the time of the attempt; and a plain body has another signature than the compressed one that was refused."""

    def answer(server: FaultServer, request: Request) -> Any:
        if len(server.requests) == 1:
            return error_answer(503, "later", headers=[("retry-after", "100")])
        return error_answer(415, "no gzip") if request.header("content-encoding") else None

    first, second, plain = chats(Bedrock(), answer=answer, compress_requests=True)
    assert first.body == second.body != plain.body
    assert json.loads(plain.body) == {"messages": MESSAGES}
    signatures = {each.header("authorization") for each in (first, second, plain)}
    assert len(signatures) == 3
    dates = [int((each.header("x-amz-date") or "")[9:15]) for each in (first, second, plain)]
    assert dates[1] - dates[0] in range(100, 200)
    assert dates[2] == dates[1]


def test_a_wrong_key_is_refused() -> None:
    """So the server of these tests does check."""
    with pytest.raises(llmopt.LLMOptError, match="does not match"):
        chats(Bedrock(), secret="another-secret-key")


class Wrong:
    """Returns what is no headers."""

    def __init__(self, headers: Any) -> None:
        self.headers = headers

    @hookimpl
    def sign_request(self) -> Any:
        return self.headers


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        (3, "returned int; expected a mapping of headers"),
        ({"x": "a\r\nb: canary"}, "a header 'x' that HTTP does not"),
        ({1: "canary"}, "a header 1 that HTTP does not"),
        ({"Content-Length": "5"}, "a header 'Content-Length' that HTTP does not allow, or that llmopt sets"),
        ({"transfer-encoding": "chunked"}, "a header 'transfer-encoding' that HTTP does not"),
    ],
)
def test_wrong_headers_are_the_plugins_error(headers: Any, words: str) -> None:
    """Nothing is sent, and no value is shown."""
    with pytest.raises(PluginContractError, match=words) as caught:
        chats(Wrong(headers))
    assert "canary" not in str(caught.value)


def test_a_plugin_may_leave_a_request_unsigned() -> None:
    """None, as of every hook, is no answer of its own."""
    with pytest.raises(llmopt.LLMOptError, match="IncompleteSignature"):
        chats(Wrong(None))
