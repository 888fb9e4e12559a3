"""Getting out of a failed batch whatever can be had: split what is too large, find the text at fault.

A batch goes out whole. What fails for being too large is cut smaller; what fails for what may be one
text's fault is halved, level by level, until that text stands alone: two requests a level. Nothing
that succeeded is sent again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import define, evolve, field

from llmopt.engine.responses import may_be_item_error
from llmopt.engine.singleflight import Group, SharedCall, SingleFlight
from llmopt.errors import (
    AttemptTimeout,
    BadRequest,
    ContentFiltered,
    DeadlineExceeded,
    ItemRejected,
    ItemTooLong,
    LLMOptError,
    LocalRejection,
    ProviderError,
    RequestTooLarge,
)
from llmopt.operations.embed_batches import AdaptiveBatchLimit, Batcher, LimitChange, cut
from llmopt.policies.clock import Deadline
from llmopt.policies.tasks import gather_first_error
from llmopt.values.calls import BatchLimit

if TYPE_CHECKING:
    from llmopt.values.calls import BatchLimit
    from llmopt.values.embeddings import EmbeddedRows
_MOST_EXTRA: Final = 64
_HOPELESS_LEVEL: Final = 3
"""When not one of the eight parts of a third level came through, the fault is not a text's."""
Part = tuple[int, ...]
"""Positions in the batch, of texts that travel together."""


class Sizes(Protocol):
    """What a recovery needs to know of sizes."""

    def cut(self, positions: Part) -> list[Part]:
        """The texts at these positions in parts that fit, by what is known now."""

    def halves(self, positions: Part) -> list[Part]:
        """Two parts of the same number of texts, so that a search takes as few steps as can be."""

    def longest(self, positions: Part, stated: int | None) -> list[Part]:
        """The texts that are too long for certain or by far the longest, and all others."""

    def refused(self, positions: Part, stated: BatchLimit | None) -> None:
        """These texts together were too large; what limit the server states, None if it states none."""

    def timed_out(self, positions: Part) -> bool:
        """These texts together took too long; whether smaller batches are wanted now."""


@define(kw_only=True, eq=False)
class Recovered:
    """What a batch came to.

    Attributes:
        rows: answers with the positions of their texts.
        errors: by position, for all others.
        requests: requests that were answered with vectors.
    """

    rows: list[tuple[Part, EmbeddedRows]] = field(factory=list)
    errors: dict[int, LLMOptError] = field(factory=dict)
    requests: int = 0

    def add(self, other: Recovered) -> None:
        """Take in what was had elsewhere of other texts of the same batch."""
        self.rows.extend(other.rows)
        self.errors.update(other.errors)
        self.requests += other.requests

    def moved(self, places: Mapping[int, int]) -> Recovered:
        """The same for the texts that have a place elsewhere, at those places. Errors are copies."""
        rows = [_picked(part, found, places) for part, found in self.rows]
        return Recovered(
            rows=[(part, found) for part, found in rows if part],
            errors={places[at]: error.copy() for at, error in self.errors.items() if at in places},
            requests=self.requests,
        )


def _picked(part: Part, found: EmbeddedRows, places: Mapping[int, int]) -> tuple[Part, EmbeddedRows]:
    chosen = [row for row, at in enumerate(part) if at in places]
    moved = tuple(places[part[row]] for row in chosen)
    if len(chosen) == len(part):
        # A copy: whoever it came for may write to it.
        return moved, evolve(found, vectors=found.vectors.copy())
    # Of an answer to somebody else's texts too, the usage says nothing about these.
    return moved, evolve(found, vectors=found.vectors[chosen], usage=None)


class SearchBudget:
    """How many requests a call may still spend on finding texts at fault."""

    def __init__(self, most: int = _MOST_EXTRA) -> None:
        self._left = most

    def spend(self, count: int) -> bool:
        """Take so many; False, and nothing taken, when there are not so many left."""
        if count > self._left:
            return False
        self._left -= count
        return True


class Recovery:
    """Carries out one batch that failed as a whole, however many requests it takes.

    Args:
        send: sends the texts at some positions, which are under suspicion.
        sizes: how texts are cut.
        extra: bounds the requests of the whole call.
        on_split: told of every part that is sent again in pieces: its size and why.
    """

    def __init__(
        self,
        send: Callable[[Part], Awaitable[EmbeddedRows]],
        sizes: Sizes,
        extra: SearchBudget,
        on_split: Callable[[int, LLMOptError], None],
    ) -> None:
        self._send: Final = send
        self._sizes: Final = sizes
        self._extra: Final = extra
        self._on_split: Final = on_split
        self._found: Final = Recovered()
        self._searched: Final[list[Part]] = []

    async def run(self, count: int, error: LLMOptError) -> Recovered:
        """Everything that can be had of so many texts, which failed when they went out together."""
        failed: list[tuple[Part, LLMOptError]] = [(tuple(range(count)), error)]
        depth = 0
        while level := [piece for part, error in failed for piece in self._pieces(part, error, depth)]:
            failed = await self._try(level)
            depth += 1
        self._learn_sizes()
        return self._found

    def _learn_sizes(self) -> None:
        """A part that failed as a whole and came through in pieces was too large, whatever was said of it."""
        for part in self._searched:
            if self._found.errors.keys().isdisjoint(part):
                self._sizes.refused(part, None)

    async def _try(self, parts: Sequence[Part]) -> list[tuple[Part, LLMOptError]]:
        """Send all parts of a level at once; those that failed."""
        results = await gather_first_error([self._one(part) for part in parts])
        return [(part, error) for part, error in zip(parts, results, strict=True) if error is not None]

    async def _one(self, part: Part) -> LLMOptError | None:
        try:
            rows = await self._send(part)
        except LLMOptError as error:
            return error
        self._found.add(Recovered(rows=[(part, rows)], requests=1))
        return None

    def _pieces(self, part: Part, error: LLMOptError, depth: int) -> list[Part]:
        """The parts to send instead of a failed one; none when its texts are given up."""
        pieces = self._decide(part, error, depth)
        if len(pieces) == 1 and len(pieces[0]) == len(part):
            pieces = []
        # Cutting smaller is how everything gets through; only the search for a text may cost too much.
        search = not isinstance(error, (RequestTooLarge, AttemptTimeout))
        if not pieces or (search and not self._extra.spend(len(pieces))):
            self._give_up(part, error)
            return []
        if isinstance(error, BadRequest):
            self._searched.append(part)
        self._on_split(len(part), error)
        return pieces

    def _decide(self, part: Part, error: LLMOptError, depth: int) -> list[Part]:
        if isinstance(error, RequestTooLarge):
            self._sizes.refused(part, error.limit)
            return self._smaller(part)
        if isinstance(error, AttemptTimeout):
            timeouts = sum(attempt.outcome == AttemptTimeout.__name__ for attempt in error.attempts)
            smaller = [self._sizes.timed_out(part) for _ in range(timeouts)]
            return self._smaller(part) if any(smaller) else []
        return self._suspects(part, error, depth) if len(part) > 1 and may_be_item_error(error) else []

    def _suspects(self, part: Part, error: LLMOptError, depth: int) -> list[Part]:
        """The pieces in which to look for the text at fault."""
        if isinstance(error, ProviderError) and error.item is not None and error.item < len(part):
            return self._without(part, error.item, error)
        if isinstance(error, ItemTooLong):
            return self._sizes.longest(part, error.limit.max_item_tokens if error.limit is not None else None)
        if depth >= _HOPELESS_LEVEL and not self._found.rows and not _surely_an_items(error):
            return []
        return self._sizes.halves(part)

    def _smaller(self, part: Part) -> list[Part]:
        if len(part) == 1:
            return []
        pieces = self._sizes.cut(part)
        return pieces if len(pieces) > 1 else self._sizes.halves(part)

    def _without(self, part: Part, item: int, error: LLMOptError) -> list[Part]:
        """The server names the text: it is given up, all others go again."""
        self._give_up((part[item],), error)
        return [part[:item] + part[item + 1 :]]

    def _give_up(self, part: Part, error: LLMOptError) -> None:
        # Each text gets an exception of its own: a shared one would grow tracebacks.
        rejected = len(part) == 1 and bool(self._found.rows) and isinstance(error, BadRequest)
        for position in part:
            # Others came through and this one alone did not: by now it is known whose fault it is.
            self._found.errors[position] = to_item_rejected(error) if rejected else error.copy()


def to_item_rejected(error: LLMOptError) -> ItemRejected:
    """The same refusal, of one text instead of a whole request."""
    found = ItemRejected(error.message)
    found.__dict__.update(error.__dict__)
    return found


def _surely_an_items(error: LLMOptError) -> bool:
    """Whether the provider itself says that it is a text's fault. A bare 400 or 500 may be anything's."""
    return isinstance(error, (ItemRejected, ContentFiltered, ItemTooLong)) and not isinstance(
        error, BadRequest
    )


# How the texts of one batch are cut when the batch failed as a whole.

_FAR_LONGER: Final = 0.8
_SUSPECT: Final = 0.7
"""Of a stated limit: a text estimated at so much of it may be over it, as far as we can count."""


class BatchSplitter:
    """The sizes that a `Recovery` asks for.

    Args:
        texts: of the batch.
        estimate: tokens of a text.
        limit: what fits into one request now.
        sizes: where refusals are remembered, None to forget them.
        learned: told of what they taught.
    """

    def __init__(
        self,
        texts: Sequence[str],
        estimate: Callable[[str], int],
        limit: Callable[[], BatchLimit],
        sizes: AdaptiveBatchLimit | None,
        learned: Callable[[LimitChange], None] = lambda _: None,
    ) -> None:
        self._texts: Final = texts
        self._estimate: Final = estimate
        self._limit: Final = limit
        self._sizes: Final = sizes
        self._learned: Final = learned

    def cut(self, positions: Part) -> list[Part]:
        """See `Sizes.cut`."""
        chosen = [self._texts[position] for position in positions]
        batches = cut(chosen, Batcher(self._limit, self._estimate))
        return [positions[batch.start : batch.start + len(batch.texts)] for batch in batches]

    def halves(self, positions: Part) -> list[Part]:
        """See `Sizes.halves`."""
        at = (len(positions) + 1) // 2
        return [positions[:at], positions[at:]]

    def longest(self, positions: Part, stated: int | None) -> list[Part]:
        """See `Sizes.longest`. Texts under suspicion go alone, so that each is known after one request."""
        tokens = {position: self._tokens(position) for position in positions}
        bound = max(tokens.values()) * _FAR_LONGER if stated is None else stated * _SUSPECT
        suspects = {position for position in positions if tokens[position] >= bound}
        if not suspects or 2 * len(suspects) > len(positions):
            return self.halves(positions)
        rest = tuple(position for position in positions if position not in suspects)
        return [*((position,) for position in positions if position in suspects), rest]

    def refused(self, positions: Part, stated: BatchLimit | None) -> None:
        """See `Sizes.refused`."""
        if self._sizes is not None:
            self._note(self._sizes.refused(len(positions), sum(map(self._tokens, positions)), stated))

    def timed_out(self, positions: Part) -> bool:
        """See `Sizes.timed_out`."""
        return self._sizes is not None and self._note(self._sizes.timed_out(len(positions)))

    def _note(self, found: LimitChange | None) -> bool:
        if found is not None:
            self._learned(found)
        return found is not None

    def _tokens(self, position: int) -> int:
        return self._estimate(self._texts[position])


# Texts that another call is embedding right now are waited for, not sent again.

Work = Callable[[tuple[str, ...]], Coroutine[Any, Any, Recovered]]
"""Embeds some texts, whatever it takes."""
_Places = list[tuple[int, int]]
"""Pairs: where a text stands here, and where it stands in another call."""


class Coalescer:
    """Embeds texts for one call, together with all other calls of the same kind.

    Args:
        singleflight: the client's.
        key: provider, model and every option that changes a vector.
        deadline: of this call; it bounds this call's waiting only.
    """

    def __init__(self, singleflight: SingleFlight, key: tuple[object, ...], deadline: Deadline) -> None:
        self._singleflight: Final = singleflight
        self._key: Final = key
        self._deadline: Final = deadline

    def run(self, texts: tuple[str, ...], work: Work) -> Awaitable[Recovered]:
        """What can be had of distinct texts. Must be awaited at once.

        Args:
            texts: the texts.
            work: embeds those that nobody embeds yet.
        """
        group = self._singleflight.group(self._key)
        if group.keys().isdisjoint(texts):
            return group.start(work, texts).wait()
        return self._mixed(texts, work, group)

    async def _mixed(self, texts: tuple[str, ...], work: Work, group: Group) -> Recovered:
        mine: list[int] = []
        joined: dict[SharedCall[Recovered], _Places] = {}
        seats: dict[SharedCall[Recovered], dict[str, int]] = {}
        for at, text in enumerate(texts):
            if text not in group:
                mine.append(at)
                continue
            call, names = group[text]
            if call not in seats:
                seats[call] = {name: place for place, name in enumerate(names)}
            joined.setdefault(call, []).append((at, seats[call][text]))
        waits = [self._join(call, places) for call, places in joined.items()]
        if mine:
            waits.append(self._own(texts, mine, work))
        found = Recovered()
        for part in await gather_first_error(waits):
            found.add(part)
        return await self._again(texts, found, work)

    async def _own(self, texts: Sequence[str], mine: Sequence[int], work: Work) -> Recovered:
        recovered = await self._start(tuple(texts[at] for at in mine), work).wait()
        return recovered.moved(dict(enumerate(mine)))

    async def _join(self, call: SharedCall[Recovered], places: _Places) -> Recovered:
        try:
            async with asyncio.timeout(self._deadline.remaining() if self._deadline.bounded else None):
                recovered = await call.wait()
        except TimeoutError:
            late = DeadlineExceeded("the deadline passed while waiting for the answer.", phase="coalesce")
            return Recovered(errors={at: late.copy() for at, _ in places})
        # What it cost is on the account of the call that sent it.
        return evolve(recovered.moved({place: at for at, place in places}), requests=0)

    async def _again(self, texts: Sequence[str], found: Recovered, work: Work) -> Recovered:
        """Texts whose owner was turned away on this side, or ran out of its own time, go once more."""
        left = [at for at, error in found.errors.items() if _was_the_owners(error, self._deadline)]
        if not left:
            return found
        again = await self._start(tuple(texts[at] for at in left), work).wait()
        for at in left:
            del found.errors[at]
        found.add(again.moved(dict(enumerate(left))))
        return found

    def _start(self, texts: tuple[str, ...], work: Work) -> SharedCall[Recovered]:
        """Send texts, and let others join those that nobody had sent."""
        return self._singleflight.group(self._key).start(work, texts)


def _was_the_owners(error: LLMOptError, deadline: Deadline) -> bool:
    return isinstance(error, LocalRejection) and not deadline.expired()
