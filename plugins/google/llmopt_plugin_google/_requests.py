"""Requests to Gemini: the model in the path, and the parameters of a chat as its ``generationConfig``.

A parameter that Gemini lacks, or that the model is known to refuse, is an `InvalidInput` before anything is sent;
``extra`` is sent as it is, its ``generationConfig`` key by key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from attrs import evolve

from llmopt import Call, CatalogCall, ChatCall, EmbedCall, HttpRequest, InvalidInput, Settings
from llmopt_plugin_google._catalog import path_of
from llmopt_plugin_google._contents import contents_of
from llmopt_plugin_google._embeddings import body_of
from llmopt_plugin_google._rules import ModelRules, rules_of

_VERSIONED: Final = re.compile(r"/v[0-9]+(?:(?:alpha|beta)[0-9]*)?\Z")
_VERSION: Final = "/v1beta"
"""For base URLs that end before the version, as those of Google's own library do; /v1 has no tools."""
_MODEL: Final = "models/"
_TUNED: Final = "tunedModels/"
_NAMES: Final[Mapping[str, str]] = {
    "max_tokens": "maxOutputTokens",
    "temperature": "temperature",
    "top_p": "topP",
    "seed": "seed",
    "presence_penalty": "presencePenalty",
    "frequency_penalty": "frequencyPenalty",
}
_PENALTIES: Final = ("presence_penalty", "frequency_penalty")
_MAX_STOPS: Final = 5
_CHOICES: Final[Mapping[str, str]] = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_BUDGETS: Final[Mapping[str, int]] = {"minimal": 1_024, "low": 1_024, "medium": 8_192, "high": 24_576}
"""Tokens of thinking, those of Google's compatible interface (ai.google.dev/gemini-api/docs/openai)."""


def plain_name(model: str) -> str:
    """The name of a model without the collection that it stands in."""
    return model.removeprefix(_MODEL)


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call.

    Raises:
        InvalidInput: Gemini, or this model, does not have what the call asks for.
    """
    headers = {**settings.headers, **_auth(settings)}
    start = "" if _VERSIONED.search(settings.base_url) else _VERSION
    if isinstance(call, CatalogCall):
        return HttpRequest(method="GET", path=start + path_of(call), headers=headers)
    name = call.model if call.model.startswith(_TUNED) else _MODEL + plain_name(call.model)
    if isinstance(call, EmbedCall):
        method, body = "batchEmbedContents", body_of(call, name)
    else:
        method = "streamGenerateContent?alt=sse" if call.stream else "generateContent"
        body = _body(call, rules_of(plain_name(call.model), settings))
    collection, _, own = name.partition("/")
    path = f"{start}/{collection}/{quote(own, safe='')}:{method}"
    return HttpRequest(method="POST", path=path, headers=headers, json=body)


def _auth(settings: Settings) -> dict[str, str]:
    # A token of Google's sign-in is no key.
    if settings.credential_kind == "token":
        settings = evolve(settings, auth="bearer")
    return settings.auth_headers()


def _body(call: ChatCall, rules: ModelRules) -> dict[str, Any]:
    system, contents = contents_of(call.messages, signed=rules.signatures)
    body: dict[str, Any] = {"systemInstruction": {"parts": system}} if system else {}
    body["contents"] = contents
    if call.parallel_tool_calls is False:
        raise InvalidInput(
            "this provider has no parallel_tool_calls=False; leave it out, and expect several calls."
        )
    if call.tools:
        body["tools"] = _tools(call.tools)
    if call.tool_choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _chosen(call.tool_choice)}
    own = call.extra.get("generationConfig")
    config = {**_config(call, rules), **(own if isinstance(own, Mapping) else {})}
    return {**body, **call.extra, **({"generationConfig": config} if config else {})}


def _config(call: ChatCall, rules: ModelRules) -> dict[str, Any]:
    config: dict[str, Any] = {
        own: value for name, own in _NAMES.items() if (value := getattr(call, name)) is not None
    }
    for name in _PENALTIES:
        if _NAMES[name] in config and not rules.penalties:
            raise InvalidInput(f"the model {call.model} takes no {name}; leave it out.")
    if len(call.stop) > _MAX_STOPS:
        raise InvalidInput(f"this provider takes {_MAX_STOPS} texts in stop, not {len(call.stop)}.")
    if call.stop:
        config["stopSequences"] = list(call.stop)
    if call.reasoning_effort is not None:
        config["thinkingConfig"] = _thinking(call, rules, call.reasoning_effort)
    return {**config, **_format(call)}


def _thinking(call: ChatCall, rules: ModelRules, effort: str) -> dict[str, Any]:
    """The control of a model for an effort; a level that it lacks is the nearest one."""
    if not rules.thinking:
        raise InvalidInput(f"the model {call.model} has no reasoning_effort; leave it out.")
    if rules.thinking == "level":
        if effort in ("none", "minimal"):
            return {"thinkingLevel": "MINIMAL" if rules.minimal else "LOW"}
        return {"thinkingLevel": "HIGH" if effort in ("xhigh", "max") else effort.upper()}
    if effort == "none":
        return {"thinkingBudget": rules.min_budget}
    if effort not in _BUDGETS:
        raise InvalidInput(
            f"the model {call.model} takes no reasoning_effort {effort!r:.40}; use none, {', '.join(_BUDGETS)}, or "
            "`generationConfig` in `extra`."
        )
    budget = _BUDGETS[effort]
    if call.max_tokens is not None:
        # max_tokens has the thinking in it: a quarter at least is for the answer.
        budget = max(rules.min_budget, min(budget, call.max_tokens * 3 // 4))
    return {"thinkingBudget": budget}


def _format(call: ChatCall) -> dict[str, Any]:
    """The form of the answer; nothing for text."""
    wanted = call.response_format
    if wanted is None or wanted.get("type") == "text":
        return {}
    described = wanted.get("json_schema")
    if wanted.get("type") == "json_schema" and isinstance(described, Mapping):
        return {"responseMimeType": "application/json", "responseJsonSchema": described.get("schema")}
    if wanted.get("type") == "json_object":
        return {"responseMimeType": "application/json"}
    raise InvalidInput("response_format is json_object, json_schema or text at this provider.")


def _tools(tools: tuple[Mapping[str, Any], ...]) -> list[dict[str, Any]]:
    """The functions in one tool, and tools that have Gemini's form, such as a search, as they are."""
    declared = [
        _declared(function) for tool in tools if isinstance(function := tool.get("function"), Mapping)
    ]
    own = [dict(tool) for tool in tools if not isinstance(tool.get("function"), Mapping)]
    return [*([{"functionDeclarations": declared}] if declared else []), *own]


def _declared(function: Mapping[str, Any]) -> dict[str, Any]:
    known = {
        "name": function.get("name"),
        "description": function.get("description"),
        "parametersJsonSchema": function.get("parameters"),
    }
    return {key: value for key, value in known.items() if value}


def _chosen(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise InvalidInput(
                f"tool_choice is {', '.join(_CHOICES)}, or a mapping that names a tool; not {choice!r:.40}."
            )
        return {"mode": _CHOICES[choice]}
    function = choice.get("function")
    if isinstance(function, Mapping):
        return {"mode": "ANY", "allowedFunctionNames": [function.get("name")]}
    return dict(choice)
