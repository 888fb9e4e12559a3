"""Embedding answers in the common dialect: from bytes to one float32 array.

Base64: the answer is split by a typed decode that leaves each vector as the bytes it came in, and these go
straight into their row. Lists of numbers: see `llmopt.providers.numbers`. No Python object is made for a number.
What is unusual in any way is decoded by the typed decode and vector by vector, which can say what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llmopt.errors import InvalidResponse
from llmopt.providers.numbers import cut_lists, rows_of_lists
from llmopt.providers.vectors import check_byte_order, rows_from_raw
from llmopt.values.embeddings import EmbeddedRows, Usage
from llmopt.values.order import in_order

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_TOKENS: Final = 10**12
_NOT_A_NUMBER: Final = re.compile(rb"[\[,:]\s*-?(?:NaN|Infinity)\b")


class _Item(msgspec.Struct):
    embedding: msgspec.Raw
    index: int | msgspec.UnsetType | None = msgspec.UNSET


class _Answer(msgspec.Struct):
    data: list[_Item] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None


_decoder: Final = msgspec.json.Decoder(_Answer)


def decode_embeddings(body: bytes, *, ordered: bool = False) -> EmbeddedRows | None:
    """Decode ``{"data": [{"index": 0, "embedding": ...}], "model": ..., "usage": ...}``.

    Args:
        body: the answer, UTF-8 JSON. Each vector may be base64 (little-endian float32) or a list.
        ordered: whether the provider answers in order, so that no index need be there.

    Returns:
        The rows, in the order of the answer; None when the object carries a true ``error``.

    Raises:
        InvalidResponse: the body is not such an object, or a vector is unreadable, or vectors
            differ in length. ``reason`` is "json", "index", "type", "base64" or "dimensions".
    """
    found = _from_lists(body, ordered=ordered)
    if found is not None:
        return found
    answer = _decode(body)
    if answer.error:
        return None
    if answer.data is None:
        raise _invalid("the answer has no list `data`.", "json")
    vectors = rows_from_raw([item.embedding for item in answer.data])
    return _embedded(answer, answer.data, vectors, ordered=ordered)


def _from_lists(body: bytes, *, ordered: bool) -> EmbeddedRows | None:
    """The quick way for lists of numbers; None when it does not lead there."""
    cut = cut_lists(body)
    if cut is None:
        return None
    rest, spans = cut
    try:
        answer = _decoder.decode(rest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    items = answer.data or ()
    if answer.error or len(items) != len(spans) or any(bytes(item.embedding) != b"[]" for item in items):
        return None
    vectors = rows_of_lists(body, spans)
    if vectors is None:
        return None
    check_byte_order(vectors[0])
    return _embedded(answer, items, vectors, ordered=ordered)


def _embedded(
    answer: _Answer, items: Sequence[_Item], vectors: NDArray[np.float32], *, ordered: bool
) -> EmbeddedRows:
    return EmbeddedRows(
        vectors=vectors,
        indices=_indices(items, ordered=ordered),
        usage=read_usage(answer.usage),
        model=answer.model if isinstance(answer.model, str) else None,
    )


def _decode(body: bytes) -> _Answer:
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        # The message of a validation error names types and the path, never a value.
        reason = "index" if ".index" in str(error) else "json"
        raise _invalid(f"the answer has another form than embeddings: {error}.", reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _not_json(body) from None


def _not_json(body: bytes) -> InvalidResponse:
    if _NOT_A_NUMBER.search(body):
        return _invalid(
            "the answer holds NaN or Infinity among its numbers, which no vector has.", "non_finite"
        )
    start = body[:64].lstrip().lower()
    if not start:
        return _invalid("the answer is empty.", "json")
    if start.startswith(b"<"):
        return _invalid(
            "the answer is HTML, not JSON: is base_url right, and does a proxy or a login page answer for it?",
            "json",
        )
    return _invalid(f"the answer ({len(body)} bytes) is not JSON, or was cut off.", "json")


def _indices(items: Sequence[_Item], *, ordered: bool) -> NDArray[np.int64] | None:
    import numpy as np

    found = [item.index for item in items]
    if found == list(range(len(found))):
        return in_order(len(found))
    if all(index is msgspec.UNSET for index in found) and ordered:
        return None
    if not all(type(index) is int for index in found):
        raise _invalid("an item of the answer has no index, so its text cannot be told.", "index")
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError:
        raise _invalid("an index of the answer is absurdly large.", "index") from None


def read_usage(value: object) -> Usage | None:
    """The ``usage`` object, tolerantly: None unless it holds believable counts."""
    if not isinstance(value, dict):
        return None
    total = _count(value.get("total_tokens"))
    prompt = _count(value.get("prompt_tokens"))
    completion = _count(value.get("completion_tokens")) or 0
    if total is None and prompt is None:
        return None
    prompt = prompt if prompt is not None else max(0, (total or 0) - completion)
    total = total if total is not None else prompt + completion
    if value.keys() <= _PLAIN:
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=total)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=total,
        cached_tokens=_detail(value, "cached_tokens", *_OF_PROMPTS)
        or _count(value.get("num_cached_tokens"))
        or 0,
        reasoning_tokens=_detail(value, "reasoning_tokens", "completion_tokens_details"),
    )


_PLAIN: Final = frozenset({"prompt_tokens", "completion_tokens", "total_tokens"})
_OF_PROMPTS: Final = ("prompt_tokens_details", "prompt_token_details")
"""Both spellings occur, in one and the same answer even."""


def _detail(usage: dict[str, Any], name: str, *groups: str) -> int:
    counts = (_count(group.get(name)) for key in groups if isinstance(group := usage.get(key), dict))
    return next(filter(None, counts), 0)


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MAX_TOKENS else None


def _invalid(message: str, reason: str) -> InvalidResponse:
    return InvalidResponse(message, reason=reason, sent="yes")
