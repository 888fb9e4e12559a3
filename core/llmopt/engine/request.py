"""What an operation asks of the engine: a call, and how much it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic

from attrs import define, field

from llmopt.engine.outcome import Parse, T
from llmopt.policies.deadline import Deadline
from llmopt.values.calls import Call, ChatCall
from llmopt.values.embeddings import Usage


def _no_usage(_: object) -> Usage | None:
    return None


@define(kw_only=True, eq=False)
class Request(Generic[T]):
    """One request, however often it has to be sent. Never changed; freezing it would double its price.

    Attributes:
        call: what is asked for.
        parse: reads a 2xx answer.
        deadline: of the caller's whole call.
        max_body: most bytes of an unpacked answer.
        items: texts in it.
        tokens: estimate of its tokens, what it costs of a rate limit.
        fill: how much of the largest allowed request it is, 0 to 1; decides its time-out.
        wait_when_open: whether to wait while all endpoints are given a rest.
        suspect: whether it is part of a request that failed for what may be the fault of one text, so
            that failing again in that way is no surprise and not worth a retry.
        usage_of: the usage that an answer reports, None when it reports none.
    """

    call: Call
    parse: Parse[T] = field(repr=False)
    deadline: Deadline
    max_body: int
    items: int = 0
    tokens: int = 0
    fill: float = 0.0
    wait_when_open: bool = False
    suspect: bool = False
    usage_of: Callable[[T], Usage | None] = field(default=_no_usage, repr=False)


@define(kw_only=True, eq=False)
class StreamRequest(Request[Any]):
    """A request for a stream. ``parse`` reads an answer that comes in one piece all the same.

    Attributes:
        call: what is asked for, with ``stream``.
        prompt_tokens: estimate of those of ``tokens`` that are in the question.
        buffer_size: most events that are parsed together.
    """

    call: ChatCall
    prompt_tokens: int = 0
    buffer_size: int = 100
