"""Gemini: its requests, answers, streams, embeddings, lists, and what a model does not take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llmopt import (
    BatchLimit,
    CatalogCall,
    ChatCall,
    ChatReply,
    ConfigError,
    EmbedCall,
    Failure,
    HttpResponse,
    InvalidInput,
    InvalidResponse,
    Message,
    Prices,
    ProviderEntry,
    RateLimits,
    RequestCost,
    ServerEvent,
    Settings,
    Usage,
    VerdictKind,
)
from llmopt.testing.harness import accumulate, decode_stream
from tests.plugins.errors import REPOSITORY
from tests.plugins.helpers import answer, hooks, page, settings

BASE = "https://generativelanguage.googleapis.com/v1beta"
WHERE = settings("google", BASE, auth="x-goog-api-key")
HI = {"role": "user", "content": "Hi"}
SAID = {"role": "user", "parts": [{"text": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "look", "description": "", "parameters": {"type": "object"}}}
BUDGETED, LEVELLED = "gemini-2.5-flash", "gemini-3-pro-preview"


def call(*messages: Any, model: str = LEVELLED, **more: Any) -> ChatCall:
    return ChatCall(model=model, messages=messages or (HI,), **more)


def body(*messages: Any, where: Settings = WHERE, **more: Any) -> dict[str, Any]:
    result = hooks("google").build_request(call(*messages, **more), where).json
    assert isinstance(result, dict)
    return result


def contents(*messages: Any, **more: Any) -> Any:
    return body(*messages, **more)["contents"]


# Requests.


def test_the_model_is_in_the_path() -> None:
    request = hooks("google").build_request(call(), WHERE)
    assert request.path == "/models/gemini-3-pro-preview:generateContent"
    assert request.headers["x-goog-api-key"] == "test-key-1"
    assert request.json == {"contents": [SAID]}
    streamed = hooks("google").build_request(call(stream=True, model="models/gemini-x"), WHERE)
    assert streamed.path == "/models/gemini-x:streamGenerateContent?alt=sse"
    tuned = hooks("google").build_request(call(model="tunedModels/mine-1"), WHERE)
    assert tuned.path == "/tunedModels/mine-1:generateContent"


@pytest.mark.parametrize(
    ("base", "start"),
    [(BASE, ""), ("https://proxy.example/v1", ""), ("https://proxy.example/gemini", "/v1beta")],
)
def test_a_base_url_may_end_before_the_version(base: str, start: str) -> None:
    """That of Google's own library does."""
    request = hooks("google").build_request(CatalogCall(cursor="a b"), settings("google", base))
    assert request.path == f"{start}/models?pageSize=1000&pageToken=a%20b"


def test_a_token_is_no_key() -> None:
    headers = hooks("google").build_request(call(), settings("google", BASE, kind="token")).headers
    assert headers == {"authorization": "Bearer test-key-1"}


def test_keys_of_the_environment() -> None:
    profile = hooks("google").provider_profile(ProviderEntry(name="google"))
    assert profile.key_env[:2] == ("GOOGLE_API_KEY", "GEMINI_API_KEY")


def test_parameters_are_the_generation_config() -> None:
    result = body(
        max_tokens=7,
        temperature=0.0,
        top_p=0.5,
        stop=("a",),
        seed=0,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        tools=(TOOL, {"googleSearch": {}}),
        tool_choice={"type": "function", "function": {"name": "look"}},
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
        extra={"serviceTier": "flex", "generationConfig": {"topK": 40, "seed": 5}},
    )
    assert result == {
        "contents": [SAID],
        "tools": [
            {"functionDeclarations": [{"name": "look", "parametersJsonSchema": {"type": "object"}}]},
            {"googleSearch": {}},
        ],
        "toolConfig": {"functionCallingConfig": {"mode": "ANY", "allowedFunctionNames": ["look"]}},
        "serviceTier": "flex",
        "generationConfig": {
            "maxOutputTokens": 7, "temperature": 0.0, "topP": 0.5, "stopSequences": ["a"], "seed": 5, "topK": 40,
            "presencePenalty": 0.1, "frequencyPenalty": 0.2, "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object"},
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("choice", "sent"),
    [("auto", "AUTO"), ("none", "NONE"), ("required", "ANY"), ({"mode": "VALIDATED"}, "VALIDATED")],
)
def test_choices_of_tools(choice: Any, sent: str) -> None:
    result = body(tools=(TOOL,), tool_choice=choice, parallel_tool_calls=True)
    assert result["toolConfig"] == {"functionCallingConfig": {"mode": sent}}


def test_json_without_a_schema() -> None:
    config = body(response_format={"type": "json_object"})["generationConfig"]
    assert config == {"responseMimeType": "application/json"}
    assert "generationConfig" not in body(response_format={"type": "text"})


@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        (LEVELLED, "minimal", {"thinkingLevel": "LOW"}),
        (LEVELLED, "none", {"thinkingLevel": "LOW"}),
        (LEVELLED, "high", {"thinkingLevel": "HIGH"}),
        ("gemini-3.5-flash", "none", {"thinkingLevel": "MINIMAL"}),
        ("gemini-9", "xhigh", {"thinkingLevel": "HIGH"}),
        (BUDGETED, "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "none", {"thinkingBudget": 128}),
        (BUDGETED, "medium", {"thinkingBudget": 8_192}),
    ],
)
def test_an_effort_as_the_model_takes_it(model: str, effort: str, sent: dict[str, Any]) -> None:
    assert body(model=model, reasoning_effort=effort)["generationConfig"] == {"thinkingConfig": sent}


def test_a_budget_leaves_room_for_the_answer() -> None:
    config = body(model=BUDGETED, reasoning_effort="high", max_tokens=1_000)["generationConfig"]
    assert config["thinkingConfig"] == {"thinkingBudget": 750}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"parallel_tool_calls": False}, "no parallel_tool_calls=False"),
        ({"stop": tuple("abcdef")}, "takes 5 texts in stop, not 6"),
        ({"presence_penalty": 0.0, "model": "gemini-4-argon"}, "gemini-4-argon takes no presence_penalty"),
        ({"reasoning_effort": "low", "model": "gemma-4-31b-it"}, "has no reasoning_effort"),
        ({"reasoning_effort": "xhigh", "model": BUDGETED}, "no reasoning_effort 'xhigh'"),
        ({"tool_choice": "sometimes"}, "tool_choice is auto, none, required"),
        ({"response_format": {"type": "grammar"}}, "response_format is json_object, json_schema or text"),
    ],
)
def test_what_gemini_lacks_is_refused_before_a_request(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        body(**asked)


def test_the_user_may_say_what_a_model_takes() -> None:
    where = settings("google", BASE, model_rules={"gemini-next": {"thinking": "budget"}})
    config = body(model="gemini-next", reasoning_effort="low", where=where)["generationConfig"]
    assert config == {"thinkingConfig": {"thinkingBudget": 1_024}}
    wrong = settings("google", BASE, model_rules={"gemini-next": {"thoughts": 1}})
    with pytest.raises(
        ConfigError, match=r"model_rules.gemini-next: Object contains unknown field `thoughts`"
    ):
        body(model="gemini-next", where=wrong)


# Conversations.


def used(number: int, arguments: str = "{}", **more: Any) -> dict[str, Any]:
    function = {"name": f"look{number}", "arguments": arguments}
    return {"id": f"c{number}", "type": "function", "function": function, **more}


def test_system_messages_are_the_instruction() -> None:
    system = ({"role": "system", "content": "Be brief."}, {"role": "developer", "content": "Be kind."})
    result = body(*system, HI)
    assert result["systemInstruction"] == {"parts": [{"text": "Be brief."}, {"text": "Be kind."}]}
    assert result["contents"] == [SAID]
    with pytest.raises(InvalidInput, match="at the start of a conversation only"):
        body(HI, system[0])


def test_calls_of_another_provider_pass_as_such() -> None:
    """The first of a step has Google's word for a call that is not signed; results stand in the order of the calls."""
    told = (
        HI,
        {"role": "assistant", "content": "I look.", "tool_calls": [used(1), used(2, '{"at": "the door"}')]},
        {"role": "tool", "tool_call_id": "c2", "content": "a key"},
        {"role": "tool", "tool_call_id": "c1", "content": "broken", "is_error": True},
        {"role": "user", "content": "Well?"},
    )
    result = contents(*told)
    assert result[1:] == [
        {
            "role": "model",
            "parts": [
                {"text": "I look."},
                {
                    "functionCall": {"name": "look1", "args": {}, "id": "c1"},
                    "thoughtSignature": "skip_thought_signature_validator",
                },
                {"functionCall": {"name": "look2", "args": {"at": "the door"}, "id": "c2"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {"functionResponse": {"name": "look1", "response": {"error": "broken"}, "id": "c1"}},
                {"functionResponse": {"name": "look2", "response": {"output": "a key"}, "id": "c2"}},
            ],
        },
        {"role": "user", "parts": [{"text": "Well?"}]},
    ]
    assert "thoughtSignature" not in json.dumps(contents(*told, model=BUDGETED))


def test_images_and_files() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "high"}},
        {"type": "image_url", "image_url": "https://example.com/a.png?x=1"},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBE"}},
        {"type": "file", "file": {"file_id": "https://youtu.be/x"}},
        {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
        {"videoMetadata": {"fps": 1}, "fileData": {"fileUri": "f"}},
    ]
    (turn,) = contents({"role": "user", "content": parts})
    assert turn["parts"] == [
        {"text": "What is this?"},
        {"inlineData": {"mimeType": "image/png", "data": "aGk="}},
        {"fileData": {"fileUri": "https://example.com/a.png?x=1", "mimeType": "image/png"}},
        {"inlineData": {"mimeType": "application/pdf", "data": "JVBE"}},
        {"fileData": {"fileUri": "https://youtu.be/x"}},
        {"inlineData": {"mimeType": "audio/wav", "data": "UklG"}},
        parts[-1],
    ]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "narrator", "content": "x"}, "no role 'narrator'"),
        ({"role": "tool", "tool_call_id": "c9", "content": "x"}, "names no call of this conversation"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:image/png,x"}]}, "base64"),
        ({"role": "user", "content": [{"type": "hologram"}]}, "neither text, image_url"),
        ({"role": "assistant", "tool_calls": [used(1, '{"a')]}, "no JSON object"),
    ],
)
def test_what_has_no_place_in_a_conversation_is_refused(message: Any, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as refused:
        contents(HI, message)
    assert refused.value.index == 1


def test_an_answer_without_content_is_left_out() -> None:
    assert contents(HI, Message("assistant", None).as_dict(), HI) == [SAID, SAID]


# Answers.


def whole(*parts: Any, reason: str | None = "STOP", **more: Any) -> dict[str, Any]:
    candidate = {
        "content": {"role": "model", "parts": list(parts)},
        **({"finishReason": reason} if reason else {}),
    }
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 7, "thoughtsTokenCount": 20, "totalTokenCount": 46,
             "toolUsePromptTokenCount": 10, "cachedContentTokenCount": 4}  # fmt: skip
    told = {
        "candidates": [candidate],
        "usageMetadata": usage,
        "modelVersion": "gemini-x-1",
        "responseId": "r1",
    }
    return {**told, **more}


def parsed(value: Any) -> Any:
    return hooks("google").parse_chat(call(), answer(value), WHERE)


THOUGHT = {"text": "A door, I think", "thought": True}
CALL = {"functionCall": {"name": "look", "args": {"at": "the door"}}, "thoughtSignature": "EpC1"}


def test_an_answer_of_every_part() -> None:
    """A function's id is Gemini's own; a call without one has none to send back."""
    second = {"functionCall": {"name": "look", "args": {}, "id": "ab12"}}
    found = parsed(whole(THOUGHT, {"text": "I "}, {"text": "look."}, CALL, second))
    assert isinstance(found, ChatReply)
    assert (found.text, found.reasoning, found.finish_reason) == ("I look.", "A door, I think", "tool_calls")
    assert [(each.id, json.loads(each.arguments)) for each in found.tool_calls] == [
        ("", {"at": "the door"}),
        ("ab12", {}),
    ]
    assert found.usage == Usage(
        prompt_tokens=19, completion_tokens=27, total_tokens=46, cached_tokens=4, reasoning_tokens=20
    )
    assert (found.model, found.id) == ("gemini-x-1", "r1")
    assert found.provider_data == {"google.parts": [{"text": "I look."}, CALL, second]}
    message = found.message.as_dict()
    message["tool_calls"][0]["id"] = "call_1"  # the core makes one
    results = [{"role": "tool", "tool_call_id": each, "content": "no"} for each in ("ab12", "call_1")]
    sent = contents(HI, message, *results)
    assert sent[1]["parts"] == found.provider_data["google.parts"]
    assert sent[2]["parts"] == [
        {"functionResponse": {"name": "look", "response": {"output": "no"}}},
        {"functionResponse": {"name": "look", "response": {"output": "no"}, "id": "ab12"}},
    ]


def test_text_alone_leaves_nothing_to_send_back() -> None:
    found = parsed(whole(THOUGHT, {"text": "a"}, {"text": "b"}))
    assert (found.text, found.provider_data) == ("ab", {})


@pytest.mark.parametrize(
    ("stated", "word"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("CONTINUATION", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("MODEL_ARMOR", "content_filter"),
        ("LANGUAGE", "stop"),
        ("OTHER", "stop"),
        ("A_REASON_OF_TOMORROW", "A_REASON_OF_TOMORROW"),
    ],
)
def test_reasons_in_the_words_of_the_common_dialect(stated: str, word: str) -> None:
    assert parsed(whole({"text": "a"}, reason=stated)).finish_reason == word


@pytest.mark.parametrize("content", [{}, {"role": "model"}, None])
def test_an_answer_may_have_no_parts(content: Any) -> None:
    candidate = {"finishReason": "MAX_TOKENS", **({} if content is None else {"content": content})}
    found = parsed(whole(candidates=[candidate]))
    assert (found.text, found.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("MALFORMED_FUNCTION_CALL", VerdictKind.TRANSIENT),
        ("UNEXPECTED_TOOL_CALL", VerdictKind.TRANSIENT),
        ("OTHER", VerdictKind.TRANSIENT),
        ("LANGUAGE", VerdictKind.BAD_REQUEST),
    ],
)
def test_an_answer_that_failed_is_none(reason: str, kind: VerdictKind) -> None:
    """Its calls are never run."""
    parts = [CALL] if "CALL" in reason else [THOUGHT]
    found = parsed(whole(*parts, reason=reason))
    assert isinstance(found, Failure)
    assert hooks("google").classify_error(found, WHERE).kind is kind


def test_a_blocked_prompt_is_a_content_filter() -> None:
    feedback = {"blockReason": "PROHIBITED_CONTENT", "blockReasonMessage": "Not this."}
    value = {"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": 9}, "modelVersion": "m"}
    found = parsed(value)
    assert (found.text, found.finish_reason, found.refusal) == ("", "content_filter", "Not this.")
    assert read([value]).finish_reason == "content_filter"


def test_of_several_candidates_the_first_is_read() -> None:
    first, second = ({"content": {"parts": [{"text": text}]}, "finishReason": "STOP"} for text in "ab")
    found = parsed(whole(candidates=[{**second, "index": 1}, first]))
    assert found.text == "a"
    assert len(found.raw["candidates"]) == 2


@pytest.mark.parametrize(
    "value", [{"usageMetadata": {}}, {"candidates": []}, whole({"text": "a"}, reason=None)]
)
def test_an_answer_without_an_end_is_refused(value: Any) -> None:
    with pytest.raises(InvalidResponse):
        parsed(value)


def test_an_error_may_stand_in_a_list() -> None:
    assert isinstance(parsed([{"error": {"code": 503, "message": "x", "status": "UNAVAILABLE"}}]), Failure)


# Streams.


def read(values: list[Any]) -> ChatReply:
    parse = hooks("google").stream_parser(call(stream=True), WHERE)
    found = [parse(ServerEvent(data=json.dumps(value))) for value in values]
    assert not any(isinstance(each, Failure) for each in found)
    return accumulate(event for each in found for event in each)  # type: ignore[union-attr]


def chunk(*parts: Any, reason: str | None = None, **usage: int) -> dict[str, Any]:
    return whole(*parts, reason=reason, usageMetadata=usage)


def test_a_stream_leaves_what_a_whole_answer_leaves() -> None:
    """Pieces of text are joined, thoughts are left out, and a signature in an empty text stays a part of its own."""
    odd = {"executableCode": {"language": "PYTHON", "code": "1"}, "thoughtSignature": "EpC2"}
    end = {"text": "", "thoughtSignature": "EpC3"}
    parts = [THOUGHT, {"text": "I "}, {"text": "look"}, odd, {"text": ""}, {"text": "."}, CALL]
    found = read([*(chunk(part, promptTokenCount=1) for part in parts), chunk(end, reason="STOP")])
    assert (found.text, found.reasoning, found.finish_reason) == ("I look.", "A door, I think", "tool_calls")
    kept = [{"text": "I look"}, odd, {"text": "."}, CALL, end]
    assert found.provider_data == {"google.parts": kept}
    assert parsed(whole(*parts, end)).provider_data == found.provider_data


def test_the_last_value_of_each_count_holds() -> None:
    """Fields come and go, and some shrink."""
    found = read(
        [
            chunk({"text": "a"}, promptTokenCount=169, thoughtsTokenCount=20, totalTokenCount=189),
            chunk(
                {"text": "b"},
                promptTokenCount=79,
                candidatesTokenCount=12,
                totalTokenCount=111,
                reason="STOP",
            ),
        ]
    )
    assert found.usage == Usage(
        prompt_tokens=79,
        completion_tokens=32,
        total_tokens=111,
        reasoning_tokens=20,
        cached_tokens=0,
        requests=1,
    )


def test_calls_in_several_chunks_are_counted_on() -> None:
    found = read([chunk(CALL), chunk(CALL, CALL, reason="STOP")])
    assert len(found.tool_calls) == 3


def test_a_long_answer_is_joined_as_it_comes() -> None:
    pieces = [f"{number} " for number in range(1_000)]
    found = read([*(chunk({"text": piece}) for piece in pieces), chunk(CALL, reason="STOP")])
    assert found.provider_data["google.parts"][0] == {"text": "".join(pieces)}


def test_an_error_in_a_stream() -> None:
    parse = hooks("google").stream_parser(call(stream=True), WHERE)
    for value in ({"error": {"code": 503, "message": "x"}}, [{"error": {"code": 503, "message": "x"}}]):
        found = parse(ServerEvent(data=json.dumps(value)))
        assert isinstance(found, Failure)
        assert hooks("google").classify_error(found, WHERE).kind is VerdictKind.OVERLOADED


# Embeddings.


def embedded(model: str = "gemini-embedding-001", **more: Any) -> Any:
    return hooks("google").build_request(EmbedCall(model=model, texts=("a", "b"), **more), WHERE)


def test_a_batch_names_the_model_in_each_item() -> None:
    request = embedded(dimensions=768, input_type="query")
    assert request.path == "/models/gemini-embedding-001:batchEmbedContents"
    assert request.json["requests"][1] == {
        "model": "models/gemini-embedding-001", "content": {"parts": [{"text": "b"}]}, "taskType": "RETRIEVAL_QUERY",
        "outputDimensionality": 768,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "task", "prefix"),
    [
        ("document", "RETRIEVAL_DOCUMENT", "title: none | text: "),
        ("code", "CODE_RETRIEVAL_QUERY", "task: code retrieval | query: "),
        ("QUESTION_ANSWERING", "QUESTION_ANSWERING", "task: question answering | query: "),
        ("similarity", "SEMANTIC_SIMILARITY", "task: sentence similarity | query: "),
        ("dating", "DATING", "task: dating | query: "),
    ],
)
def test_what_a_text_is_for(given: str, task: str, prefix: str) -> None:
    """As a field of the older model, and in the text of the newer one."""
    (first, _) = embedded(input_type=given).json["requests"]
    assert first["taskType"] == task
    (first, _) = embedded("gemini-embedding-2", input_type=given).json["requests"]
    assert first == {"model": "models/gemini-embedding-2", "content": {"parts": [{"text": f"{prefix}a"}]}}


def test_shorter_vectors_get_the_norm_that_they_lack() -> None:
    """Those of gemini-embedding-001; Google leaves it to its users."""
    value = {"embeddings": [{"values": [3.0, 4.0]}, {"values": [0.0, 0.0]}]}

    def rows(**more: Any) -> Any:
        asked = EmbedCall(**{"model": "gemini-embedding-001", "texts": ("a", "b"), **more})
        return hooks("google").parse_embeddings(asked, answer(value), WHERE)

    assert rows().vectors.tolist() == value_of(value)
    shorter = rows(dimensions=2).vectors
    assert shorter.dtype == np.float32
    np.testing.assert_allclose(shorter, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert rows(dimensions=2, model="gemini-embedding-2").vectors.tolist() == value_of(value)
    assert rows().usage is None


def value_of(value: Any) -> list[list[float]]:
    return [row["values"] for row in value["embeddings"]]


def test_the_usage_of_newer_models() -> None:
    value = {"embeddings": [{"values": [1.0]}], "usageMetadata": {"promptTokenCount": 11}}
    rows = hooks("google").parse_embeddings(EmbedCall(model="m", texts=("a",)), answer(value), WHERE)
    assert not isinstance(rows, Failure)
    assert rows.usage == Usage(prompt_tokens=11, total_tokens=11)


def test_limits_and_what_a_batch_counts() -> None:
    """A hundred texts, each of them a request."""
    limit = hooks("google").batch_limit(EmbedCall(model="models/gemini-embedding-2"), WHERE)
    assert limit == BatchLimit(max_items=100, max_item_tokens=8_192, max_bytes=4_194_304)
    cost = hooks("google").request_cost(EmbedCall(model="m", texts=("a", "b", "c")), WHERE)
    assert cost == RequestCost(requests=3)
    assert hooks("google").request_cost(call(), WHERE) == RequestCost()
    headers = {"x-ratelimit-limit-requests": "5"}
    assert hooks("google").rate_limits(HttpResponse(status=200, headers=headers), WHERE) == RateLimits()


# The list of models.


def test_a_list_of_models() -> None:
    value = {
        "models": [
            {
                "name": "models/gemini-2.5-flash", "displayName": "Gemini 2.5 Flash", "inputTokenLimit": 1_048_576,
                "outputTokenLimit": 65_536, "supportedGenerationMethods": ["countTokens", "generateContent"],
            },
            {
                "name": "models/gemini-embedding-001", "inputTokenLimit": 2_048, "outputTokenLimit": 1,
                "supportedGenerationMethods": ["embedContent"],
            },
            {"name": "models/imagen-9", "supportedGenerationMethods": ["predict"]},
            {"displayName": "without a name"},
        ],
        "nextPageToken": "t2",
    }  # fmt: skip
    found = page("google", value, WHERE)
    flash, embedding, image = found.models
    assert (found.next_cursor, found.dropped) == ("t2", 1)
    assert (flash.id, flash.kind, flash.name, flash.context_length, flash.max_output_tokens) == (
        "gemini-2.5-flash", "chat", "Gemini 2.5 Flash", 1_048_576, 65_536,
    )  # fmt: skip
    assert flash.prices == Prices(input=0.3, output=2.5, cached_input=0.03)
    assert (embedding.kind, embedding.dimensions, embedding.max_output_tokens) == ("embedding", 3_072, None)
    assert embedding.prices is not None
    assert image.kind == "image"


# Recorded exchanges, which are next to the repository (../shared/samples/recorded).

FOLDER = REPOSITORY.parent / "shared" / "samples" / "recorded"


def recordings(method: str) -> Iterator[Any]:
    for path in sorted([*FOLDER.glob("gemini/*.json"), *FOLDER.glob("gemini-*.json")]):
        for number, exchange in enumerate(json.loads(path.read_text())["exchanges"]):
            url = exchange["request"]["url"]
            # Without alt=sse a stream is one list, which the plugin never asks for.
            if method in url.lower() and ("stream" not in url or "alt=sse" in url):
                yield pytest.param(exchange, id=f"{path.stem}-{number}")


@pytest.mark.parametrize("exchange", list(recordings("generatecontent")))
def test_a_recorded_answer_is_read_and_its_parts_go_back(exchange: Any) -> None:
    told = exchange["response"]
    if told["status"] >= 400:
        failure = Failure(status=told["status"], body=json.dumps(told["body"]).encode(), operation="chat")
        assert hooks("google").classify_error(failure, WHERE).kind is VerdictKind.NOT_FOUND
        return
    if "body_text" in told:
        parse = hooks("google").stream_parser(call(stream=True), WHERE)
        events = decode_stream("text/event-stream", [told["body_text"].encode()])
        assert events is not None
        found = accumulate(part for event in events for part in parse(event))  # type: ignore[union-attr]
        chunks = [json.loads(event.data) for event in events]
    else:
        found = parsed(told["body"])
        chunks = [told["body"]]
    parts = [
        part
        for each in chunks
        for candidate in each.get("candidates", [])
        for part in candidate.get("content", {}).get("parts", [])
    ]
    assert found.text == "".join(part.get("text", "") for part in parts if not part.get("thought"))
    assert found.reasoning == "".join(part["text"] for part in parts if part.get("thought"))
    assert len(found.tool_calls) == sum("functionCall" in part for part in parts)
    assert found.finish_reason in ("stop", "tool_calls", "content_filter")
    last = chunks[-1]["usageMetadata"]
    assert found.usage is None or found.usage.total_tokens == last.get("totalTokenCount", 0)
    signed = [part for part in parts if "thoughtSignature" in part]
    kept = found.provider_data.get("google.parts", [])
    assert [part for part in kept if "thoughtSignature" in part] == signed
    if parts:
        sent = contents(HI, found.message.as_dict())[1]["parts"]
        assert sent == (kept or [{"text": found.text}])


@pytest.mark.parametrize("exchange", list(recordings("generatecontent")))
def test_recorded_contents_are_sent_as_they_were(exchange: Any) -> None:
    """Parts in Gemini's form are the user's own, so nothing about them changes."""
    asked = exchange["request"]["body"]
    told = [
        {"role": "assistant" if each["role"] == "model" else "user", "content": each["parts"]}
        for each in asked["contents"]
    ]
    more = {key: value for key, value in asked.items() if key != "contents"}
    assert body(*told, extra=more) == asked


@pytest.mark.parametrize("exchange", list(recordings("batchembedcontents")))
def test_recorded_embeddings(exchange: Any) -> None:
    asked, told = exchange["request"]["body"]["requests"], exchange["response"]
    model = asked[0]["model"]
    texts = tuple(item["content"]["parts"][0]["text"] for item in asked)
    sent = EmbedCall(model=model, texts=texts, dimensions=asked[0].get("outputDimensionality"))
    request = hooks("google").build_request(sent, WHERE)
    assert exchange["request"]["url"].endswith(request.path)
    assert request.json["requests"] == [{k: v for k, v in item.items() if k != "taskType"} for item in asked]
    if told["status"] == 404:
        failure = Failure(status=404, body=json.dumps(told["body"]).encode())
        assert hooks("google").classify_error(failure, WHERE).kind is VerdictKind.NOT_FOUND
        return
    rows = hooks("google").parse_embeddings(sent, answer(told["body"]), WHERE)
    assert not isinstance(rows, Failure)
    assert rows.vectors.shape == (len(texts), 8)
