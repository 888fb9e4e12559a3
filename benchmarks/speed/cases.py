"""What is asked of the contenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["requests", "sync", "bulk", "stored", "catalogue", "start"]
"""How a case is driven, see `benchmarks.speed.drive` and `benchmarks.speed.starting`."""

BATCH_PEERS = ("floor", "httpx", "httpx2", "llmopt", "llmopt-off", "openai", "litellm", "router", "langchain")
PEERS = ("sockets", *BATCH_PEERS, "baseten", "baseten-base64")


@dataclass(frozen=True)
class Case:
    """One table.

    Attributes:
        name: what it is called on the command line.
        title: above the table.
        kind: how it is driven.
        contenders: who takes part.
        form: "asked" for a server that knows base64, "numbers" for one that does not.
        items: texts per request; models of the catalogue.
        dimensions: numbers per vector.
        in_flight: requests at once.
        delay_ms: how long the server thinks.
        total: texts altogether, where the case is about many.
        seconds: how long a contender is measured in a round, about.
        rounds: how often.
        words: words of prose per text; 0 for the short texts that were made up.
        sizes: whether bytes per request are told.
    """

    name: str
    title: str
    kind: Kind
    contenders: tuple[str, ...] = PEERS
    form: Literal["asked", "numbers"] = "asked"
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
        """What follows the server's address."""
        return f"/{self.form}-{self.items}x{self.dimensions}-{self.delay_ms}ms/v1"

    @property
    def unit(self) -> str:
        """What costs are counted by."""
        if self.kind == "catalogue":
            return "model"
        return "vector" if self.total or self.items > 1 else "request"

    @property
    def counted(self) -> Literal["requests", "vectors"]:
        """The number by which they are divided; models count as vectors do, by item."""
        return "requests" if self.unit == "request" else "vectors"


_NUMBERS = ("sockets", *BATCH_PEERS, "baseten")
_STARTERS = (
    "python",
    "floor",
    "httpx",
    "httpx2",
    "llmopt",
    "llmopt-found",
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
    Case("start", "Import, and a client made", "start", _STARTERS, rounds=7),
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
        "packed",
        "128 passages of 150 words per request, 384 numbers each, bodies as they are and packed",
        "requests",
        ("floor", "llmopt", "llmopt-packed"),
        items=128,
        dimensions=384,
        in_flight=8,
        words=150,
        sizes=True,
    ),
)


def case_named(name: str) -> Case:
    """The case of that name."""
    return next(each for each in CASES if each.name == name)
