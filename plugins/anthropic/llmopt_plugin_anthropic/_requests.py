"""Requests to Anthropic: the parameters of a chat under its names, and what a model does not take is refused at once.

A parameter that Anthropic lacks, or that the model is known to refuse, is an `InvalidInput` before anything is sent;
``extra`` is sent as it is, so that a newer rule of Anthropic's never waits for a version of this plugin.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from attrs import evolve

from llmopt import Call, CatalogCall, ChatCall, HttpRequest, InvalidInput, Settings
from llmopt_plugin_anthropic._catalog import KNOWN, path_of
from llmopt_plugin_anthropic._messages import conversation_of
from llmopt_plugin_anthropic._rules import ModelRules, rules_of

VERSION: Final = "2023-06-01"
"""The version of the API, unless the user's headers say another one: with it, models that sample still may."""
_NO_SAMPLING: Final = "2026-10-21"
"""From this version on every temperature and top_p is refused."""
_DEFAULT_MAX_TOKENS: Final = 4_096
"""For a model whose limit is not known; Anthropic demands a number."""
_BUDGETS: Final[Mapping[str, int]] = {"minimal": 1_024, "low": 2_048, "medium": 10_000, "high": 16_384}
"""Tokens of thinking for models that take a number; those of pydantic-ai."""
_MIN_BUDGET: Final = 1_024
_LACKING: Final = ("seed", "presence_penalty", "frequency_penalty")
_CHOICES: Final[Mapping[str, str]] = {"auto": "auto", "none": "none", "required": "any"}
_VERSIONED: Final = re.compile(r"/v[0-9]+\Z")


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call.

    Raises:
        InvalidInput: Anthropic, or this model, does not have what the call asks for.
    """
    version = next((v for name, v in settings.headers.items() if name.lower() == "anthropic-version"), None)
    headers = {**settings.headers, **_auth(settings)}
    if version is None:
        headers["anthropic-version"] = VERSION
    # The base URLs of Anthropic's own libraries end before the version.
    start = "" if _VERSIONED.search(settings.base_url) else "/v1"
    if isinstance(call, CatalogCall):
        return HttpRequest(method="GET", path=start + path_of(call), headers=headers)
    if not isinstance(call, ChatCall):
        raise InvalidInput("Anthropic has no embeddings; use the model of another provider.")
    body = _body(call, rules_of(call.model, settings), version or VERSION)
    return HttpRequest(method="POST", path=f"{start}/messages", headers=headers, json=body)


def _auth(settings: Settings) -> dict[str, str]:
    # Tokens, such as those of a workspace's sign-in, are no keys.
    if settings.credential_kind == "token":
        settings = evolve(settings, auth="bearer")
    return settings.auth_headers()


def _body(call: ChatCall, rules: ModelRules, version: str) -> dict[str, Any]:
    for name in _LACKING:
        if getattr(call, name) is not None:
            raise InvalidInput(
                f"this provider has no {name}; leave it out, or pass the provider's own parameters in `extra`."
            )
    system, messages = conversation_of(call.messages, system_turns=rules.system_turns, model=call.model)
    most = call.max_tokens or _max_tokens(call.model)
    body: dict[str, Any] = {
        "model": call.model,
        "max_tokens": most,
        **({"system": system} if system else {}),
        "messages": messages,
        "stream": call.stream,
        **({"stop_sequences": list(call.stop)} if call.stop else {}),
        **_sampling(call, rules, version),
        **_reasoning(call, rules, most),
    }
    if call.tools:
        body["tools"] = [_tool(tool) for tool in call.tools]
    if choice := _tool_choice(call, rules, thinking=body.get("thinking", {})):
        body["tool_choice"] = choice
    if (schema := _format(call)) is not None:
        body["output_config"] = {**body.get("output_config", {}), "format": schema}
    return {**body, **call.extra}


def _max_tokens(model: str) -> int:
    row = KNOWN.get(model, re.sub(r"-[0-9]{8}\Z", "", model))
    return (row.max_output_tokens if row is not None else None) or _DEFAULT_MAX_TOKENS


def _sampling(call: ChatCall, rules: ModelRules, version: str) -> dict[str, float]:
    told = {name: value for name in ("temperature", "top_p") if (value := getattr(call, name)) is not None}
    for name, value in told.items():
        if version >= _NO_SAMPLING:
            raise InvalidInput(
                f"version {version} of Anthropic's API has no {name}; leave it out, or set the header anthropic-version."
            )
        if not rules.sampling and value != 1:
            raise InvalidInput(f"the model {call.model} takes no {name}; leave it out.")
        if value > 1:
            raise InvalidInput(f"{name} is 0 to 1 at this provider, not {value:g}.")
    return told


def _reasoning(call: ChatCall, rules: ModelRules, most: int) -> dict[str, Any]:
    """``thinking`` and ``output_config`` for an effort."""
    effort = call.reasoning_effort
    if effort is None:
        return {}
    if effort == "none":
        if not rules.off:
            raise InvalidInput(f"the model {call.model} always thinks; use another reasoning_effort.")
        return {"thinking": {"type": rules.off}}
    if rules.effort == "budget":
        return {"thinking": {"type": "enabled", "budget_tokens": _budget(effort, call.model, most)}}
    # The lowest word that Anthropic has.
    output = {"output_config": {"effort": "low" if effort == "minimal" else effort}}
    return {**output, "thinking": {"type": "adaptive"}} if rules.effort == "adaptive" else output


def _budget(effort: str, model: str, most: int) -> int:
    if effort not in _BUDGETS:
        raise InvalidInput(
            f"the model {model} takes no reasoning_effort {effort!r:.40}; use none, {', '.join(_BUDGETS)}, or "
            "`thinking` in `extra`."
        )
    # max_tokens has the thinking in it: a quarter at least is for the answer.
    budget = min(_BUDGETS[effort], most * 3 // 4)
    if budget < _MIN_BUDGET:
        raise InvalidInput(
            f"reasoning_effort needs {_MIN_BUDGET:,} tokens for thinking, and room for the answer: raise max_tokens."
        )
    return budget


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in Anthropic's form; one that has it, such as a tool of the server's, as it is."""
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return dict(tool)
    known = {"name": function.get("name"), "description": function.get("description")}
    schema = {"type": "object", **(function.get("parameters") or {})}
    more = {key: value for key, value in tool.items() if key not in ("type", "function")}
    strict = {"strict": function["strict"]} if function.get("strict") is not None else {}
    return {**{key: value for key, value in known.items() if value}, "input_schema": schema, **strict, **more}


def _tool_choice(call: ChatCall, rules: ModelRules, *, thinking: Mapping[str, Any]) -> dict[str, Any]:
    choice: dict[str, Any] = {}
    if call.tool_choice is not None:
        choice = _chosen(call.tool_choice)
        forced = choice.get("type") in ("any", "tool")
        if forced and not rules.forced_tools:
            raise InvalidInput(f"the model {call.model} cannot be forced to call a tool; use 'auto'.")
        if forced and thinking.get("type") == "enabled":
            raise InvalidInput("a tool cannot be forced while the model thinks; leave reasoning_effort out.")
    # Only calls that may happen can be parallel.
    if call.parallel_tool_calls is not None and choice.get("type") != "none":
        return {**(choice or {"type": "auto"}), "disable_parallel_tool_use": not call.parallel_tool_calls}
    return choice


def _chosen(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        if choice not in _CHOICES:
            raise InvalidInput(
                f"tool_choice is {', '.join(_CHOICES)}, or a mapping that names a tool; not {choice!r:.40}."
            )
        return {"type": _CHOICES[choice]}
    function = choice.get("function")
    return {"type": "tool", "name": function.get("name")} if isinstance(function, Mapping) else dict(choice)


def _format(call: ChatCall) -> dict[str, Any] | None:
    """The form of the answer; None for text."""
    wanted = call.response_format
    if wanted is None or wanted.get("type") == "text":
        return None
    described = wanted.get("json_schema")
    if wanted.get("type") == "json_schema" and isinstance(described, Mapping):
        return {"type": "json_schema", "schema": described.get("schema")}
    if wanted.get("type") == "json_object":
        raise InvalidInput("Anthropic has no json_object; use json_schema, or ask for JSON in the messages.")
    return dict(wanted)
