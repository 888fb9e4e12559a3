"""Which decoder a content type asks for."""

from __future__ import annotations

import pytest

from llmopt.decoding.ndjson import NDJSONDecoder, decoder_for
from llmopt.decoding.sse import SSEDecoder


@pytest.mark.parametrize(
    ("content_type", "expected"),
    [
        ("text/event-stream", SSEDecoder),
        ("text/event-stream; charset=utf-8", SSEDecoder),
        ("Text/Event-Stream ;charset=latin1", SSEDecoder),
        ("", SSEDecoder),
        ("application/x-ndjson", NDJSONDecoder),
        ("application/jsonl", NDJSONDecoder),
        ("application/x-ndjson; charset=utf-8", NDJSONDecoder),
        ("application/json", type(None)),
        ("text/html; charset=utf-8", type(None)),
        ("text/plain", type(None)),
    ],
)
def test_the_content_type_decides(content_type: str, expected: type) -> None:
    """What is no stream is not read as one."""
    assert type(decoder_for(content_type)) is expected
    assert decoder_for("text/event-stream") is not decoder_for("text/event-stream")
