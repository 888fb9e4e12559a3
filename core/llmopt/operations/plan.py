"""Cutting texts into requests: by items, tokens and bytes together. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import field, frozen

from llmopt.values.limits import BatchLimit
from llmopt.values.shown import size

_OVERHEAD_BYTES: Final = 512
_PER_TEXT_BYTES: Final = 3  # two quotes and a comma
_SURE_BYTES_PER_TOKEN: Final = 256


@frozen(kw_only=True)
class Batch:
    """Texts that travel in one request.

    Attributes:
        start: position of the first text among all texts of the call.
        texts: the texts.
        tokens: estimate of their tokens.
    """

    start: int
    texts: tuple[str, ...] = field(repr=size)
    tokens: int = 0


class Cutter:
    """Takes texts one by one and gives a batch whenever the next text would not fit.

    Args:
        limit: asked again for each batch, so that it may change under way.
        estimate: tokens of a text.
    """

    def __init__(self, limit: Callable[[], BatchLimit], estimate: Callable[[str], int]) -> None:
        self._limit: Final = limit
        self._estimate: Final = estimate
        self._start = 0
        self._texts: list[str] = []

    def _begin(self) -> None:
        limit = self._limit()
        self._max_items = limit.max_items or 1 << 62
        self._max_tokens = limit.max_tokens or 1 << 62
        self._max_bytes = (limit.max_bytes or 1 << 62) - _OVERHEAD_BYTES
        self._tokens = 0
        self._bytes = 0

    def add(self, text: str) -> Batch | None:
        """Take a text; the batch that was full before it, if one was."""
        tokens = self._estimate(text)
        size = wire_bytes(text)
        full = None
        if not self._texts:
            self._begin()
        elif self._tokens + tokens > self._max_tokens or self._bytes + size > self._max_bytes:
            full = self.flush()
            self._begin()
        self._texts.append(text)
        self._tokens += tokens
        self._bytes += size
        if full is None and len(self._texts) >= self._max_items:
            return self.flush()
        return full

    def full_from(self, texts: Sequence[str], start: int) -> Batch | None:
        """As many texts as may go into one batch, if they fit as they are; what `add` would give after so many calls.

        None when they do not, or when texts were taken and not yet given.
        """
        if self._texts:
            return None
        self._begin()
        some = tuple(texts[start : start + self._max_items])
        if not all(map(str.isascii, some)):
            return None
        tokens = sum(map(self._estimate, some))
        size = sum(map(len, some)) + _PER_TEXT_BYTES * len(some)
        if tokens > self._max_tokens or size > self._max_bytes:
            return None
        batch = Batch(start=self._start, texts=some, tokens=tokens)
        self._start += len(some)
        return batch

    def skip(self) -> None:
        """Leave out one position. Only between batches."""
        self._start += 1

    def flush(self) -> Batch | None:
        """What was taken and not yet given, None when there is nothing."""
        if not self._texts:
            return None
        batch = Batch(start=self._start, texts=tuple(self._texts), tokens=self._tokens)
        self._start += len(self._texts)
        self._texts = []
        return batch


def cut(texts: Sequence[str], cutter: Cutter) -> Iterator[Batch]:
    """All texts in batches, made one at a time as they are asked for."""
    at = 0
    while at < len(texts):
        batch = cutter.full_from(texts, at)
        if batch is None:
            batch = cutter.add(texts[at])
            at += 1
        else:
            at += len(batch.texts)
        if batch is not None:
            yield batch
    if (batch := cutter.flush()) is not None:
        yield batch


def wire_bytes(text: str) -> int:
    """Bytes of a text in a JSON body, up to escapes."""
    return (len(text) if text.isascii() else len(text.encode())) + _PER_TEXT_BYTES


def any_too_long(texts: Sequence[str], limit: BatchLimit) -> bool:
    """Whether one of the texts might be `surely_too_long`, by a look at the longest alone."""
    # UTF-8 has at most four bytes for a character.
    most = 4 * max(map(len, texts)) + _PER_TEXT_BYTES
    if limit.max_bytes is not None and most + _OVERHEAD_BYTES > limit.max_bytes:
        return True
    return limit.max_item_tokens is not None and most > limit.max_item_tokens * _SURE_BYTES_PER_TOKEN


def surely_too_long(text: str, limit: BatchLimit) -> bool:
    """Whether no tokenizer could bring a text under the limits, so that sending it is pointless.

    A token of the vocabularies in use stands for at most some 128 characters (a run of spaces), so
    a text with over 256 bytes for each token that is allowed is beyond doubt.
    """
    size = wire_bytes(text)
    if limit.max_bytes is not None and size + _OVERHEAD_BYTES > limit.max_bytes:
        return True
    if limit.max_item_tokens is None or limit.truncates:
        return False
    return size > limit.max_item_tokens * _SURE_BYTES_PER_TOKEN
