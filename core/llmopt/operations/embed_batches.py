"""Cutting texts into requests: by items, tokens and bytes together. Pure."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
from attrs import evolve, field, frozen

from llmopt.engine.endpoint import LiveEndpoint
from llmopt.engine.request import EncodedRequest
from llmopt.errors import LLMOptError
from llmopt.policies.batch_size import AdaptiveBatchSize, TokenEstimator
from llmopt.policies.clock import Deadline
from llmopt.providers.hooks import ProviderHooks
from llmopt.values.calls import BatchLimit, EmbedCall
from llmopt.values.http import HttpResponse
from llmopt.values.secret import repr_size

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
    texts: tuple[str, ...] = field(repr=repr_size)
    tokens: int = 0


class Batcher:
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
        size = body_bytes(text)
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


def cut(texts: Sequence[str], cutter: Batcher) -> Iterator[Batch]:
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


def body_bytes(text: str) -> int:
    """Bytes of a text in a JSON body, up to escapes."""
    return (len(text) if text.isascii() else len(text.encode())) + _PER_TEXT_BYTES


def any_may_be_too_long(texts: Sequence[str], limit: BatchLimit) -> bool:
    """Whether one of the texts might be `certainly_too_long`, by a look at the longest alone."""
    # UTF-8 has at most four bytes for a character.
    most = 4 * max(map(len, texts)) + _PER_TEXT_BYTES
    if limit.max_bytes is not None and most + _OVERHEAD_BYTES > limit.max_bytes:
        return True
    return limit.max_item_tokens is not None and most > limit.max_item_tokens * _SURE_BYTES_PER_TOKEN


def certainly_too_long(text: str, limit: BatchLimit) -> bool:
    """Whether no tokenizer could bring a text under the limits, so that sending it is pointless.

    A token of the vocabularies in use stands for at most some 128 characters (a run of spaces), so
    a text with over 256 bytes for each token that is allowed is beyond doubt.
    """
    size = body_bytes(text)
    if limit.max_bytes is not None and size + _OVERHEAD_BYTES > limit.max_bytes:
        return True
    if limit.max_item_tokens is None or limit.truncates:
        return False
    return size > limit.max_item_tokens * _SURE_BYTES_PER_TOKEN


# What was learned of how much fits into one request to a model.

_MOST_ITEMS: Final = 4_096
_MOST_TOKENS: Final = 10_000_000
_SAFE_SHARE: Final = 0.95
"""Of a limit in tokens that the server states: its count and our estimate differ a little."""


@frozen(kw_only=True)
class LimitChange:
    """What one refusal taught: the name of the limit, what it is taken for now, and who says so."""

    limit: Literal["max_items", "max_tokens"]
    value: int
    source: Literal["stated", "observed"]


class AdaptiveBatchLimit:
    """Sizes in items and in tokens for one model, and how to keep them for the next process.

    Args:
        limit: the declared limit.
        wall: the calendar's clock.
        state: what `state` once returned, None for nothing.
        keep: called with the new state whenever something worth keeping was learned.
    """

    def __init__(
        self,
        limit: BatchLimit,
        *,
        wall: Callable[[], float],
        state: Mapping[str, Any] | None,
        keep: Callable[[Mapping[str, Any]], None],
    ) -> None:
        saved = state if isinstance(state, Mapping) else {}
        self._items: Final = AdaptiveBatchSize(
            limit.max_items or _MOST_ITEMS, wall=wall, state=_table(saved.get("items"))
        )
        self._tokens: Final = AdaptiveBatchSize(
            limit.max_tokens or _MOST_TOKENS, wall=wall, state=_table(saved.get("tokens"))
        )
        self._keep: Final = keep
        self._kept = self._changes
        self._applied: tuple[BatchLimit, int, BatchLimit] | None = None

    @property
    def _changes(self) -> int:
        return self._items.changes + self._tokens.changes

    def apply(self, limit: BatchLimit) -> BatchLimit:
        """A declared limit, lowered to what was learned."""
        # Asked several times for each batch, and next to always the same.
        applied, changes = self._applied, self._items.changes + self._tokens.changes
        if applied is None or applied[0] is not limit or applied[1] != changes:
            lowered = evolve(
                limit,
                max_items=min(limit.max_items or _MOST_ITEMS, self._items.size),
                max_tokens=min(limit.max_tokens or _MOST_TOKENS, self._tokens.size),
            )
            self._applied = applied = (limit, changes, lowered)
        return applied[2]

    def clean(self, items: int, tokens: int) -> None:
        """A batch came through."""
        self._items.clean(items)
        self._tokens.clean(tokens)
        self._save()

    def refused(self, items: int, tokens: int, stated: BatchLimit | None) -> LimitChange | None:
        """A batch was too large; what that taught. A limit that the server states is taken at once."""
        if stated is not None and stated.max_tokens is not None:
            news = self._tokens.refused(tokens, stated=max(1, int(stated.max_tokens * _SAFE_SHARE)))
            found = LimitChange(limit="max_tokens", value=self._tokens.size, source="stated")
        else:
            most = None if stated is None else stated.max_items
            news = self._items.refused(items, stated=most)
            source: Literal["stated", "observed"] = "stated" if self._items.size == most else "observed"
            found = LimitChange(limit="max_items", value=self._items.size, source=source)
        self._save()
        return found if news else None

    def timed_out(self, items: int) -> LimitChange | None:
        """A batch got no answer in time; the size of the next ones if they will be smaller for it."""
        smaller = self._items.timed_out(items)
        self._save()
        if not smaller:
            return None
        return LimitChange(limit="max_items", value=self._items.size, source="observed")

    def state(self) -> dict[str, Any]:
        """What was learned, as plain values."""
        return {"items": self._items.state(), "tokens": self._tokens.state()}

    def _save(self) -> None:
        if self._changes != self._kept:
            self._kept = self._changes
            self._keep(self.state())


def _table(value: object) -> Mapping[str, Any] | None:
    return value if isinstance(value, Mapping) else None


# Limits that a server tells of itself: asked for before the first batch, merged with what is known.
#
# Asked once for each endpoint and model, with one attempt outside of all pacing: the question is
# worth little and must cost little. Whatever goes wrong with it, the call goes on by the plugin's
# `batch_limit`; only a failure that may pass is asked again at the next call.

_LONGEST_S: Final = 10.0
"""A question that takes longer than this delays the call by more than its answer is worth."""
_MAX_LIMITS_BYTES: Final = 4 << 20
_NUMBERS: Final = ("max_items", "max_item_tokens", "max_tokens", "max_bytes")
_PASSING: Final = (408, 425, 429)
_NOTHING: Final = BatchLimit()


def merge_limits(first: BatchLimit, second: BatchLimit) -> BatchLimit:
    """The least of each number. A server that cuts long texts is believed, whichever of the two says so."""
    if second == _NOTHING:
        return first
    least = {name: _least(getattr(first, name), getattr(second, name)) for name in _NUMBERS}
    return BatchLimit(**least, truncates=first.truncates or second.truncates)


def known_limits(limit: BatchLimit) -> list[tuple[str, int]]:
    """The limits that are known, by name."""
    known = ((name, getattr(limit, name)) for name in _NUMBERS)
    return [(name, value) for name, value in known if value is not None]


def _least(first: int | None, second: int | None) -> int | None:
    if first is None or second is None:
        return first or second
    return min(first, second)


async def fetch_server_limits(
    endpoints: Iterable[LiveEndpoint], hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> BatchLimit:
    """What the endpoints tell of their limits, as one: a batch may go to any of them.

    Args:
        endpoints: of one provider.
        hooks: of its plugin.
        call: the call's options, without texts.
        deadline: of the whole call.
    """
    endpoints = tuple(endpoints)
    unasked = [endpoint for endpoint in endpoints if call.model not in endpoint.server_limits]
    if unasked:
        await asyncio.gather(*(_learn(endpoint, hooks, call, deadline) for endpoint in unasked))
    return reduce(merge_limits, (endpoint.server_limits.get(call.model, _NOTHING) for endpoint in endpoints))


async def _learn(endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall, deadline: Deadline) -> None:
    # A lock belongs to one event loop, and a client may be used in several, one after the other.
    key = (call.model, asyncio.get_running_loop())
    async with endpoint.limit_locks.setdefault(key, asyncio.Lock()):
        if call.model in endpoint.server_limits:
            return
        found = await _ask(endpoint, hooks, call, deadline)
        if found is not None:
            endpoint.server_limits[call.model] = found
            endpoint.limit_locks.pop(key, None)


async def _ask(
    endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall, deadline: Deadline
) -> BatchLimit | None:
    """The answer; an empty one when there is none to be had, None when there may be one later."""
    try:
        question = await _question(endpoint, hooks, call)
        if question is None:
            return _NOTHING
        response = await _send(endpoint, question, deadline)
        if 200 <= response.status < 300:
            return hooks.parse_limits(call, response, endpoint.settings_without_credential)
    except LLMOptError as error:
        return None if error.retryable else _NOTHING
    return None if response.status in _PASSING or response.status >= 500 else _NOTHING


async def _question(endpoint: LiveEndpoint, hooks: ProviderHooks, call: EmbedCall) -> EncodedRequest | None:
    # Asked without a credential first: a token provider is called for attempts alone.
    if hooks.limits_request(call, endpoint.settings_without_credential) is None:
        return None
    settings = await endpoint.settings()
    request = hooks.limits_request(call, settings)
    return None if request is None else endpoint.encode_request(request, settings)


async def _send(endpoint: LiveEndpoint, question: EncodedRequest, deadline: Deadline) -> HttpResponse:
    from llmopt.transport.request import TransportRequest

    timeouts = endpoint.config.timeouts
    return await endpoint.transport.send(
        TransportRequest(
            method=question.method,
            url=question.url,
            headers=question.headers,
            body=question.body,
            connect_timeout=deadline.clamp(timeouts.connect),
            pool_timeout=deadline.clamp(timeouts.pool),
            timeout=deadline.clamp(min(timeouts.catalog, _LONGEST_S)),
            max_body=_MAX_LIMITS_BYTES,
        )
    )


# A small file that carries what was learned of sizes to the next process. It never fails a call.

_MAX_STATE_BYTES: Final = 1 << 20
_MOST_ENTRIES: Final = 1_000


class StateFile:
    """States by name, in one JSON file of the cache folder. Holds origins and model names, no keys, no texts.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path: Final = path

    def get(self, name: str) -> Mapping[str, Any] | None:
        """The state of that name, None when there is none or the file cannot be read."""
        found = self._read().get(name)
        return found if isinstance(found, dict) else None

    def put(self, name: str, state: Mapping[str, Any]) -> None:
        """Keep a state. What other processes kept meanwhile stays; of two for one name the later wins."""
        if self._path is None:
            return
        table = {key: value for key, value in self._read().items() if key != name}
        newest = dict(list(table.items())[-(_MOST_ENTRIES - 1) :])
        with suppress(OSError):
            self._write(self._path, msgspec.json.encode({**newest, name: state}))

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            with self._path.open("rb") as file:
                found = msgspec.json.decode(file.read(_MAX_STATE_BYTES))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def state_file(folder: str | None) -> StateFile:
    """The file in a folder, or in the user's cache folder."""
    if folder is None:
        import platformdirs

        folder = platformdirs.user_cache_dir("llmopt", appauthor=False)
    return StateFile(Path(folder) / "limits.json")


# What a client remembers of a model from one call to the next.

Kind = tuple[int | None, str | None, bytes]
"""The options of a call that change its vectors: dimensions, type of input, everything else as JSON."""


class ModelState:
    """One model of one provider.

    Args:
        name: provider, endpoints and model, under which sizes are kept for the next process.
        file: where they are kept.

    Attributes:
        estimator: tokens of a text, corrected by what answers report.
        length: length of the model's own vectors as first seen, None before.
        answering: which model answers and when that was written down, by the key under which it is kept.
        declared: limits as plugin, server and configuration declare them, by the options of the call.
    """

    def __init__(self, name: str, file: StateFile) -> None:
        self._name: Final = name
        self._file: Final = file
        self._sizes: AdaptiveBatchLimit | None = None
        self.estimator: Final = TokenEstimator()
        self.length: int | None = None
        self.answering: Final[dict[bytes, tuple[str, float]]] = {}
        self.declared: Final[dict[Kind, BatchLimit]] = {}

    def sizes(self, declared: BatchLimit) -> AdaptiveBatchLimit:
        """What was learned of sizes, in this process or in one before."""
        if self._sizes is None:
            self._sizes = AdaptiveBatchLimit(
                declared, wall=time.time, state=self._file.get(self._name), keep=self._keep
            )
        return self._sizes

    def _keep(self, state: Mapping[str, Any]) -> None:
        self._file.put(self._name, state)
