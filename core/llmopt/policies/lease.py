from __future__ import annotations
from typing import Any


class Lease:
    __slots__ = ("quota", "tokens", "sent_at", "number", "requests_mark", "tokens_mark", "waited", "cause")

    def __init__(self, quota: Any, tokens: float, sent_at: float, number: int, rm: float, tm: float) -> None:
        self.quota = quota
        self.tokens = tokens
        self.sent_at = sent_at
        self.number = number
        self.requests_mark = rm
        self.tokens_mark = tm
        self.waited = 0.0
        self.cause = ""
