"""Requests to OpenAI: the common dialect, with base64 vectors and the scope headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from llmopt import Call, ChatCall, EmbedCall, HttpRequest, Settings, compatible

# ``max_tokens`` is deprecated, and refused by models that reason (API description, CreateChatCompletionRequest).
_NAMES: Final[Mapping[str, str]] = {"max_tokens": "max_completion_tokens"}


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call."""
    scoped = settings.with_headers(
        {
            "OpenAI-Organization": settings.options.get("organization"),
            "OpenAI-Project": settings.options.get("project"),
        }
    )
    if isinstance(call, ChatCall):
        # What another server signed is an unknown key here.
        call = evolve(call, messages=compatible.plain_messages(call.messages))
    if not isinstance(call, EmbedCall):
        return compatible.build_request(call, scoped, chat_names=_NAMES)
    # The description allows no further key, and a text means the same to these models whatever it is for.
    if call.input_type is not None:
        call = evolve(call, input_type=None)
    return compatible.build_request(call, scoped, encoding_format="base64")
