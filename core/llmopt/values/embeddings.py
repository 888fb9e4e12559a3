"""Vectors and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from attrs import field, frozen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from llmopt.errors import LLMOptError


@frozen(kw_only=True)
class Usage:
    """Tokens as the provider counted them, and requests answered.

    Attributes:
        prompt_tokens: tokens of the input.
        completion_tokens: tokens of the output, 0 for embeddings.
        total_tokens: all tokens.
        cached_tokens: those of the input that the provider had in a cache.
        reasoning_tokens: those of the output that the model thought and did not say.
        requests: requests that got an answer: 1 for a chat, however it comes; 0 in the events of a stream.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    requests: int = 0

    def __add__(self, other: Usage) -> Usage:
        if self is NO_USAGE:
            return other
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            total_tokens=self.total_tokens + other.total_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            reasoning_tokens=self.reasoning_tokens + other.reasoning_tokens,
            requests=self.requests + other.requests,
        )


NO_USAGE: Final = Usage()
"""Nothing was used yet."""


@frozen(kw_only=True, eq=False)
class EmbeddedRows:
    """The vectors of one answer, as a plugin's ``parse_embeddings`` gives them.

    Attributes:
        vectors: float32, shape (n, d), C-contiguous.
        indices: for each row the position of its text in the request, int64, shape (n,); None
            when the provider answers in order and names no index.
        usage: what the answer reports, None when it reports nothing.
        model: the model that answered, None when the answer does not say.
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
            that could not be had is all NaN. Without a single good row the shape is (n, 0).
        usage: tokens and requests of this call.
        model: the model that answered, as it names itself; the requested one where it does not.
        errors: for each failed row its error, by index; empty when all went well.
    """

    vectors: NDArray[np.float32] = field(repr=_shape)
    usage: Usage
    model: str
    errors: Mapping[int, LLMOptError] = field(factory=dict)

    def __len__(self) -> int:
        return int(self.vectors.shape[0])


@frozen(kw_only=True, eq=False)
class EmbeddedPart:
    """A stretch of results of ``embed_iter``.

    Attributes:
        start: index of the first row in the whole input.
        vectors: float32, shape (rows, dimensions), C-contiguous; a failed row is all NaN.
        errors: failed rows by their index in the whole input.
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


# The order in which an answer's rows stand.


@lru_cache(maxsize=32)
def in_order(count: int) -> NDArray[np.int64]:
    """0 to ``count`` - 1: one array for all answers of that size, which nobody can write to.

    Nearly every answer is in order, and who compares its indices sees by identity that they are.
    """
    import numpy as np

    indices = np.arange(count, dtype=np.int64)
    indices.flags.writeable = False
    return indices
