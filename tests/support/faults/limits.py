"""Providers that refuse what is in a request: too many items, too many tokens, one bad text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from tests.support.faults.openai import answer_openai, error_answer, inputs_of, tokens_of
from tests.support.faults.request import Request
from tests.support.faults.response import Answer, json_answer
from tests.support.faults.script import Reply, Responder


class MaxItems:
    """Refuses an embeddings request with more than `limit` items.

    Args:
        limit: the maximum number of items.
        inner: answers the others.
        status: 400 in OpenAI's words, 422 in TEI's, 413 in a gateway's.
        state_limit: whether the text says what the limit is.
    """

    def __init__(
        self, limit: int, inner: Responder = answer_openai, *, status: int = 400, state_limit: bool = True
    ) -> None:
        self.limit = limit
        self.refused = 0
        self._inner = inner
        self._status = status
        self._state_limit = state_limit

    def __call__(self, request: Request) -> Reply:
        given = len(_items(request))
        if given <= self.limit:
            return self._inner(request)
        self.refused += 1
        return self._refusal(given)

    def _refusal(self, given: int) -> Answer:
        if not self._state_limit:
            return error_answer(self._status, "Too many inputs in request, split into more batches.")
        if self._status == 422:
            text = f"batch size {given} > maximum allowed batch size {self.limit}"
            return json_answer({"message": text, "code": 422, "type": "Validation"}, status=422)
        text = (
            f"Invalid 'input': array too long. Expected an array with maximum length {self.limit}, "
            f"but got an array with length {given} instead."
        )
        return error_answer(self._status, text, code="array_above_max_length")


class TokenLimit:
    """Refuses an embeddings request with too many tokens, in one item or summed over the request, as OpenAI does.

    Args:
        limit: the maximum number of tokens.
        inner: answers the others.
        per: what the limit is for, "item" or "request".
        count: tokens of one item.
    """

    def __init__(
        self,
        limit: int,
        inner: Responder = answer_openai,
        *,
        per: Literal["item", "request"] = "item",
        count: Callable[[Any], int] = tokens_of,
    ) -> None:
        self.limit = limit
        self.refused = 0
        self._inner = inner
        self._per = per
        self._count = count

    def __call__(self, request: Request) -> Reply:
        counts = [self._count(item) for item in _items(request)]
        given = sum(counts) if self._per == "request" else max(counts, default=0)
        if given <= self.limit:
            return self._inner(request)
        self.refused += 1
        return self._refusal(given)

    def _refusal(self, given: int) -> Answer:
        if self._per == "request":
            code = "max_tokens_per_request"
            return error_answer(
                400, f"Requested {given} tokens, max {self.limit} tokens per request", kind=code, code=code
            )
        text = (
            f"This model's maximum context length is {self.limit} tokens, however you requested {given} tokens "
            f"({given} in your prompt; 0 for the completion). Please reduce your prompt; or completion length."
        )
        return error_answer(400, text)


class Poison:
    """Fails every embeddings request that holds one of these texts, without saying which item it is.

    Args:
        texts: the texts that fail.
        inner: answers the others.
        status: 400 as a bad request, 500 and more as an error of the server.
    """

    def __init__(self, *texts: str, inner: Responder = answer_openai, status: int = 400) -> None:
        self.texts = frozenset(texts)
        self.refused = 0
        self._inner = inner
        self._status = status

    def __call__(self, request: Request) -> Reply:
        if self.texts.isdisjoint(text for text in _items(request) if isinstance(text, str)):
            return self._inner(request)
        self.refused += 1
        if self._status < 500:
            return error_answer(self._status, "Invalid 'input': the request could not be processed.")
        return error_answer(
            self._status, "The server had an error processing your request.", kind="server_error"
        )


def _items(request: Request) -> list[Any]:
    return inputs_of(request) if request.path.endswith("/embeddings") else []
