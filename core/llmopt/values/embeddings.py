"""Results of embedding: vectors, token usage, and the rows that a plugin reads from a response.

No I/O and no clock. numpy is imported at first use; `in_order` keeps its last 32 arrays, read-only, for the whole
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import field, fields, frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmopt.errors import LLMOptError


class NotTold(IntEnum):
    """The 0 of a count that was not told: for everybody else a 0, also in JSON."""

    NOT_TOLD = 0

    __repr__ = int.__repr__


NOT_TOLD: Final = NotTold.NOT_TOLD


@frozen(kw_only=True)
class Usage:
    """Tokens as the provider counted them, and the number of requests.

    A count that is left out is not told. It reads as 0; in a stream, what an earlier event told of it remains.

    Attributes:
        prompt_tokens: tokens of the input.
        completion_tokens: tokens of the output, 0 for embeddings.
        total_tokens: all tokens.
        cached_tokens: tokens of the input that the provider read from its prompt cache.
        reasoning_tokens: tokens of the output that the model used for reasoning and did not return.
        requests: requests that were answered: 1 for a chat, streamed or not; 0 in the events of a stream.
    """

    prompt_tokens: int = NOT_TOLD
    completion_tokens: int = NOT_TOLD
    total_tokens: int = NOT_TOLD
    cached_tokens: int = NOT_TOLD
    reasoning_tokens: int = NOT_TOLD
    requests: int = 0

    def after(self, earlier: Usage | None) -> Usage:
        """This usage of an event, with what only earlier events told, and with a total.

        Counts of a stream are cumulative, so the last one that was told holds. Anthropic tells the tokens of the input in
        its first event and those of the output in the last ones.
        """
        told = {name: count for name in _COUNTERS if _is_told(count := getattr(self, name))}
        counts = {name: getattr(earlier or _NOTHING_TOLD, name) for name in _COUNTERS} | told
        parts = ("prompt_tokens", "completion_tokens")
        # A total that an event before one of its parts told is out of date.
        if "total_tokens" not in told and (
            counts["total_tokens"] is NOT_TOLD or not told.keys().isdisjoint(parts)
        ):
            counts["total_tokens"] = sum(counts[name] for name in parts)
        usage = Usage(**counts)
        # Itself if nothing is new, so that its event needs no copy.
        return self if usage == self else usage

    def __add__(self, other: Usage) -> Usage:
        if self is NO_USAGE:
            return other
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in _COUNTERS})


_COUNTERS: Final = tuple(each.name for each in fields(Usage))


def _is_told(count: int | None) -> bool:
    # A plugin without type checks may hand on the null of its server.
    return count is not NOT_TOLD and count is not None


_NOTHING_TOLD: Final = Usage()
NO_USAGE: Final = Usage()
"""No tokens and no requests. A constant, so that the first usage is taken over without an addition."""


@frozen(kw_only=True, eq=False)
class EmbeddedRows:
    """The vectors of one response, as a plugin's ``parse_embeddings`` returns them.

    Attributes:
        vectors: float32, shape (n, d), C-contiguous.
        indices: for each row the position of its text in the request, int64, shape (n,); None if the
            response has no indices and its vectors are in the order of the texts.
        usage: as reported by the response, None if it reports none.
        model: the model that answered, None if the response does not name it.
    """

    vectors: NDArray[np.float32] = field(repr=lambda array: f"<{array.shape}>")
    indices: NDArray[np.int64] | None = field(default=None, repr=False)
    usage: Usage | None = None
    model: str | None = None


def _shape(array: NDArray[np.float32]) -> str:
    return f"<float32 {array.shape[0]} x {array.shape[1]}>"


@frozen(kw_only=True, eq=False)
class Embeddings:
    """The result of ``embed``.

    Attributes:
        vectors: float32, shape (number of texts, dimensions), C-contiguous; row i is text i. A row
            that failed is all NaN. If all rows failed the shape is (number of texts, 0).
        usage: tokens and requests of this call.
        model: the model that answered, as the response names it; the requested model if it does not.
        errors: the error of each failed row, by index; empty if there is none.
    """

    vectors: NDArray[np.float32] = field(repr=_shape)
    usage: Usage
    model: str
    errors: Mapping[int, LLMOptError] = field(factory=dict)

    def __len__(self) -> int:
        return int(self.vectors.shape[0])


@frozen(kw_only=True, eq=False)
class EmbeddedPart:
    """The results for some consecutive texts, as ``embed_iter`` yields them.

    Attributes:
        start: index of the first row in the whole input.
        vectors: float32, shape (rows, dimensions), C-contiguous; a failed row is all NaN.
        errors: the error of each failed row, by its index in the whole input.
        usage: tokens and requests of this part.
        model: the model that answered.
    """

    start: int
    vectors: NDArray[np.float32] = field(repr=_shape)
    errors: Mapping[int, LLMOptError] = field(factory=dict)
    usage: Usage = field(factory=Usage)
    model: str = ""

    def __len__(self) -> int:
        return int(self.vectors.shape[0])


@lru_cache(maxsize=32)
def in_order(count: int) -> NDArray[np.int64]:
    """The indices of a response whose vectors are in the order of the texts: 0 to ``count`` - 1, read-only.

    Nearly all responses are in order. They share one array for each size, so that a comparison by identity is
    enough to see it.
    """
    import numpy as np

    indices = np.arange(count, dtype=np.int64)
    indices.flags.writeable = False
    return indices
