"""Keys of a request's body that a server may refuse, and that llmopt then leaves out or renames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmopt
from llmopt.compatible.defaults import refused_keys, without_keys
from tests.support.configuration import provider_config
from tests.support.faults import Answer, FaultServer, Request, answer_openai, error_answer, vector_for
from tests.support.faults.openai import chat_payload, stream_answer
from tests.support.faults.response import json_answer
from tests.support.faults.script import Reply

MESSAGES = [{"role": "user", "content": "hi"}]
WAYS: dict[str, Callable[[str], Answer]] = {
    "OpenAI, old": lambda key: error_answer(400, f"Unrecognized request argument supplied: {key}"),
    "OpenAI, new": lambda key: json_answer(
        {"error": {"message": f"Unknown parameter: '{key}'.", "param": key, "code": "unknown_parameter"}}, status=400
    ),
    "strict pydantic": lambda key: json_answer(
        {"detail": [{"loc": ["body", key], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}]},
        status=422,
    ),
    "flat": lambda key: json_answer(
        {"object": "error", "message": f"Extra inputs are not permitted, field: '{key}'"}, status=400
    ),
    "text": lambda key: Answer(400, f"{key} is not supported by this model".encode(), []),
    "a crash": lambda key: error_answer(500, f"TypeError: create() got an unexpected keyword argument '{key}'"),
}  # fmt: skip


def refusing(*keys: str, way: str, models: tuple[str, ...] = ()) -> Callable[[Request], Reply]:
    """A chat server that refuses these keys, for all models or some."""

    def reply(request: Request) -> Reply:
        body = request.json()
        for key in keys:
            if key in body and (not models or body["model"] in models):
                return WAYS[way](key)
        return stream_answer(["good"]) if body.get("stream") else json_answer(chat_payload(["good"]))

    return reply


async def stream_text(client: llmopt.AsyncClient, model: str = "server/m", **options: Any) -> str:
    async with client.stream(model, MESSAGES, **options) as stream:
        async for _ in stream:
            pass
    return stream.text


@pytest.mark.row("B08")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("plugin", ["local", "compatible", "openai"])
@pytest.mark.parametrize("flags", [{}, {"retry": False}], ids=["", "no retries"])
async def test_a_stream_comes_without_its_usage(way: str, plugin: str, flags: dict[str, bool]) -> None:
    """The endpoint refuses once; later streams, also of another model, are sent without the key."""
    async with FaultServer() as server:
        server.default(refusing("stream_options", way=way))
        keys = provider_config(server, plugin=plugin, api_key="test-key", retry_delay=0.001, flags=flags)
        async with llmopt.AsyncClient(keys) as client:
            assert await stream_text(client) == "good"
            assert await stream_text(client, "server/other") == "good"
        assert ["stream_options" in request.json() for request in server.requests] == [True, False, False]


@pytest.mark.row("B08")
@pytest.mark.parametrize("way", WAYS)
async def test_the_old_name_of_the_maximum(way: str) -> None:
    """A server that knows ``max_tokens`` only gets the number under that name."""
    async with FaultServer() as server:
        server.default(refusing("max_completion_tokens", "stream_options", way=way))
        keys = provider_config(server, plugin="openai", api_key="test-key", retry_delay=0.001)
        async with llmopt.AsyncClient(keys) as client:
            assert (await client.chat("server/m", MESSAGES, max_tokens=7)).text == "good"
            assert await stream_text(client, max_tokens=7) == "good"
        bodies = [request.json() for request in server.requests]
        assert [body.get("max_tokens") for body in bodies] == [None, 7, 7, 7]
        assert "stream_options" not in bodies[-1]


@pytest.mark.row("B08")
async def test_the_new_name_for_the_models_that_want_it() -> None:
    """Models that reason refuse ``max_tokens``; others of the same server keep it."""
    advice = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."

    def reply(request: Request) -> Reply:
        body = request.json()
        if body["model"] == "thinker" and "max_tokens" in body:
            return error_answer(400, advice, code="unsupported_parameter")
        return json_answer(chat_payload(["good"]))

    async with FaultServer() as server:
        server.default(reply)
        async with llmopt.AsyncClient(provider_config(server, plugin="compatible")) as client:
            for model in ("thinker", "plain", "thinker"):
                assert (await client.chat(f"server/{model}", MESSAGES, max_tokens=7)).text == "good"
        names = [next(key for key in request.json() if key.startswith("max_")) for request in server.requests]
    assert names == ["max_tokens", "max_completion_tokens", "max_tokens", "max_completion_tokens"]


async def test_what_is_refused_under_both_names_is_an_error() -> None:
    """After one request for each name, and never an endless loop."""
    async with FaultServer() as server:
        server.default(refusing("max_completion_tokens", "max_tokens", way="OpenAI, new"))
        keys = provider_config(server, plugin="openai", api_key="test-key")
        async with llmopt.AsyncClient(keys) as client:
            with pytest.raises(llmopt.BadRequest, match="Unknown parameter"):
                await client.chat("server/m", MESSAGES, max_tokens=7)
            assert len(server.requests) == 3
            with pytest.raises(llmopt.BadRequest, match="Unknown parameter"):
                await client.chat("server/m", MESSAGES, max_tokens=7)
            assert len(server.requests) == 4


@pytest.mark.parametrize("cause", ["stream_options", "temperature"])
async def test_a_refusal_without_any_name_is_tried_without_the_key_once(cause: str) -> None:
    """Some servers say "Param Incorrect" to everything: the stream comes, or the error is that of another key."""

    def reply(request: Request) -> Reply:
        if cause in request.json():
            return json_answer({"code": "400", "message": "Param Incorrect"}, status=400)
        return stream_answer(["good"])

    async with FaultServer() as server:
        server.default(reply)
        async with llmopt.AsyncClient(provider_config(server, plugin="compatible")) as client:
            if cause == "stream_options":
                for _ in range(2):
                    assert await stream_text(client) == "good"
                # Another mistake in the same words changes nothing.
                server.play(json_answer({"code": "400", "message": "Param Incorrect"}, status=400))
                with pytest.raises(llmopt.BadRequest):
                    await stream_text(client)
                assert await stream_text(client) == "good"
                assert len(server.requests) == 5
            else:
                for requests in (2, 3):
                    with pytest.raises(llmopt.BadRequest, match="Param Incorrect"):
                        await stream_text(client, temperature=0.5)
                    assert len(server.requests) == requests
                # The key was not the cause, and is sent as before.
                assert await stream_text(client) == "good"
                assert "stream_options" in server.requests[-1].json()


async def test_what_the_caller_asks_for_is_not_left_out() -> None:
    """A key of ``extra`` is the caller's own: its refusal is the caller's error."""
    async with FaultServer() as server:
        server.default(refusing("stream_options", way="flat"))
        keys = provider_config(server, plugin="compatible", stream_usage=False)
        async with llmopt.AsyncClient(keys) as client:
            with pytest.raises(llmopt.BadRequest, match="stream_options"):
                await stream_text(client, extra={"stream_options": {"include_usage": True}})
            assert await stream_text(client) == "good"
    assert len(server.requests) == 2


@pytest.mark.parametrize("plugin", ["local", "compatible", "openai"])
async def test_the_configuration_switches_it_off(plugin: str) -> None:
    """For one endpoint or for all of an entry."""
    async with FaultServer() as first, FaultServer() as second:
        for server in (first, second):
            server.default(refusing(way="flat"))
        places = [{"base_url": first.base_url, "stream_usage": False}, {"base_url": second.base_url}]
        keys: dict[str, Any] = {"plugin": plugin, "api_key": "test-key", "endpoints": places}
        async with llmopt.AsyncClient({"providers": {"server": keys}}) as client:
            for _ in range(12):
                await stream_text(client)
        assert {"stream_options" in request.json() for request in first.requests} == {False}
        assert {"stream_options" in request.json() for request in second.requests} == {True}


BASE64_REFUSALS = {
    **{way: answer("encoding_format") for way, answer in WAYS.items()},
    "vLLM, old": json_answer(
        {"object": "error", "message": "base64 encoding is not currently supported", "code": 400}, status=400
    ),
    "a value": json_answer({"error": {"message": "Invalid value: 'base64'.", "param": "encoding_format"}}, status=400),
    "strict pydantic, a value": json_answer(
        {"detail": [{"loc": ["body", "encoding_format"], "msg": "Input should be 'float'", "input": "base64"}]}, status=422
    ),
    "501": error_answer(501, "base64 is not supported yet"),
}  # fmt: skip


@pytest.mark.row("P06")
@pytest.mark.parametrize("way", BASE64_REFUSALS)
async def test_vectors_come_as_lists(way: str) -> None:
    """An endpoint that refuses base64 is asked for it once, and not searched for a text at fault."""

    def reply(request: Request) -> Reply:
        return BASE64_REFUSALS[way] if "encoding_format" in request.json() else answer_openai(request)

    async with FaultServer() as server:
        server.default(reply)
        keys = provider_config(server, plugin="openai", api_key="test-key", retry_delay=0.001)
        async with llmopt.AsyncClient(keys) as client:
            result = await client.embed("server/m", ["one", "two"])
            await client.embed("server/other", ["three"])
    assert result.vectors.tolist() == [list(vector_for(text)) for text in ("one", "two")]
    assert ["encoding_format" in request.json() for request in server.requests] == [True, False, False]


async def test_base64_that_the_caller_asks_for_is_not_left_out() -> None:
    async with FaultServer() as server:
        server.default(BASE64_REFUSALS["vLLM, old"])
        keys = provider_config(server, plugin="openai", api_key="test-key")
        async with llmopt.AsyncClient(keys) as client:
            with pytest.raises(llmopt.BadRequest, match="base64"):
                await client.embed("server/m", ["one"], extra={"encoding_format": "base64"})
    assert len(server.requests) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("stream_options", "max_completion_tokens", "max_tokens", "encoding_format", "base64")


@given(message=st.text(), param=st.none() | st.text(), noise=st.dictionaries(st.text(max_size=8), VALUES))
def test_other_refusals_leave_every_key(message: str, param: str | None, noise: Mapping[str, Any]) -> None:
    """Whatever a server says: without the name of a key, none is left out."""
    if any(key in message + (param or "") for key in KEYS):
        return
    body = b'{"stream_options":{},"encoding_format":"base64","max_tokens":1}'
    assert refused_keys(message, param, body, {}) == ()
    assert without_keys(dict(noise), set(KEYS[:3])) == {
        key: noise[key] for key in noise if key != "stream_options"
    }


@pytest.mark.row("B08")
@pytest.mark.parametrize(
    "message",
    [
        "max_tokens must be less than or equal to 16384, the maximum value for max_tokens is less than the context",
        "max_completion_tokens is too large: 64000. This model supports at most 16384 completion tokens",
        "Invalid 'max_completion_tokens': integer above maximum value. Expected a value <= 4096",
        "max_tokens is required",
    ],
)
def test_a_number_that_is_too_high_is_no_unknown_key(message: str) -> None:
    """Under another name it would be just as high, or not be read at all."""
    body = b'{"max_completion_tokens":64000,"max_tokens":64000}'
    assert refused_keys(message, None, body, {}) == ()


def test_texts_that_quote_a_key_do_not_count() -> None:
    """Only keys that were sent can have been refused."""
    assert refused_keys("unknown key stream_options", None, b'{"a":"\\"stream_options\\":"}', {}) == ()
