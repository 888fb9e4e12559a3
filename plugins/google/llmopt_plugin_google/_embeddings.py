"""Embeddings of Gemini: a batch of requests for one text each, and their vectors in the same order.

gemini-embedding-001 takes the purpose of a text as ``taskType``; its shorter vectors come without their norm, and get it
here. gemini-embedding-2 takes the purpose in the text itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from llmopt import EmbedCall, EmbeddedRows, Failure, HttpResponse, Usage, compatible, reading
from llmopt.values.error_shape import is_error

_TASKS: Final[Mapping[str, tuple[str, str]]] = {
    "query": ("RETRIEVAL_QUERY", "task: search result | query: "),
    "document": ("RETRIEVAL_DOCUMENT", "title: none | text: "),
    "question": ("QUESTION_ANSWERING", "task: question answering | query: "),
    "fact": ("FACT_VERIFICATION", "task: fact checking | query: "),
    "classification": ("CLASSIFICATION", "task: classification | query: "),
    "clustering": ("CLUSTERING", "task: clustering | query: "),
    "similarity": ("SEMANTIC_SIMILARITY", "task: sentence similarity | query: "),
    "code": ("CODE_RETRIEVAL_QUERY", "task: code retrieval | query: "),
}
"""By input type: the word of gemini-embedding-001, and what stands before a text of gemini-embedding-2."""
_BY_NAME: Final = dict(_TASKS.values())
_FULL: Final = 3_072
"""Numbers of a whole vector, which has the norm 1."""
_IN_TEXT: Final = "gemini-embedding-2"
"""The beginning of the names of models that take the purpose in the text, and norm every vector."""


def body_of(call: EmbedCall, name: str) -> dict[str, Any]:
    """The body of a batch; each item names the model again.

    Args:
        call: what is asked for.
        name: the model's resource, such as "models/gemini-embedding-001".
    """
    more: dict[str, Any] = {}
    prefix = ""
    if call.input_type is not None:
        task = _TASKS.get(call.input_type, (call.input_type.upper(), ""))[0]
        if _is_in_text(call.model):
            # A purpose that is not known is Google's own text, or none.
            prefix = _BY_NAME.get(task, f"task: {call.input_type} | query: ")
        else:
            more["taskType"] = task
    if call.dimensions is not None:
        more["outputDimensionality"] = call.dimensions
    requests = [
        {"model": name, "content": {"parts": [{"text": prefix + text}]}, **more} for text in call.texts
    ]
    return {"requests": requests, **call.extra}


def _is_in_text(model: str) -> bool:
    return model.removeprefix("models/").startswith(_IN_TEXT)


class _Row(msgspec.Struct):
    values: msgspec.Raw


class _Usage(msgspec.Struct, rename="camel"):
    prompt_token_count: Any = None


class _Batch(msgspec.Struct, rename="camel"):
    embeddings: list[_Row]
    usage_metadata: _Usage | None = None


def rows_of(call: EmbedCall, response: HttpResponse) -> EmbeddedRows | Failure:
    """Read the vectors of a batch.

    Raises:
        InvalidResponse: the body is none.
    """
    try:
        batch = msgspec.json.decode(response.body, type=_Batch)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        if is_error(response.json):
            return Failure.from_response(response, model=call.model)
        raise reading.invalid("the response holds no list of embeddings.", "json") from None
    vectors = compatible.rows_from_raw([row.values for row in batch.embeddings])
    if call.dimensions is not None and call.dimensions < _FULL and not _is_in_text(call.model):
        import numpy as np

        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = (vectors / np.where(norms > 0, norms, 1)).astype(np.float32)
    return EmbeddedRows(vectors=vectors, usage=_usage(batch.usage_metadata))


def _usage(told: _Usage | None) -> Usage | None:
    """The tokens of a batch, which only newer models tell."""
    if told is None or told.prompt_token_count is None:
        return None
    used = reading.count(told.prompt_token_count)
    return Usage(prompt_tokens=used, total_tokens=used)
