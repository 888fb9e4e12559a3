"""The cases of the speed benchmark, and the texts and vectors that clients and server use. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["requests", "sync", "bulk", "stored", "catalogue", "start"]
"""How a case is measured: by `benchmarks.worker`, "start" by `benchmarks.speed`."""
BATCH_PEERS = ("floor", "httpx", "httpx2", "llmopt", "llmopt-off", "openai", "litellm", "router", "langchain")
PEERS = ("sockets", *BATCH_PEERS, "baseten", "baseten-base64")


@dataclass(frozen=True)
class Case:
    """One table of results.

    Attributes:
        name: its name on the command line.
        title: the heading of the table.
        kind: how it is measured.
        contenders: names of the clients that take part.
        form: "requested" for a server that can send base64, "numbers" for one that cannot.
        items: texts per request; for the catalogue the number of models.
        dimensions: numbers per vector.
        in_flight: concurrent requests.
        delay_ms: latency of the server.
        total: number of texts, for the cases that embed many.
        seconds: approximate duration of one contender's part of a round.
        rounds: number of rounds.
        words: words of prose per text; 0 for short generated texts.
        sizes: whether the table shows bytes per request.
    """

    name: str
    title: str
    kind: Kind
    contenders: tuple[str, ...] = PEERS
    form: Literal["requested", "numbers"] = "requested"
    items: int = 1
    dimensions: int = 1536
    in_flight: int = 1
    delay_ms: int = 0
    total: int = 0
    seconds: float = 0.4
    rounds: int = 5
    words: int = 0
    sizes: bool = False

    @property
    def path(self) -> str:
        """The path of the base URL, see `benchmarks.servers`."""
        return f"/{self.form}-{self.items}x{self.dimensions}-{self.delay_ms}ms/v1"

    @property
    def unit(self) -> str:
        """What costs are given per."""
        if self.kind == "catalogue":
            return "model"
        return "vector" if self.total or self.items > 1 else "request"

    @property
    def counter(self) -> Literal["requests", "vectors"]:
        """The counter by which costs are divided; models are counted like vectors."""
        return "requests" if self.unit == "request" else "vectors"


_NUMBERS = ("sockets", *BATCH_PEERS, "baseten")
_STARTERS = (
    "python",
    "floor",
    "httpx",
    "httpx2",
    "llmopt",
    "llmopt-provider",
    "llmopt-plugins",
    "openai",
    "litellm",
    "langchain",
    "baseten",
)
_SYNC = ("floor", "llmopt-async", "llmopt", "httpx", "httpx2", "openai", "litellm", "baseten-base64")
MANY = 131_072

CASES: Sequence[Case] = (
    Case("one-1", "One text per request, one at a time", "requests"),
    Case("one-64", "One text per request, 64 in flight", "requests", in_flight=64, rounds=7),
    Case("one-512", "One text per request, 512 in flight", "requests", in_flight=512, seconds=0.6),
    Case("large", "2,048 texts per request, 1,536 numbers each", "requests", items=2048),
    Case(
        "numbers-2048",
        "2,048 texts per request, 1,536 numbers each, as JSON numbers",
        "requests",
        ("floor", "llmopt", "openai", "baseten"),
        "numbers",
        2048,
        rounds=3,
    ),
    Case(
        "numbers-512",
        "512 texts per request, 384 numbers each, as JSON numbers",
        "requests",
        _NUMBERS,
        "numbers",
        512,
        384,
    ),
    Case(
        "numbers-128",
        "128 texts per request, 1,024 numbers each, as JSON numbers",
        "requests",
        _NUMBERS,
        "numbers",
        128,
        1024,
    ),
    Case(
        "many-384",
        "131,072 texts in batches of 128, 32 in flight, 50 ms, 384 numbers each",
        "bulk",
        items=128,
        dimensions=384,
        in_flight=32,
        delay_ms=50,
        total=MANY,
        seconds=4,
        rounds=3,
    ),
    Case(
        "many-1536",
        "131,072 texts in batches of 128, 32 in flight, 50 ms, 1,536 numbers each",
        "bulk",
        items=128,
        in_flight=32,
        delay_ms=50,
        total=MANY,
        seconds=4,
        rounds=3,
    ),
    Case("sync", "Synchronous clients, one text per request", "sync", _SYNC),
    Case(
        "catalogue",
        "A catalogue of 5,000 models",
        "catalogue",
        ("floor", "httpx", "httpx2", "llmopt", "llmopt-plain", "llmopt-off", "openai"),
        items=5000,
        sizes=True,
    ),
    Case("start", "Import, and create a client", "start", _STARTERS, rounds=7),
    Case(
        "memory",
        "131,072 texts, 1,536 numbers each, into a file",
        "stored",
        ("floor", "llmopt", "openai", "langchain", "baseten"),
        items=128,
        in_flight=32,
        total=MANY,
        rounds=1,
    ),
    Case(
        "compressed",
        "128 passages of 150 words per request, 384 numbers each, uncompressed and compressed",
        "requests",
        ("floor", "llmopt", "llmopt-compressed"),
        items=128,
        dimensions=384,
        in_flight=8,
        words=150,
        sizes=True,
    ),
)


def case_named(name: str) -> Case:
    """Return a case by its name."""
    return next(each for each in CASES if each.name == name)


# fmt: off
_WORDS: Final = (
    "amber", "basalt", "cedar", "delta", "ember", "fjord", "garnet", "harbor",
    "island", "juniper", "kelp", "lichen", "meadow", "nectar", "opal", "prairie",
    "quartz", "river", "saffron", "tundra", "umber", "valley", "willow", "xenon",
    "yarrow", "zephyr", "anchor", "beacon", "canyon", "dune", "estuary", "forest",
)
# fmt: on
MAX_DISTINCT_VECTORS: Final = 1024
"""Vectors repeat after this many, so that a client may split a long request without changing the result."""


def texts(start: int, count: int) -> list[str]:
    """Return short texts, a different one for each number, so that no cache can help."""
    return [_text(number) for number in range(start, start + count)]


def passages(start: int, count: int, words: int) -> list[str]:
    """Return passages of English prose with their number, from the documentation inside Python."""
    prose = _prose()
    last = len(prose) - words
    passages = []
    for number in range(start, start + count):
        first = number * words % last
        passages.append(f"{number}: {' '.join(prose[first : first + words])}")
    return passages


def vectors(items: int, dimensions: int) -> NDArray[np.float32]:
    """Return the vectors of a response of this shape: of length 1, with numbers like those of a model."""
    import numpy as np

    rows: Any = np.random.default_rng(dimensions).standard_normal(
        (min(items, MAX_DISTINCT_VECTORS), dimensions)
    )
    rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
    return np.ascontiguousarray(rows[np.arange(items) % MAX_DISTINCT_VECTORS], dtype=np.float32)


def _text(number: int) -> str:
    words = (_WORDS[(number >> shift) % len(_WORDS)] for shift in (0, 5, 10, 15))
    return f"{number}: {' '.join(words)}"


@cache
def _prose() -> list[str]:
    from pydoc_data.topics import topics

    return " ".join(topics[name] for name in sorted(topics)).split()
