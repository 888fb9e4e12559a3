"""Conversations and embeddings with an emulated Gemini, over real sockets: functions, signatures, refusals and limits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

import llmopt
import llmopt_plugin_google
from llmopt.testing import installed
from tests.support.conversation import QUESTION, TOOLS, ask, converse
from tests.support.emulators import GoogleEmulator, vector_for

MODEL = "gemini/gemini-3-pro-preview"


@pytest.fixture
async def server() -> AsyncIterator[GoogleEmulator]:
    async with GoogleEmulator() as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def plugin() -> Iterator[None]:
    with installed("kit-google", llmopt_plugin_google):
        yield


def client_of(server: GoogleEmulator, **more: Any) -> llmopt.AsyncClient:
    entry = {
        "base_url": server.base_url,
        "api_key": "test-key",
        "plugin": "kit-google",
        "retry_delay": 0.01,
    }
    return llmopt.AsyncClient({"providers": {"gemini": entry}}, **more)


def called(**given: Any) -> dict[str, Any]:
    return {"functionCall": {"name": "look", "args": given}}


SCRIPT = [
    [{"text": "Step 1, I think", "thought": True}, called(at="the table")],
    # Of parallel calls the first one alone is signed, and one has an id of its own.
    [called(), called(at="the door"), {"functionCall": {"name": "look", "args": {}, "id": "ab12"}}],
    [{"text": "At the door."}, {"text": "", "thoughtSignature": ""}],
    [{"text": "You are welcome."}],
]


@pytest.mark.parametrize("stored", [False, True], ids=["", "stored as JSON"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_signatures_go_back_over_the_turns_of_a_conversation(
    server: GoogleEmulator, streamed: bool, stored: bool
) -> None:
    """Two steps with calls, an answer and another question; the server refuses a signature that was lost or moved."""
    server.script = list(SCRIPT)
    async with client_of(server) as client:
        replies = await converse(client, MODEL, len(SCRIPT), streamed=streamed, stored=stored)
    assert len(server.requests) == len(SCRIPT), "no request was refused"
    assert [reply.finish_reason for reply in replies] == ["tool_calls", "tool_calls", "stop", "stop"]
    assert replies[0].reasoning == "Step 1, I think"
    given = [json.loads(each.arguments) for each in replies[1].tool_calls]
    assert given == [{}, {"at": "the door"}, {}]
    assert replies[2].text == "At the door."
    ids = [each.id for reply in replies for each in reply.tool_calls]
    assert len({*ids}) == len(ids) == 4, "calls without an id have got one each"
    sent = server.requests[-1].json["contents"]
    assert sent[5]["parts"][-1]["thoughtSignature"], "that of an empty text went back too"


@pytest.mark.parametrize("loses", ["all of it", "a letter"])
async def test_the_emulator_refuses_what_was_lost(server: GoogleEmulator, loses: str) -> None:
    """Without this the test above would prove nothing."""
    server.script = [SCRIPT[1]]
    async with client_of(server) as client:
        first = (await client.chat(MODEL, [QUESTION], tools=TOOLS)).message.as_dict()
        parts = first["provider_data"]["google.parts"]
        if loses == "all of it":
            del parts[0]["thoughtSignature"]
        else:
            parts[0] = {**parts[0], "thoughtSignature": "x"}
        results = [
            {"role": "tool", "tool_call_id": each["id"], "content": "no"} for each in first["tool_calls"]
        ]
        with pytest.raises(llmopt.BadRequest, match=r"missing a thought_signature|Invalid thought signature"):
            await client.chat(MODEL, [QUESTION, first, *results], tools=TOOLS)


async def test_a_conversation_may_come_from_another_provider(server: GoogleEmulator) -> None:
    """Its calls were signed by nobody."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    told: list[dict[str, Any]] = [
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call], "provider_data": {"other": {"x": 1}}},
        {"role": "tool", "tool_call_id": "call_1", "content": "a key"},
    ]
    async with client_of(server) as client:
        assert (await client.chat(MODEL, told, tools=TOOLS)).text == "You said: a key"


async def test_a_blocked_prompt_and_a_failed_answer(server: GoogleEmulator) -> None:
    server.block = "PROHIBITED_CONTENT"
    async with client_of(server, flags={"retry": False}) as client:
        for streamed in (False, True):
            reply = await ask(client, MODEL, [QUESTION], streamed=streamed)
            assert (reply.text, reply.finish_reason) == ("", "content_filter")
            assert reply.refusal == "The prompt was blocked."
        server.block, server.finish = None, ("MALFORMED_FUNCTION_CALL", False)
        for streamed in (False, True):
            with pytest.raises(llmopt.ServerError, match="MALFORMED_FUNCTION_CALL"):
                await ask(client, MODEL, [QUESTION], streamed=streamed)


async def test_an_answer_that_breaks_off_has_the_words_before_it(server: GoogleEmulator) -> None:
    server.break_stream_after = 3
    async with client_of(server) as client:
        with pytest.raises(llmopt.StreamInterrupted) as broken:
            await ask(client, MODEL, [QUESTION], streamed=True)
    assert broken.value.text == "You said: Where"


async def test_a_list_in_pages(server: GoogleEmulator) -> None:
    server.page_size = 3
    async with client_of(server) as client:
        models = await client.list_models("gemini")
    assert len(server.requests) == 3
    assert [model.id for model in models] == list(server.models_by_name)
    assert [model.id for model in models if model.kind == "embedding"] == [
        "gemini-embedding-001",
        "gemini-embedding-2",
    ]


@pytest.mark.parametrize("model", ["gemini-embedding-001", "gemini-embedding-2"])
async def test_embeddings_in_hundreds(server: GoogleEmulator, model: str) -> None:
    """250 texts are three requests, none of which is refused; shorter vectors of both models have the norm 1."""
    texts = [f"text {number}" for number in range(250)]
    async with client_of(server) as client:
        result = await client.embed(f"gemini/{model}", texts, dimensions=128, input_type="document")
    assert [len(request.json["requests"]) for request in server.requests] == [100, 100, 50]
    sent = texts if model.endswith("001") else [f"title: none | text: {text}" for text in texts]
    wanted = np.array([vector_for(text, 128) for text in sent])
    np.testing.assert_allclose(result.vectors, wanted, rtol=1e-5)
    tokens = sum(-(-len(text) // 4) for text in sent)
    assert result.usage.prompt_tokens == (0 if model.endswith("001") else tokens)


async def test_a_limit_of_a_minute_is_waited_for_and_that_of_a_day_is_not(server: GoogleEmulator) -> None:
    quota = {"@type": "type.googleapis.com/google.rpc.QuotaFailure"}
    for name, delay in (("PerMinute", "0.01s"), ("PerDay", "3600s")):
        violation = {"quotaId": f"GenerateRequests{name}PerProjectPerModel-FreeTier"}
        retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
        words = "You exceeded your current quota, please check your plan and billing details."
        body = server.envelope(429, words, {**quota, "violations": [violation]}, retry)
        server.fail_next(429, body)
    async with client_of(server) as client:
        # The first refusal was the first answer: the second one is that of the retry.
        with pytest.raises(llmopt.QuotaExhausted):
            await client.chat(MODEL, [QUESTION])
        assert len(server.requests) == 2


async def test_a_wrong_key_has_the_status_of_a_bad_request() -> None:
    async with GoogleEmulator(key="another") as server, client_of(server) as client:
        with pytest.raises(llmopt.AuthError):
            await client.chat(MODEL, [QUESTION])


async def test_what_the_plugin_writes_for_each_model_is_accepted(server: GoogleEmulator) -> None:
    """Efforts, penalties, schemas and choices, by the rules of each model."""
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    chats = [model for model in server.models_by_name.values() if not model.embeds]
    async with client_of(server) as client:
        for model in chats:
            name = f"gemini/{model.name}"
            for effort in ("none", "minimal", "low", "high"):
                await client.chat(name, [QUESTION], reasoning_effort=effort, response_format=schema, seed=1)
            if model.penalties:
                await client.chat(name, [QUESTION], presence_penalty=0.5, stop=["x"], max_tokens=5)
            for choice in ("auto", "required", {"type": "function", "function": {"name": "look"}}):
                await client.chat(name, [QUESTION], tools=TOOLS, tool_choice=choice)
    assert len(server.requests) == 7 * len(chats) + sum(model.penalties for model in chats)
