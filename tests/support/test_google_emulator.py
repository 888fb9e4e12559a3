"""The emulated Gemini: the official client reads it, and it refuses what the real server refuses."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import pytest

from tests.support.emulators import GoogleEmulator, vector_for
from tests.support.emulators.google import signature_for
from tests.support.emulators.google_requests import FOREIGN
from tests.support.scale import nightly_only

if TYPE_CHECKING:
    from google import genai

PRO, FLASH, OLD, NEXT = "gemini-3-pro-preview", "gemini-3.5-flash", "gemini-2.5-flash", "gemini-4-argon"
HELLO: Any = [{"role": "user", "parts": [{"text": "Hello"}]}]
CALL: dict[str, Any] = {"functionCall": {"name": "look", "args": {"at": "the door"}}}
SIGNED = {**CALL, "thoughtSignature": signature_for(CALL)}
RESULT = {"functionResponse": {"name": "look", "response": {"output": "no"}}}


@pytest.fixture
async def server() -> AsyncIterator[GoogleEmulator]:
    async with GoogleEmulator() as emulator:
        yield emulator


def client_of(server: GoogleEmulator, key: str = "test-key") -> genai.Client:
    from google import genai

    options = genai.types.HttpOptions(base_url=server.origin, api_version="v1beta")
    return genai.Client(api_key=key, http_options=options)


@nightly_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
async def test_the_official_client_reads_whole_and_streamed_answers(server: GoogleEmulator) -> None:
    """Parts, signatures and usage; and it sends back what the emulator accepts."""
    from google.genai import types

    server.script = [[{"text": "A door", "thought": True}, CALL]] * 2
    client = client_of(server).aio
    declared = types.FunctionDeclaration(name="look", parameters_json_schema={"type": "object"})
    config = types.GenerateContentConfig(tools=[types.Tool(function_declarations=[declared])])
    whole = await client.models.generate_content(model=PRO, contents="Hello", config=config)
    chunks = [
        chunk
        async for chunk in await client.models.generate_content_stream(
            model=PRO, contents="Hello", config=config
        )
    ]
    assert whole.candidates is not None
    content = whole.candidates[0].content
    assert content is not None
    assert content.parts is not None
    assert content.parts[1].function_call is not None
    assert content.parts[1].function_call.args == {"at": "the door"}
    assert content.parts[1].thought_signature is not None
    assert chunks[-1].usage_metadata is not None
    assert whole.usage_metadata is not None
    assert chunks[-1].usage_metadata.prompt_token_count == whole.usage_metadata.prompt_token_count == 2
    result = types.Part.from_function_response(name="look", response={"output": "no"})
    told = [
        types.UserContent("Hello"),
        content,
        types.Content(role="user", parts=[result]),
    ]
    after = await client.models.generate_content(model=PRO, contents=told, config=config)
    assert after.text == "You said: no"


@nightly_only
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
async def test_the_official_client_embeds_lists_and_knows_the_errors(server: GoogleEmulator) -> None:
    from google.genai import errors, types

    server.page_size = 3
    client = client_of(server).aio
    config = types.EmbedContentConfig(output_dimensionality=128, task_type="RETRIEVAL_QUERY")
    made = await client.models.embed_content(
        model="gemini-embedding-001", contents=["one", "two"], config=config
    )
    assert made.embeddings is not None
    np.testing.assert_allclose(made.embeddings[1].values or [], 0.5 * vector_for("two", 128), rtol=1e-5)
    listed = [model.name async for model in await client.models.list()]
    assert listed == [f"models/{name}" for name in server.models_by_name]
    counted = await client.models.count_tokens(model=PRO, contents="Hello")
    assert counted.total_tokens == 2
    for key, model, status in (("wrong", PRO, 400), ("test-key", "nothing", 404)):
        with pytest.raises(errors.ClientError) as refused:
            await client_of(server, key).aio.models.generate_content(model=model, contents="Hello")
        assert refused.value.code == status


def turn(*parts: Any, role: str = "user") -> dict[str, Any]:
    return {"role": role, "parts": list(parts)}


def config(**values: Any) -> dict[str, Any]:
    return {"generationConfig": values}


def declared(**values: Any) -> dict[str, Any]:
    return {"tools": [{"functionDeclarations": [{"name": "look", **values}]}]}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no contents": (PRO, {"contents": []}, "contents is not specified"),
    "a name of another dialect": (PRO, {"messages": []}, 'Unknown name "messages"'),
    "a role of another dialect": (PRO, {"contents": [turn({"text": "x"}, role="assistant")]}, "valid role"),
    "a call first": (PRO, {"contents": [turn(SIGNED, role="model")]}, "first turn is of the user"),
    "a call behind the model's words": (
        PRO,
        {"contents": [*HELLO, turn({"text": "x"}, role="model"), turn(SIGNED, role="model")]},
        "immediately after a user turn",
    ),
    "fewer responses": (
        PRO,
        {"contents": [*HELLO, turn(SIGNED, CALL, role="model"), turn(RESULT)]},
        "number of function response parts",
    ),
    "responses with text": (
        PRO,
        {"contents": [*HELLO, turn(SIGNED, role="model"), turn(RESULT, {"text": "x"})]},
        "separate contents",
    ),
    "no signature": (
        PRO,
        {"contents": [*HELLO, turn(CALL, role="model"), turn(RESULT)]},
        "missing a thought_signature",
    ),
    "a wrong signature": (
        PRO,
        {"contents": [*HELLO, turn({**CALL, "thoughtSignature": "x"}, role="model"), turn(RESULT)]},
        "Invalid thought signature",
    ),
    "a response that is text": (
        PRO,
        {"contents": [*HELLO, turn({"functionResponse": {"name": "look", "response": "no"}})]},
        "function_response.response",
    ),
    "a response without a name": (
        PRO,
        {"contents": [*HELLO, turn({"functionResponse": {"response": {}}})]},
        "Name cannot be empty",
    ),
    "a schema outside the subset": (PRO, declared(parameters={"const": 1}), 'Unknown name "const"'),
    "two schemas": (PRO, declared(parameters={}, parametersJsonSchema={}), "Only one of parameters"),
    "budget and level": (
        PRO,
        config(thinkingConfig={"thinkingBudget": 1, "thinkingLevel": "LOW"}),
        "only one of thinking budget",
    ),
    "a budget, by model": (NEXT, config(thinkingConfig={"thinkingBudget": 1}), "not supported"),
    "minimal, by model": (
        PRO,
        config(thinkingConfig={"thinkingLevel": "MINIMAL"}),
        "MINIMAL is not supported",
    ),
    "a large budget": (OLD, config(thinkingConfig={"thinkingBudget": 52_428}), "(52428) is invalid"),
    "six stop sequences": (PRO, config(stopSequences=list("abcdef")), "at most 5"),
    "penalties, by model": (NEXT, config(presencePenalty=0.5), "Penalty is not enabled"),
}


async def test_the_emulator_refuses_what_the_real_server_refuses(server: GoogleEmulator) -> None:
    """With its words."""
    wrong: dict[str, str] = {}
    headers = {"x-goog-api-key": "test-key"}
    async with httpx2.AsyncClient(base_url=server.base_url, headers=headers) as client:
        for name, (model, changes, words) in REFUSED.items():
            found = await client.post(f"/models/{model}:generateContent", json={"contents": HELLO, **changes})
            if found.status_code != 400 or words not in found.json()["error"]["message"]:
                wrong[name] = found.text
        item = {"model": "models/gemini-embedding-001", "content": {"parts": [{"text": "a"}]}}
        for name, items in (
            ("101 items", [item] * 101),
            ("an item without a model", [{**item, "model": ""}]),
        ):
            found = await client.post(
                "/models/gemini-embedding-001:batchEmbedContents", json={"requests": items}
            )
            if found.status_code != 400:
                wrong[name] = found.text
    assert wrong == {}


async def test_the_emulator_accepts_what_the_real_server_accepts(server: GoogleEmulator) -> None:
    """Empty text, names in snake case, one role twice, the word for foreign calls; older models demand no signature."""
    foreign = {"function_call": {"name": "look", "args": {}}, "thought_signature": FOREIGN}
    accepted: list[tuple[str, dict[str, Any]]] = [
        (PRO, {"contents": [turn({"text": ""})]}),
        (PRO, {"contents": [*HELLO, *HELLO], "system_instruction": {"parts": [{"text": "x"}]}}),
        (PRO, {"contents": [*HELLO, turn(foreign, role="model"), turn({"function_response": RESULT["functionResponse"]})]}),
        (OLD, {"contents": [*HELLO, turn(CALL, role="model"), turn(RESULT)]}),
        (FLASH, config(thinking_config={"thinking_level": "LOW"})),
    ]  # fmt: skip
    headers = {"x-goog-api-key": "test-key"}
    async with httpx2.AsyncClient(base_url=server.base_url, headers=headers) as client:
        for model, changes in accepted:
            found = await client.post(f"/models/{model}:generateContent", json={"contents": HELLO, **changes})
            assert found.status_code == 200, found.text
        listed = await client.post(f"/models/{PRO}:streamGenerateContent", json={"contents": HELLO})
    assert isinstance(json.loads(listed.text), list), "without alt=sse a stream is one list"
