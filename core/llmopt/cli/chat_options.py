"""What ``llmopt chat`` was asked to do."""

from __future__ import annotations

from typing import Any

from attrs import frozen


@frozen(kw_only=True)
class ChatOptions:
    """The options of the command; `llmopt.cli.chat` says what each of them means."""

    model: str
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reasoning_effort: str | None = None
    deadline: float | None = None
    no_stream: bool = False
    as_json: bool = False
    config: str | None = None
    no_color: bool = False

    def call(self) -> dict[str, Any]:
        """The options of the call itself. Somebody sits before it, who can stop waiting."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop or None,
            "seed": self.seed,
            "reasoning_effort": self.reasoning_effort,
            "deadline": self.deadline,
            "when_open": "wait",
        }
