"""Recovery of a failed batch: split what is too large, and find the text that is refused or slow.

A batch is sent as one request. If that fails because it is too large, it is split into smaller requests. If the
cause may be one of its texts, it is halved, level by level, until that text is alone: two requests a level. A
text that succeeded is never sent again. A batch that took too long is retried in halves, and each level is one
retry, but the search goes on as long as any part of the batch succeeds.

A refusal may also be about the call, whatever its texts: `CallRefusals` finds that out with a few requests.

Requests and delays, both awaited, and reports for the user's listener are functions that are passed in; there is no
other I/O and no clock. All calls with the model share the sizes in `AdaptiveBatchLimit`, without a lock. The batches of a
call share `CallRecovery`, `SearchBudget` and `CallRefusals`, whose asyncio lock `turn` makes them wait while one sends a
text alone or does the first search. All else belongs to one batch; the parts of a level are sent at the same time.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, Protocol

from llmopt.engine.responses import SLOW, may_be_item_error
from llmopt.errors import (
    BadRequest,
    ContentFiltered,
    InvalidResponse,
    ItemRejected,
    ItemTooLong,
    LLMOptError,
    ProviderError,
    QuotaExhausted,
    RequestTooLarge,
    ServerError,
)
from llmopt.operations.embed_batches import AdaptiveBatchLimit, Batcher, LimitChange, make_batches
from llmopt.operations.embed_results import BatchResult
from llmopt.policies.retry import RetryHistory
from llmopt.policies.tasks import gather_first_error
from llmopt.values.calls import BatchLimit

if TYPE_CHECKING:
    from llmopt.values.embeddings import EmbeddedRows
_MAX_SEARCH_REQUESTS: Final = 64
_MAX_FRUITLESS_LEVELS: Final = 3
"""If none of the eight parts of a third level succeeds, the cause is not one text."""
_SURELY_SHORT: Final = 128
"""Characters that every model and every server takes. Texts are often sorted by length, so the first may all be too long."""
_FAR_LONGER: Final = 0.8
"""Of the longest text: texts of at least this share are searched first where no limit is stated."""
_SUSPECT: Final = 0.7
"""Of a stated limit: a text estimated at this share may exceed it, because estimates are not exact."""
_WITH_DIGIT: Final = re.compile(r"\S*\d\S*")
"""Words that may differ between refusals of the same kind: numbers, positions, ids of requests."""
Step = Literal["split", "again", "give up"]
"""What happens with the parts of a batch that failed: each is split, sent again as it is, or its texts are given up."""
Part = tuple[int, ...]
"""Positions in the batch of texts that are sent in one request."""


class SearchBudget:
    """How many more requests a call may spend on finding refused texts."""

    def __init__(self, requests: int = _MAX_SEARCH_REQUESTS) -> None:
        self._left = requests

    def spend(self, requests: int) -> bool:
        """Take requests from the budget; False, and nothing is taken, if it has too few left."""
        if requests > self._left:
            return False
        self._left -= requests
        return True


_WEIGHT_NEEDED: Final = 6


class CallRefusals:
    """Finds out whether refusals are about the call, such as a key or a parameter, and not about single texts.

    That can be so only while nothing of the call was answered. Then each batch that is refused sends one of its texts
    alone, one batch after the other, before any of them is searched. The refusal is that of the call when the same
    words came for three batches and for a text of each; a server that refuses one text in ten refuses so once in a
    thousand calls. A search in which no part of a batch succeeded counts as a batch, a batch of one text as half of one.

    Attributes:
        turn: held while a text is sent alone, and during the first search, from which the other batches learn.
        searched: whether a search has ended.
    """

    def __init__(self) -> None:
        self.turn: Final = asyncio.Lock()
        self.searched = False
        self._searched_in_vain: Final[set[object]] = set()
        self._about_texts: Final[set[object]] = set()
        self._weights: Final[Counter[object]] = Counter()

    def add(self, error: LLMOptError, *, texts: int, searched: bool = False) -> bool:
        """Record the refusal of a batch; whether it is now known to be that of the call.

        Args:
            error: of the batch.
            texts: number of its texts.
            searched: whether all its parts were refused too.
        """
        words = _words(error)
        if searched:
            self._searched_in_vain.add(words)
        self._weights[words] += 2 if texts > 1 else 1
        return self._weights[words] >= _WEIGHT_NEEDED

    def note_about_texts(self, error: LLMOptError) -> None:
        """Record that a refusal in these words is about the texts, so that nothing more is to be found out."""
        self._about_texts.add(_words(error))

    def is_about_texts(self, error: LLMOptError) -> bool:
        """Whether refusals in these words are known to be about the texts."""
        return _words(error) in self._about_texts

    def was_searched_in_vain(self, error: LLMOptError) -> bool:
        """Whether no part of another batch succeeded that was refused in the same words."""
        return _words(error) in self._searched_in_vain

    def was_seen(self, error: LLMOptError) -> bool:
        """Record an error that proves nothing yet; whether the same words came before."""
        words = _words(error)
        seen = words in self._weights
        self._weights.setdefault(words, 0)
        return seen


def may_concern_call(error: LLMOptError) -> bool:
    """Whether an error may be about the whole call as well as about a text or a size: nothing in it says which."""
    if is_too_large(error):
        return getattr(error, "limit", None) is None
    if isinstance(error, ProviderError) and error.item is not None:
        return False
    return isinstance(error, InvalidResponse) or may_be_item_error(error)


def is_of_no_text(error: LLMOptError) -> bool:
    """Whether no text can cause the error, such as a response that is no JSON."""
    return not is_too_large(error) and not may_be_item_error(error)


def is_too_large(error: LLMOptError) -> bool:
    """Whether a smaller request may succeed: for the server, or for what is left of a quota."""
    of_request = isinstance(error, QuotaExhausted) and error.scope == "request"
    return of_request or isinstance(error, RequestTooLarge)


def fits_text(error: LLMOptError, text: str) -> bool:
    """Whether a refusal of one text alone may be true of it, so that other texts may be accepted."""
    if is_too_large(error) or isinstance(error, ItemTooLong):
        return len(text) > _SURELY_SHORT
    return isinstance(error, (ItemRejected, ContentFiltered))


def least_suspect(texts: Sequence[str], error: LLMOptError) -> int:
    """The position of the text that is the least likely to be refused."""
    by_length = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    if is_too_large(error) or isinstance(error, ItemTooLong):
        return by_length[0]
    # Very short texts, such as a single dot, are refused more often than others, and very long ones too.
    return by_length[len(texts) // 2]


def same_words(first: LLMOptError, second: LLMOptError) -> bool:
    """Whether two errors say the same, apart from numbers and ids."""
    return _words(first) == _words(second)


def _words(error: LLMOptError) -> tuple[object, ...]:
    if isinstance(error, InvalidResponse):
        # Its message may count the texts.
        return type(error), error.reason
    status, code = getattr(error, "status", None), getattr(error, "code", None)
    return type(error), status, code, _WITH_DIGIT.sub("#", error.message)


class CallState(Protocol):
    """What the recovery of a call knows about it; see `llmopt.operations.embed_run.EmbedRun`."""

    answered: bool
    fatal: LLMOptError | None


class SendTexts(Protocol):
    """Sends some texts in one request."""

    def __call__(self, texts: tuple[str, ...], *, suspect: bool) -> Awaitable[EmbeddedRows]:
        """Their vectors."""


class CallRecovery:
    """Recovers the failed batches of one call, which learn from one another.

    Args:
        call: what is known about the call; ``fatal`` is set when a refusal turns out to be that of the call.
        send: sends texts; ``suspect`` is whether one of them is known to be the cause of a failure.
        splitter: makes the splitter of a batch.
        on_split: called for every part that is split, with its number of texts and the error.
        pause: waits before a retry; see `Recovery`.
        max_retries: how often a single text that takes too long is sent again.
    """

    def __init__(
        self,
        call: CallState,
        *,
        send: SendTexts,
        splitter: Callable[[Sequence[str]], BatchSplitter],
        on_split: Callable[[int, LLMOptError], None],
        pause: Callable[[RetryHistory, LLMOptError], Awaitable[Step]],
        max_retries: int,
    ) -> None:
        self._call: Final = call
        self._send: Final = send
        self._splitter: Final = splitter
        self._on_split: Final = on_split
        self._pause: Final = pause
        self._max_retries: Final = max_retries
        self._budget: Final = SearchBudget()
        self._refusals: Final = CallRefusals()

    def was_seen(self, error: LLMOptError) -> bool:
        """Whether another request of the call failed in the same words."""
        return self._refusals.was_seen(error)

    async def recover(self, texts: tuple[str, ...], error: LLMOptError, *, several: bool) -> BatchResult:
        """The vectors of all texts of a failed batch that can be embedded, and the errors of the others.

        Args:
            texts: of the batch.
            error: of the request for all of them.
            several: whether the call has other batches.
        """
        if not may_concern_call(error):
            return await self._split(texts, error, BatchResult())
        result = BatchResult()
        # A call of one batch is searched at once, unless the response may be short because of the number of texts.
        if several or isinstance(error, InvalidResponse):
            async with self._refusals.turn:
                result = await self._try_alone(texts, error)
        async with self._refusals.turn:
            if not self._refusals.searched:
                return await self._search(texts, error, result)
        return await self._search(texts, error, result)

    async def _try_alone(self, texts: tuple[str, ...], error: LLMOptError) -> BatchResult:
        """Send one text of a refused batch alone, if nothing of the call was answered yet."""
        # Of two texts each is sent alone by the search. A server error may pass by itself, and proves nothing.
        if self._call.answered or self._call.fatal or isinstance(error, ServerError) or len(texts) == 2:
            return BatchResult()
        if len(texts) > 2 and not is_of_no_text(error):
            if self._refusals.is_about_texts(error):
                return BatchResult()
            at = least_suspect(texts, error)
            try:
                rows = await self._send((texts[at],), suspect=True)
            except LLMOptError as alone:
                if fits_text(alone, texts[at]):
                    self._refusals.note_about_texts(error)
                    return BatchResult()
                if not same_words(alone, error):
                    return BatchResult()
            else:
                return BatchResult(rows=[((at,), rows)], requests=1)
        if self._refusals.add(error, texts=len(texts)):
            self._call.fatal = error
        return BatchResult()

    async def _search(self, texts: tuple[str, ...], error: LLMOptError, result: BatchResult) -> BatchResult:
        """Search a refused batch for the texts at fault, unless the refusal is that of the call."""
        in_vain = self._refusals.was_searched_in_vain(error) and not self._call.answered
        if self._call.fatal is not None or in_vain:
            done = result.positions
            result.errors.update({at: error.copy() for at in range(len(texts)) if at not in done})
            return result
        result = await self._split(texts, error, result)
        if len(texts) > 1 and not is_of_no_text(error):
            self._refusals.searched = True
            if not self._call.answered:
                certain = self._refusals.add(error, texts=len(texts), searched=True)
                # Others may pass by themselves, or fit these texts: the next batch is sent, but not searched.
                if certain and (is_too_large(error) or isinstance(error, (BadRequest, InvalidResponse))):
                    self._call.fatal = error
        return result

    async def _split(self, texts: tuple[str, ...], error: LLMOptError, result: BatchResult) -> BatchResult:
        """Send a failed batch in parts, but for the texts that a result has already."""

        def send(part: Part, *, suspect: bool) -> Awaitable[EmbeddedRows]:
            return self._send(tuple(texts[at] for at in part), suspect=suspect)

        pause = partial(self._pause, RetryHistory())
        recovery = Recovery(
            send, self._splitter(texts), self._budget, self._on_split, pause, self._max_retries
        )
        return await recovery.run(len(texts), error, result)


class SendPart(Protocol):
    """Sends the texts at some positions of a batch in one request."""

    def __call__(self, part: Part, *, suspect: bool) -> Awaitable[EmbeddedRows]:
        """Their vectors."""


class Recovery:
    """Recovers one failed batch, with as many requests as it takes.

    Args:
        send: sends texts; ``suspect`` is whether one of them is known to be the cause of the failure.
        splitter: splits the batch.
        budget: bounds the search requests of the whole call.
        on_split: called for every part that is split, with its number of texts and the error.
        pause: waits before a retry of what took too long, and says what to do then.
        max_retries: how often a single text that takes too long is sent again.
    """

    def __init__(
        self,
        send: SendPart,
        splitter: BatchSplitter,
        budget: SearchBudget,
        on_split: Callable[[int, LLMOptError], None],
        pause: Callable[[LLMOptError], Awaitable[Step]],
        max_retries: int,
    ) -> None:
        self._send: Final = send
        self._splitter: Final = splitter
        self._budget: Final = budget
        self._on_split: Final = on_split
        self._pause: Final = pause
        self._max_retries: Final = max_retries
        self._result = BatchResult()
        self._count = 0
        self._searched: Final[list[Part]] = []

    async def run(self, count: int, error: LLMOptError, result: BatchResult) -> BatchResult:
        """The vectors of all texts that can be embedded, and the errors of the others.

        Args:
            count: number of texts in the batch.
            error: of the request for all of them.
            result: of texts that were sent alone since; the others are added to it.
        """
        self._result = result
        self._count = count
        failed = [(tuple(at for at in range(count) if at not in result.positions), error)]
        if result.positions:
            failed = await self._rest(*failed[0], size=1)
        depth = 0
        while failed and (step := await self._next_step(failed, depth)) != "give up":
            level = [part for part, _ in failed]
            if step == "split":
                if depth == _MAX_FRUITLESS_LEVELS and not any(len(part) > 1 for part, _ in result.rows):
                    failed = await self._find_size(*failed)
                level = [piece for part, error in failed for piece in self._pieces(part, error, depth)]
                depth += 1
            errors = await gather_first_error([self._try(part, error) for part in level])
            failed = [(part, error) for part, error in zip(level, errors, strict=True) if error is not None]
        self._learn_sizes()
        return self._result

    async def _next_step(self, failed: list[tuple[Part, LLMOptError]], depth: int) -> Step:
        """Whether the parts of failed requests are sent. What only took too long waits as any retry does."""
        # Where other texts of the batch succeed, the server is well: the search goes on at once, and to its end.
        if self._result.rows:
            return "split"
        slow = next((error for _, error in failed if isinstance(error, SLOW)), None)
        step: Step = "split" if slow is None else await self._pause(slow)
        if depth == _MAX_FRUITLESS_LEVELS and all(is_too_large(error) for _, error in failed):
            # If the shortest text is too large as well, no size will do.
            shortest = self._splitter.shortest([at for part, _ in failed for at in part])
            refusal = await self._try((shortest,), failed[0][1])
            rest = ((tuple(at for at in part if at != shortest), error) for part, error in failed)
            failed[:] = [(part, error) for part, error in rest if part]
            if refusal is not None:
                self._give_up((shortest,), refusal)
                step = "give up"
        if step == "give up":
            for part, error in failed:
                self._give_up(part, error)
        return step

    async def _find_size(
        self, first: tuple[Part, LLMOptError], *others: tuple[Part, LLMOptError]
    ) -> list[tuple[Part, LLMOptError]]:
        """If one text alone succeeds, find the size that the server takes, down to one text, with a few requests.

        Returns:
            What failed and was not sent since. The sizes that are known then cut it.
        """
        part, error = first
        if not isinstance(error, BadRequest) or len(part) == 1:
            return [first, *others]
        left, accepted, refused = part, 1, len(part)
        if not self._result.rows:
            if await self._try(part[:1], error) is not None:
                return [first, *others]
            left = part[1:]
        while (size := (accepted + refused) // 2) > accepted and size <= len(left):
            if await self._try(left[:size], error) is None:
                left, accepted = left[size:], size
            else:
                refused = size
        self._splitter.refused(part[:refused], None)
        return [*await self._rest(left, error, accepted), *others]

    async def _rest(self, part: Part, error: LLMOptError, size: int) -> list[tuple[Part, LLMOptError]]:
        """What is left of a part that failed. If it fits into a size that works, it was not refused, and is sent."""
        refusal = await self._try(part, error) if part and len(part) <= size else error
        return [(part, refusal)] if part and refusal is not None else []

    async def _try(self, part: Part, cause: LLMOptError) -> LLMOptError | None:
        try:
            # A slow part says something about the server, until others of the batch succeed.
            suspect = not isinstance(cause, SLOW) or bool(self._result.rows)
            rows = await self._send(part, suspect=suspect)
        except LLMOptError as error:
            return error
        self._result.add(BatchResult(rows=[(part, rows)], requests=1))
        return None

    def _learn_sizes(self) -> None:
        # A part that failed as one request and succeeded in pieces was too large, whatever the error said.
        for part in self._searched:
            if self._result.errors.keys().isdisjoint(part):
                self._splitter.refused(part, None)

    def _pieces(self, part: Part, error: LLMOptError, depth: int) -> list[Part]:
        """The parts to send instead of a failed one; none when its texts are given up."""
        if len(part) == 1 and isinstance(error, SLOW) and depth < self._max_retries:
            return [part]
        pieces = self._split(part, error, depth)
        # The same request again would fail again, for ever.
        if len(pieces) == 1 and len(pieces[0]) == len(part):
            pieces = []
        # Requests that are only smaller are always worth sending; the search for one text has a budget.
        smaller = is_too_large(error) or isinstance(error, SLOW) or self._fits_less(part)
        if not pieces or (not smaller and not self._budget.spend(len(pieces))):
            self._give_up(part, error)
            return []
        if isinstance(error, BadRequest) or _has_too_few_vectors(error):
            self._searched.append(self._as_sent(part, depth))
        self._on_split(len(part), error)
        return pieces

    def _split(self, part: Part, error: LLMOptError, depth: int) -> list[Part]:
        if isinstance(error, RequestTooLarge):
            self._splitter.refused(self._as_sent(part, depth), error.limit)
        if is_too_large(error):
            return self._smaller(part)
        if isinstance(error, SLOW):
            self._splitter.timed_out(part)
            return self._smaller(part)
        if may_be_item_error(error) and self._fits_less(part):
            # Another batch has shown meanwhile that this one was too large, whatever its error said.
            return self._smaller(part)
        return self._search(part, error, depth) if len(part) > 1 and may_be_item_error(error) else []

    def _as_sent(self, part: Part, depth: int) -> Part:
        # The batch itself had the texts too that were sent alone since.
        return part if depth else tuple(range(self._count))

    def _fits_less(self, part: Part) -> bool:
        return len(self._splitter.split(part)) > 1

    def _smaller(self, part: Part) -> list[Part]:
        if len(part) == 1:
            return []
        pieces = self._splitter.split(part)
        return pieces if len(pieces) > 1 else self._splitter.halves(part)

    def _search(self, part: Part, error: LLMOptError, depth: int) -> list[Part]:
        """The pieces in which to search for the refused text."""
        if isinstance(error, ProviderError) and error.item is not None and error.item < len(part):
            # The provider names the text: that one is given up, all others are sent again.
            self._give_up((part[error.item],), error)
            return [part[: error.item] + part[error.item + 1 :]]
        if isinstance(error, ItemTooLong):
            stated = error.limit.max_item_tokens if error.limit is not None else None
            return self._splitter.isolate_longest(part, stated)
        # With every eighth of the batch refused, the cause is the request itself; a search would cost two
        # requests a text.
        if depth >= _MAX_FRUITLESS_LEVELS and not self._result.rows and not _is_surely_item_error(error):
            return []
        return self._splitter.halves(part)

    def _give_up(self, part: Part, error: LLMOptError) -> None:
        # Others succeeded and this text alone failed: now it is known that the refusal is about this text.
        rejected = len(part) == 1 and bool(self._result.rows) and isinstance(error, BadRequest)
        for position in part:
            # Each text gets an exception of its own: a shared one would collect the tracebacks of all raises.
            self._result.errors[position] = to_item_rejected(error) if rejected else error.copy()


class BatchSplitter:
    """Splits the texts of a failed batch, and learns the size of the next batches from the failure.

    Args:
        texts: of the batch.
        estimate: tokens of a text.
        limit: what fits into one request now.
        adaptive: learns from refusals; None to learn nothing.
        on_change: called when a limit was learned.
    """

    def __init__(
        self,
        texts: Sequence[str],
        estimate: Callable[[str], int],
        limit: Callable[[], BatchLimit],
        adaptive: AdaptiveBatchLimit | None,
        on_change: Callable[[LimitChange], None] = lambda _: None,
    ) -> None:
        self._texts: Final = texts
        self._estimate: Final = estimate
        self._limit: Final = limit
        self._adaptive: Final = adaptive
        self._on_change: Final = on_change

    def split(self, positions: Part) -> list[Part]:
        """Parts that fit into the limit as it is known now."""
        chosen = [self._texts[position] for position in positions]
        batches = make_batches(chosen, Batcher(self._limit, self._estimate))
        return [positions[batch.start : batch.start + len(batch.texts)] for batch in batches]

    def halves(self, positions: Part) -> list[Part]:
        """Two parts of the same number of texts, so that a search takes as few steps as possible."""
        at = (len(positions) + 1) // 2
        return [positions[:at], positions[at:]]

    def isolate_longest(self, positions: Part, max_item_tokens: int | None) -> list[Part]:
        """The texts that are probably too long, each in a request of its own, and all others in one.

        Args:
            positions: of the texts.
            max_item_tokens: the limit that the provider states, None if it states none.
        """
        tokens = {position: self._tokens(position) for position in positions}
        bound = max(tokens.values()) * _FAR_LONGER if max_item_tokens is None else max_item_tokens * _SUSPECT
        suspects = {position for position in positions if tokens[position] >= bound}
        # With many suspects, halves find the long ones in fewer requests than one for each.
        if not suspects or 2 * len(suspects) > len(positions):
            return self.halves(positions)
        others = tuple(position for position in positions if position not in suspects)
        return [*((position,) for position in positions if position in suspects), others]

    def shortest(self, positions: Sequence[int]) -> int:
        """The position of the text with the fewest tokens."""
        return min(positions, key=self._tokens)

    def refused(self, positions: Part, stated: BatchLimit | None) -> None:
        """Learn that these texts were too many or too long for one request.

        Args:
            positions: of the texts.
            stated: the limit that the provider states, None if it states none.
        """
        if self._adaptive is not None:
            self._report(self._adaptive.refused(len(positions), sum(map(self._tokens, positions)), stated))

    def timed_out(self, positions: Part) -> bool:
        """Learn that these texts took too long in one request; whether batches are smaller from now on."""
        return self._adaptive is not None and self._report(self._adaptive.timed_out(len(positions)))

    def _report(self, change: LimitChange | None) -> bool:
        if change is not None:
            self._on_change(change)
        return change is not None

    def _tokens(self, position: int) -> int:
        return self._estimate(self._texts[position])


def _has_too_few_vectors(error: LLMOptError) -> bool:
    # Some servers answer the first texts of a batch only.
    return isinstance(error, InvalidResponse) and error.reason == "count"


def to_item_rejected(error: LLMOptError) -> ItemRejected:
    """The same refusal, of one text instead of a whole request."""
    rejected = ItemRejected(error.message)
    # The fields of exceptions are plain attributes; this copies status, code and attempts together.
    rejected.__dict__.update(error.__dict__)
    return rejected


def _is_surely_item_error(error: LLMOptError) -> bool:
    # The provider itself says so. A bare 400 or 500 may have any cause.
    return isinstance(error, (ItemRejected, ContentFiltered, ItemTooLong)) and not isinstance(
        error, BadRequest
    )
