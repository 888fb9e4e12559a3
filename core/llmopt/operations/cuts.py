"""How the texts of one batch are cut when the batch failed as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from llmopt.operations.plan import Cutter, cut
from llmopt.operations.recover import Part
from llmopt.operations.sizes import LearnedSize, LearnedSizes
from llmopt.values.limits import BatchLimit

_FAR_LONGER: Final = 0.8
_SUSPECT: Final = 0.7
"""Of a stated limit: a text estimated at so much of it may be over it, as far as we can count."""


class TextCuts:
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
        sizes: LearnedSizes | None,
        learned: Callable[[LearnedSize], None] = lambda _: None,
    ) -> None:
        self._texts: Final = texts
        self._estimate: Final = estimate
        self._limit: Final = limit
        self._sizes: Final = sizes
        self._learned: Final = learned

    def cut(self, positions: Part) -> list[Part]:
        """See `Sizes.cut`."""
        chosen = [self._texts[position] for position in positions]
        batches = cut(chosen, Cutter(self._limit, self._estimate))
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

    def _note(self, found: LearnedSize | None) -> bool:
        if found is not None:
            self._learned(found)
        return found is not None

    def _tokens(self, position: int) -> int:
        return self._estimate(self._texts[position])
