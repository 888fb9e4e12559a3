"""What Gemini refuses in a request, and with which words (docs/development/provider-facts.md#gemini)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.emulators.base import JsonObject, token_count

FOREIGN = "skip_thought_signature_validator"
"""The signature that passes for a call that no Gemini made."""
MAX_ITEMS = 100
FIELDS = frozenset(
    {
        "contents", "systemInstruction", "tools", "toolConfig", "safetySettings", "generationConfig", "cachedContent",
        "serviceTier", "store", "labels",
    }
)  # fmt: skip
CONFIG = frozenset(
    {
        "temperature", "topP", "topK", "candidateCount", "maxOutputTokens", "stopSequences", "seed", "presencePenalty",
        "frequencyPenalty", "responseLogprobs", "logprobs", "responseMimeType", "responseSchema", "responseJsonSchema",
        "responseModalities", "thinkingConfig", "mediaResolution", "speechConfig", "imageConfig",
    }
)  # fmt: skip
THINKING = frozenset({"includeThoughts", "thinkingBudget", "thinkingLevel"})
PARTS = frozenset(
    {
        "text", "inlineData", "fileData", "functionCall", "functionResponse", "executableCode", "codeExecutionResult",
        "toolCall", "toolResponse", "thought", "thoughtSignature", "videoMetadata",
    }
)  # fmt: skip
CALL = frozenset({"name", "args", "id"})
RESPONSE = frozenset({"name", "response", "id", "parts"})
DECLARATION = frozenset({"name", "description", "parameters", "parametersJsonSchema", "response", "behavior"})
TOOLS = frozenset(
    {"functionDeclarations", "googleSearch", "urlContext", "codeExecution", "fileSearch", "googleMaps"}
)
ITEM = frozenset({"model", "content", "taskType", "title", "outputDimensionality"})
OUTSIDE = frozenset({"const", "$ref", "$defs", "oneOf", "propertyNames", "additionalProperties"})
"""Keywords of JSON Schema that ``parameters`` does not have."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class GeminiModel:
    """One model, and what it refuses."""

    name: str
    context: int = 1_048_576
    embeds: bool = False
    norms: bool = False
    signs: bool = True
    thinking: str = "thinkingLevel"
    minimal: bool = False
    min_budget: int = 0
    penalties: bool = True


MODELS = (
    GeminiModel(name="gemini-3-pro-preview"),
    GeminiModel(name="gemini-3.5-flash", minimal=True),
    GeminiModel(name="gemini-2.5-flash", signs=False, thinking="thinkingBudget"),
    GeminiModel(name="gemini-2.5-pro", signs=False, thinking="thinkingBudget", min_budget=128),
    GeminiModel(name="gemini-4-argon", penalties=False),
    GeminiModel(name="gemini-embedding-001", context=2048, embeds=True),
    GeminiModel(name="gemini-embedding-2", context=8192, embeds=True, norms=True),
)


class Fault(Exception):
    """What is wrong with a request, in Google's words."""


def camel(name: str) -> str:
    """The name as Google documents it; it takes the other spelling too."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def check_names(value: Any, known: frozenset[str], where: str) -> JsonObject:
    """The object with its names in camel case, all of which are known."""
    if not isinstance(value, dict):
        raise Fault(f"Invalid value at '{where}'")
    named = {camel(name): each for name, each in value.items()}
    unknown = [name for name in value if camel(name) not in known]
    if unknown:
        lines = (
            f"Invalid JSON payload received. Unknown name \"{name}\" at '{where}': Cannot find field."
            for name in unknown
        )
        raise Fault("\n".join(lines))
    return named


def check(body: JsonObject, model: GeminiModel) -> None:
    """Everything that a model refuses but signatures."""
    named = check_names(body, FIELDS, "")
    if not named.get("contents"):
        raise Fault("* GenerateContentRequest.contents: contents is not specified")
    check_config(named.get("generationConfig", {}), model)
    for tool in named.get("tools", []):
        check_tool(tool)
    for place, content in enumerate(named["contents"]):
        if content.get("role", "user") not in ("user", "model"):
            raise Fault("Please use a valid role: user, model.")
        for part in content.get("parts", []):
            check_part(part, f"contents[{place}].parts")
    check_order(named["contents"])


def check_config(config: Any, model: GeminiModel) -> None:
    named = check_names(config, CONFIG, "generation_config")
    thinking = check_names(named.get("thinkingConfig", {}), THINKING, "generation_config.thinking_config")
    if {"thinkingBudget", "thinkingLevel"} <= thinking.keys():
        raise Fault("You can only set only one of thinking budget and thinking level.")
    other = {"thinkingBudget", "thinkingLevel"} - {model.thinking}
    if wrong := other & thinking.keys():
        raise Fault(f"{next(iter(wrong))} is not supported for this model.")
    if thinking.get("thinkingLevel") == "MINIMAL" and not model.minimal:
        raise Fault("Thinking level MINIMAL is not supported for this model.")
    budget = thinking.get("thinkingBudget", model.min_budget)
    if budget != -1 and not model.min_budget <= budget <= 32_768:
        raise Fault(f"The thinking budget ({budget}) is invalid.")
    if len(named.get("stopSequences", [])) > 5:
        raise Fault("* GenerateContentRequest.generation_config.stop_sequences: at most 5")
    if {"responseSchema", "responseJsonSchema"} <= named.keys():
        raise Fault("Only one of response_schema and response_json_schema may be set.")
    if not model.penalties and {"presencePenalty", "frequencyPenalty"} & named.keys():
        raise Fault("Penalty is not enabled for this model")
    if not 0 <= named.get("temperature", 1) <= 2:
        raise Fault("temperature must be in the range [0.0, 2.0].")


def check_tool(tool: Any) -> None:
    named = check_names(tool, TOOLS, "tools[0]")
    for declared in named.get("functionDeclarations", []):
        function = check_names(declared, DECLARATION, "tools[0].function_declarations[0]")
        if not NAME.fullmatch(function.get("name", "")):
            raise Fault("Invalid function name. Must start with a letter or an underscore.")
        if {"parameters", "parametersJsonSchema"} <= function.keys():
            raise Fault("Only one of parameters and parameters_json_schema may be set.")
        for name in keys_of(function.get("parameters", {})):
            if name in OUTSIDE:
                check_names({name: None}, frozenset(), "tools[0].function_declarations[0].parameters")


def keys_of(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        yield from schema
        for inner in schema.values():
            yield from keys_of(inner)


def check_part(part: Any, where: str) -> None:
    named = check_names(part, PARTS, where)
    if not named.keys() - {"thoughtSignature", "thought"}:
        raise Fault("Unable to submit request because it must have at least one part with data.")
    if (call := named.get("functionCall")) is not None:
        call = check_names(call, CALL, f"{where}.function_call")
        if not call.get("name"):
            raise Fault("GenerateContentRequest.contents.parts.function_call.name: Name cannot be empty.")
        if not isinstance(call.get("args", {}), dict):
            raise Fault("Invalid value at 'contents.parts.function_call.args'")
    if (response := named.get("functionResponse")) is not None:
        response = check_names(response, RESPONSE, f"{where}.function_response")
        if not response.get("name"):
            raise Fault("GenerateContentRequest.contents.parts.function_response.name: Name cannot be empty.")
        if not isinstance(response.get("response"), dict):
            raise Fault("Invalid value at 'contents.parts.function_response.response' (Struct)")


def check_order(contents: Sequence[JsonObject]) -> None:
    """A user begins; calls follow a user's turn, and as many responses follow them, in their order."""
    if contents[0].get("role", "user") != "user":
        raise Fault("Please ensure that the first turn is of the user.")
    for place, content in enumerate(contents):
        calls = [call for part in content["parts"] if (call := called(part)) is not None]
        responses = [response for part in content["parts"] if (response := responded(part)) is not None]
        before = contents[place - 1] if place else {"parts": []}
        if calls and before.get("role", "user") != "user":
            raise Fault(
                "Please ensure that function call turn comes immediately after a user turn or after a function "
                "response turn."
            )
        wanted = [call for part in before["parts"] if (call := called(part)) is not None]
        if (responses or wanted) and [name_and_id(each) for each in wanted] != [
            name_and_id(each) for each in responses
        ]:
            raise Fault(
                "Please ensure that the number of function response parts is equal to the number of function call "
                "parts of the function call turn."
            )
        if responses and len(responses) != len(content["parts"]):
            raise Fault("Please use separate contents for function responses and for text.")


def called(part: Mapping[str, Any]) -> Any:
    return part.get("functionCall", part.get("function_call"))


def responded(part: Mapping[str, Any]) -> Any:
    return part.get("functionResponse", part.get("function_response"))


def name_and_id(value: Mapping[str, Any]) -> tuple[Any, Any]:
    return value.get("name"), value.get("id")


def signature_of(part: Mapping[str, Any]) -> str | None:
    """The signature, from the alphabet of URLs too."""
    found: str | None = part.get("thoughtSignature", part.get("thought_signature"))
    return found if found in (None, FOREIGN) else str(found).replace("-", "+").replace("_", "/")


def current_turn(contents: Sequence[JsonObject]) -> list[int]:
    """The places of the model's steps since the user's last words."""
    start = 0
    for place, content in enumerate(contents):
        if content.get("role", "user") == "user" and any(part.get("text") for part in content["parts"]):
            start = place
    return [place for place in range(start, len(contents)) if contents[place].get("role") == "model"]


def items_of(body: JsonObject, model: GeminiModel) -> list[tuple[str, JsonObject]]:
    """The texts of a batch with what is asked for each, or a refusal."""
    named = check_names(body, frozenset({"requests"}), "")
    items = named.get("requests") or []
    if not items:
        raise Fault("* BatchEmbedContentsRequest.requests: requests is not specified")
    if len(items) > MAX_ITEMS:
        raise Fault(f"* BatchEmbedContentsRequest.requests: at most {MAX_ITEMS} requests can be in one batch")
    found = []
    for item in items:
        asked = check_names(item, ITEM, "requests[0]")
        if asked.get("model") != f"models/{model.name}":
            raise Fault("* EmbedContentRequest.model: model must be the same as the one in the path")
        if model.norms and "taskType" in asked:
            raise Fault("task_type is not supported for this model.")
        if not 128 <= asked.get("outputDimensionality", 3072) <= 3072:
            raise Fault("output_dimensionality must be between 128 and 3072")
        text = "".join(part.get("text", "") for part in asked["content"]["parts"])
        found.append((text, asked))
    return found


def text_of(content: Mapping[str, Any]) -> str:
    """The words of a content, of responses too."""
    found = ""
    for part in content["parts"]:
        response = responded(part)
        found += part.get("text", "") if response is None else str(response["response"].get("output", ""))
    return found


def tokens_of(body: JsonObject) -> int:
    """The tokens of the input: the words alone, so that a test can tell them."""
    texts = [text_of(content) for content in body.get("contents", [])]
    if system := body.get("systemInstruction"):
        texts.append(text_of(system))
    return sum(token_count(text) for text in texts if text)
