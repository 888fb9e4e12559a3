"""The texts and the vectors of every case: the same for all contenders, and known to server and contender alike."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# fmt: off
_WORDS: Final = (
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "harbor",
    "island", "juniper", "kelp", "lichen", "meadow", "nectar", "opal", "prairie",
    "quartz", "river", "saffron", "tundra", "umber", "valley", "willow", "xenon",
    "yarrow", "zephyr", "anchor", "beacon", "canyon", "dune", "estuary", "forest",
)
# fmt: on


PERIOD: Final = 1024
"""After so many vectors they begin again, so that a long request may be cut without another result."""


def text(number: int) -> str:
    """A short text, another one for each number, so that nothing can be answered twice."""
    words = (_WORDS[(number >> shift) % len(_WORDS)] for shift in (0, 5, 10, 15))
    return f"{number}: {' '.join(words)}"


def texts(start: int, count: int) -> list[str]:
    """So many texts."""
    return [text(number) for number in range(start, start + count)]


def passages(start: int, count: int, words: int) -> list[str]:
    """So many passages of English prose, each with its number: of Python's own documentation, which is everywhere."""
    prose = _prose()
    most = len(prose) - words
    found = []
    for number in range(start, start + count):
        at = number * words % most
        found.append(f"{number}: {' '.join(prose[at : at + words])}")
    return found


@cache
def _prose() -> list[str]:
    from pydoc_data.topics import topics

    return " ".join(topics[name] for name in sorted(topics)).split()


def vectors(items: int, dimensions: int) -> NDArray[np.float32]:
    """The vectors that an answer of this shape holds: of length 1, with numbers as a model's are."""
    import numpy as np

    found: Any = np.random.default_rng(dimensions).standard_normal((min(items, PERIOD), dimensions))
    found /= np.sqrt((found**2).sum(axis=1, keepdims=True))
    return np.ascontiguousarray(found[np.arange(items) % PERIOD], dtype=np.float32)
