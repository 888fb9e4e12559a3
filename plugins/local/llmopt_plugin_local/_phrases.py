"""Messages of servers for a request or a text that is too large, in lower case."""

from __future__ import annotations

import re
from typing import Any, Final

from llmopt import BatchLimit, VerdictKind

_ITEM: Final = VerdictKind.ITEM_TOO_LONG
_BATCH: Final = VerdictKind.BATCH_TOO_LARGE

_PHRASES: Final[tuple[tuple[re.Pattern[str], VerdictKind, str], ...]] = tuple(
    (re.compile(form), kind, number)
    for form, kind, number in (
        # llama.cpp: one text and the physical batch, the available context, the whole of it.
        (r"is too large to process(?:.*current batch size: (\d{1,12}))?", _ITEM, "max_item_tokens"),
        (r"exceeds the available context size(?: \((\d{1,12}) tokens\))?", _ITEM, "max_item_tokens"),
        # TEI.
        (r"maximum allowed batch size (\d{1,12})", _BATCH, "max_items"),
        (r"must have less than (\d{1,12}) tokens", _ITEM, "max_item_tokens"),
        (r"must have less than \d{1,12} characters", _ITEM, ""),
        # vLLM, and whatever stands before OpenAI.
        (r"maximum context length is (\d{1,12})", _ITEM, "max_item_tokens"),
        (r"max (\d{1,12}) tokens per request", _BATCH, "max_tokens"),
        (r"request too large for", _BATCH, ""),
        # Ollama.
        (r"exceeds the context length", _ITEM, ""),
        # Infinity and every other FastAPI server.
        (r"list should have at most (\d{1,12}) items", _BATCH, "max_items"),
        (r"string should have at most \d{1,12} characters", _ITEM, ""),
        # Gemini's compatible surface.
        (r"at most (\d{1,12}) requests can be in one batch", _BATCH, "max_items"),
        (r"exceeds the maximum number of tokens allowed", _ITEM, ""),
    )
)


def too_large(message: str) -> tuple[VerdictKind, BatchLimit | None] | None:
    """Whether a batch or one text is too large, and the limit where the text states it; None for neither."""
    message = message.lower()
    for form, kind, number in _PHRASES:
        if found := form.search(message):
            most = int(found[1]) if number and found[1] else 0
            return kind, _limit(number, most)
    return None


def _limit(number: str, most: int) -> BatchLimit | None:
    stated: dict[str, Any] = {number: most}
    return BatchLimit(**stated) if most else None
