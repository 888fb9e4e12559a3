"""Embedding responses by their shape: the common one, Ollama's, and the bare lists of TEI and llama.cpp."""

from __future__ import annotations

from typing import Any, Final, TypeVar

import msgspec

from llmopt import EmbedCall, EmbeddedRows, Failure, HttpResponse, Usage, compatible, reading
from llmopt.values.embeddings import NOT_TOLD

_MAX_TOKENS: Final = 10**12
_HEAD: Final = 4_096
_BRACE: Final = 0x7B
_T = TypeVar("_T")


class _Ollama(msgspec.Struct):
    embeddings: list[msgspec.Raw]
    model: Any = None
    prompt_eval_count: Any = None
    error: Any = None


class _Unpooled(msgspec.Struct):
    index: int
    embedding: list[msgspec.Raw]


def rows_of(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """The vectors of a response, or the failure in a 2xx.

    Raises:
        InvalidResponse: the response is neither.
    """
    head = response.body[:_HEAD].lstrip()
    if head.startswith(b"["):
        return _from_list(response.body)
    # The key comes before the vectors; the common shape has `embedding`, for each of them.
    if b'"embeddings"' in head:
        return _from_ollama(call, response)
    return compatible.parse_embeddings(call, response)


def _from_ollama(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    answer = _decoded(response.body, _Ollama)
    if answer.error:
        return Failure.from_response(response, model=call.model)
    count = reading.count(answer.prompt_eval_count)
    return EmbeddedRows(
        vectors=compatible.rows_from_raw(answer.embeddings),
        usage=None if count is NOT_TOLD else Usage(prompt_tokens=count, total_tokens=count),
        model=answer.model if isinstance(answer.model, str) else None,
    )


def _from_list(body: bytes) -> EmbeddedRows:
    raws = _decoded(body, list[msgspec.Raw])
    if raws and memoryview(raws[0])[0] == _BRACE:
        raws = _in_order(_decoded(body, list[_Unpooled]))
    return EmbeddedRows(vectors=compatible.rows_from_raw(raws))


def _in_order(items: list[_Unpooled]) -> list[msgspec.Raw]:
    """llama.cpp without ``/v1``: each vector in its own list, or one vector for each token."""
    items = sorted(items, key=lambda item: item.index)
    if [item.index for item in items] != list(range(len(items))):
        raise reading.invalid("the indices of the answer are not 0, 1, 2 and so on.", "index")
    if any(len(item.embedding) != 1 for item in items):
        raise reading.invalid(
            "the server gives a vector for each token; start it with pooling.", "dimensions"
        )
    return [item.embedding[0] for item in items]


def _decoded(body: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        # Its message names types and the path, never a value.
        raise reading.invalid(f"the answer has another form than embeddings: {error}.", "json") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise reading.invalid(f"the answer ({len(body)} bytes) is not JSON.", "json") from None
