"""How a stream is cut into events, by its content type."""

from __future__ import annotations

from typing import Final

from llmopt.decoding.ndjson import NDJSONDecoder
from llmopt.decoding.sse import SSEDecoder

Decoder = SSEDecoder | NDJSONDecoder

_EVENTS: Final = frozenset({"text/event-stream", ""})
_LINES: Final = frozenset(
    {
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
        "application/x-jsonlines",
        "application/jsonlines",
    }
)


def decoder_for(content_type: str) -> Decoder | None:
    """A new decoder for an answer with this ``content-type``; None for one that is no stream.

    Parameters such as ``charset`` do not matter: both forms are UTF-8 always. No content type at all
    is taken for server-sent events.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in _LINES:
        return NDJSONDecoder()
    return SSEDecoder() if kind in _EVENTS else None
