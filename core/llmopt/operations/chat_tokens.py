"""How many tokens a chat is about to cost, for the rate limiter. An estimate: answers correct it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llmopt.policies.tokens import TokenEstimator
from llmopt.values.calls import ChatCall

_A_MESSAGE: Final = 4
"""What the frame of a message costs, its role among it."""
_A_PART: Final = 500
"""A part that is no text, such as an image: its bytes say nothing of its tokens."""
_AN_ANSWER: Final = 256
"""What an answer is taken for when nobody bounds it."""


def prompt_tokens(call: ChatCall, estimator: TokenEstimator) -> int:
    """The tokens of the question."""
    tokens = sum(_of_message(message, estimator) for message in call.messages)
    if call.tools:
        tokens += estimator.estimate(msgspec.json.encode(call.tools).decode())
    return tokens


def answer_tokens(call: ChatCall) -> int:
    """The tokens of the answer; providers charge ``max_tokens`` before it begins."""
    return _AN_ANSWER if call.max_tokens is None else call.max_tokens


def _of_message(message: Mapping[str, Any], estimator: TokenEstimator) -> int:
    content = message.get("content")
    tokens = _A_MESSAGE
    if isinstance(content, str):
        tokens += estimator.estimate(content)
    elif isinstance(content, (list, tuple)):
        tokens += sum(_of_part(part, estimator) for part in content)
    if calls := message.get("tool_calls"):
        tokens += estimator.estimate(msgspec.json.encode(calls).decode())
    return tokens


def _of_part(part: object, estimator: TokenEstimator) -> int:
    text = part.get("text") if isinstance(part, Mapping) else part
    return estimator.estimate(text) if isinstance(text, str) else _A_PART
