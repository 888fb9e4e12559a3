"""Counters of one endpoint, for operators."""

from __future__ import annotations

from collections import Counter
from typing import Any

from llmopt.values.embeddings import Usage
from llmopt.values.events import WaitCause


class Counts:
    """What was done at one endpoint since its client was made.

    Attributes:
        requests: HTTP requests made, retries included.
        answered: those that brought what was asked for.
        errors: the others, by the name of the exception they ended in.
        cancelled: those that were given up before either.
        retries: requests that were made again.
        input_tokens: tokens sent, as answers report them.
        output_tokens: tokens received, likewise.
        waited: seconds that requests waited before they were sent, by cause.
        packed: requests that went out packed.
        packed_refused: those that were sent again as they are, because that may be why they were refused.
        saved_sent: bytes that packing requests has saved.
        saved_received: bytes that packed answers have saved.
        on_the_wire: seconds from sending to the end of the answer, of all requests together.
    """

    __slots__ = (
        "answered",
        "cancelled",
        "errors",
        "input_tokens",
        "on_the_wire",
        "output_tokens",
        "packed",
        "packed_refused",
        "requests",
        "retries",
        "saved_received",
        "saved_sent",
        "waited",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.answered = 0
        self.errors: Counter[str] = Counter()
        self.cancelled = 0
        self.retries = 0
        self.input_tokens = 0
        self.output_tokens = 0
        self.waited: dict[WaitCause, float] = {}
        self.packed = 0
        self.packed_refused = 0
        self.saved_sent = 0
        self.saved_received = 0
        self.on_the_wire = 0.0

    def spent(self, usage: Usage | None) -> None:
        """An answer reports this use."""
        if usage is not None:
            self.input_tokens += usage.prompt_tokens
            self.output_tokens += usage.completion_tokens

    def stats(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "requests": self.requests,
            "answered": self.answered,
            "errors": dict(self.errors),
            "cancelled": self.cancelled,
            "retries": self.retries,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "waited_s": dict(self.waited),
            "on_the_wire_s": self.on_the_wire,
            "compression": {
                "packed": self.packed,
                "refused": self.packed_refused,
                "saved_sent": self.saved_sent,
                "saved_received": self.saved_received,
            },
        }
