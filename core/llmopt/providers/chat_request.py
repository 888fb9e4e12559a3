"""The body of a chat request in the common dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from llmopt.errors import InvalidInput
from llmopt.values.calls import ChatCall

_PARAMETERS: Final = (
    "max_tokens",
    "temperature",
    "top_p",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
)
"""The fields of a `ChatCall` that are keys of the body, by the names they have in both."""
SAME_NAMES: Final[Mapping[str, str | None]] = {}
"""Every parameter as it is called here."""


def chat_body(call: ChatCall, names: Mapping[str, str | None] = SAME_NAMES) -> dict[str, Any]:
    """The body of a chat request. Keys that are not asked for are left out, ``extra`` comes last.

    Args:
        call: what is asked for.
        names: what the provider calls a parameter, for those it calls otherwise; None for one that it
            does not have.

    Raises:
        InvalidInput: the call has a parameter that the provider does not.
    """
    body: dict[str, Any] = {"model": call.model, "messages": call.messages, "stream": call.stream}
    for parameter, value in asked(call).items():
        name = names.get(parameter, parameter)
        if name is None:
            raise InvalidInput(
                f"this provider has no {parameter}; leave it out, or pass the provider's own parameters "
                "in `extra`."
            )
        body[name] = value
    if call.stream and call.include_usage:
        body["stream_options"] = {"include_usage": True}
    return {**body, **call.extra}


def asked(call: ChatCall) -> dict[str, Any]:
    """The parameters that a call has, by their names in `ChatCall`."""
    found = ((name, getattr(call, name)) for name in _PARAMETERS)
    return {name: value for name, value in found if value is not None and value != ()}
