"""Requests to Mistral: its own parameter names, and no parameters that it does not know.

Mistral answers 422 to any other key (``additionalProperties: false`` in its description): to
``dimensions``, ``user`` and ``input_type`` of embeddings, to ``seed`` and ``stream_options`` of chats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import evolve

from llmopt import Call, ChatCall, EmbedCall, HttpRequest, Settings, compatible

_NAMES: Final[Mapping[str, str]] = {"seed": "random_seed"}


def request_of(call: Call, settings: Settings) -> HttpRequest:
    """The request for a call."""
    if isinstance(call, EmbedCall):
        return _embeddings(call, settings)
    if isinstance(call, ChatCall):
        # The last chunk of a stream has the usage, asked or not. What another server signed is an unknown key here.
        messages = compatible.plain_messages(call.messages)
        call = evolve(call, include_usage=False, messages=messages)
    return compatible.build_request(call, settings, chat_names=_NAMES)


def _embeddings(call: EmbedCall, settings: Settings) -> HttpRequest:
    body: dict[str, object] = {"model": call.model, "input": call.texts, "encoding_format": _encoding(call)}
    if call.dimensions is not None:
        body["output_dimension"] = call.dimensions
    headers = {**settings.headers, **settings.auth_headers()}
    return HttpRequest(method="POST", path="/embeddings", headers=headers, json={**body, **call.extra})


def _encoding(call: EmbedCall) -> str:
    # With int8, binary and their like the base64 would hold bytes instead of float32; a list is a list of numbers.
    return "base64" if call.extra.get("output_dtype", "float") == "float" else "float"
