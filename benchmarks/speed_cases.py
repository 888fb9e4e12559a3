"""The cases of the speed benchmark, and the texts and vectors that clients and server use. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal[
    "requests", "sync", "bulk", "stored", "catalogue", "cached", "stream", "start", "first", "walk", "service"
]
"""How a case is measured: by `benchmarks.speed_worker`; from "start" on by `benchmarks.speed_processes`."""
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
        items: texts per request; for a list the number of models, for a stream the number of chunks.
        dimensions: numbers per vector.
        in_flight: concurrent requests.
        delay_ms: latency of the server.
        total: number of texts, for the cases that embed many.
        whole: whether each call has all these texts; else a contender gets as many as take ``seconds``.
        seconds: approximate duration of one contender's part of a round.
        starts: how often each worker is started; addresses in memory differ from start to start and are worth a tenth.
        rounds: number of rounds for each start.
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
    whole: bool = False
    seconds: float = 0.3
    starts: int = 3
    rounds: int = 2
    words: int = 0
    sizes: bool = False

    @property
    def path(self) -> str:
        """The path of the base URL, see `benchmarks.servers`."""
        if self.kind == "stream":
            return f"/{self.items}-0us/v1"
        return f"/{self.form}-{self.items}x{self.dimensions}-{self.delay_ms}ms/v1"

    @property
    def unit(self) -> str:
        """What costs are given per."""
        if self.kind in ("catalogue", "cached", "stream"):
            return {"catalogue": "model", "cached": "look-up", "stream": "chunk"}[self.kind]
        return "vector" if self.total or self.items > 1 else "request"

    @property
    def counter(self) -> Literal["requests", "vectors"]:
        """The counter by which costs are divided; models and chunks are counted like vectors."""
        return "requests" if self.unit in ("request", "look-up") else "vectors"


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

_BASE64 = ("sockets", "floor", "llmopt", "llmopt-off", "openai", "baseten-base64")

CASES: Sequence[Case] = (
    Case("one-1", "One text per request, one at a time", "requests", starts=5),
    Case("one-64", "One text per request, 64 in flight", "requests", in_flight=64, starts=5),
    Case("one-512", "One text per request, 512 in flight", "requests", in_flight=512, seconds=0.4, starts=5),
    Case("large", "2,048 texts per request, 1,536 numbers each", "requests", items=2048),
    *(
        Case(
            f"base64-{in_flight}",
            f"128 texts per request, 1,536 numbers each as base64, {in_flight} in flight",
            "requests",
            _BASE64,
            items=128,
            in_flight=in_flight,
            starts=5 if in_flight == 32 else 3,
        )
        for in_flight in (1, 8, 32)
    ),
    Case(
        "numbers-2048",
        "2,048 texts per request, 1,536 numbers each, as JSON numbers",
        "requests",
        ("floor", "llmopt", "openai", "baseten"),
        "numbers",
        2048,
        rounds=1,
    ),
    Case(
        "numbers-512",
        "512 texts per request, 384 numbers each, as JSON numbers, one at a time",
        "requests",
        _NUMBERS,
        "numbers",
        512,
        384,
        starts=5,
    ),
    Case(
        "numbers-512-8",
        "512 texts per request, 384 numbers each, as JSON numbers, 8 in flight",
        "requests",
        ("sockets", "floor", "llmopt", "llmopt-off", "baseten"),
        "numbers",
        512,
        384,
        8,
        starts=5,
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
        seconds=2.5,
        rounds=1,
    ),
    Case(
        "many-1536",
        "131,072 texts in batches of 128, 32 in flight, 50 ms, 1,536 numbers each",
        "bulk",
        items=128,
        in_flight=32,
        delay_ms=50,
        total=MANY,
        seconds=2.5,
        rounds=1,
    ),
    Case("sync", "Synchronous clients, one text per request", "sync", _SYNC, starts=5),
    Case(
        "stream",
        "A chat stream of 500 chunks at once",
        "stream",
        ("sockets", "floor", "llmopt", "openai"),
        items=500,
        starts=5,
    ),
    Case(
        "endpoints",
        "One text per request, 64 in flight, endpoints of one entry",
        "requests",
        ("floor", "llmopt", "llmopt-10", "llmopt-100", "llmopt-1000"),
        in_flight=64,
        starts=5,
    ),
    Case(
        "catalogue",
        "A list of 5,000 models",
        "catalogue",
        (
            "typed",
            "floor",
            "httpx",
            "httpx2",
            "llmopt",
            "llmopt-reading",
            "llmopt-plain",
            "llmopt-off",
            "openai",
        ),
        items=5000,
        starts=5,
        sizes=True,
    ),
    Case("start", "Import, and create a client", "start", _STARTERS, starts=1, rounds=7),
    Case(
        "first",
        "The first request of a process, after the import",
        "first",
        ("llmopt", "before"),
        starts=1,
        rounds=9,
    ),
    Case("walk", "Own files and functions of a warm call", "walk", ("llmopt",), starts=1, rounds=1),
    Case("service", "A service", "service", ("llmopt",), starts=3, rounds=1),
    Case(
        "memory",
        "131,072 texts, 1,536 numbers each, into a file",
        "stored",
        ("floor", "llmopt", "openai", "langchain", "baseten"),
        items=128,
        in_flight=32,
        total=MANY,
        starts=1,
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


@dataclass(frozen=True)
class Curve:
    """How a cost grows with one number: a table and a plot with a line for each of ``lines``.

    Attributes:
        name: its name on the command line.
        title: the heading.
        x: what the number is.
        unit: what the CPU time is given per.
        lines: the title of each line, and its points: the number, the case, and the contender in it.
        cases: the cases that are measured for this curve alone.
    """

    name: str
    title: str
    x: str
    unit: str
    lines: dict[str, tuple[tuple[int, str, str], ...]]
    cases: tuple[Case, ...] = ()


def _curve(
    name: str, title: str, x: str, field: str, values: Sequence[int], base: Case, lines: dict[str, str]
) -> Curve:
    """A curve with a case for each value of a field."""
    cases = []
    for value in values:
        grown: dict[str, Any] = {field: value, "name": f"{name}-{value}", "title": f"{title}: {value:,}"}
        cases.append(replace(base, contenders=tuple(lines.values()), **grown))
    points = {
        line: tuple((value, f"{name}-{value}", contender) for value in values)
        for line, contender in lines.items()
    }
    return Curve(name, title, x, cases[0].unit, points, tuple(cases))


_AND_FLOOR: Final = {"llmopt": "llmopt", "aiohttp, bare": "floor"}
_ENDPOINTS: Final = ((1, "llmopt"), (10, "llmopt-10"), (100, "llmopt-100"), (1000, "llmopt-1000"))
_LISTS: Final = (100, 1000, 5000, 20_000)

CURVES: Sequence[Curve] = (
    _curve(
        "in-flight",
        "Growth with the requests in flight, one text each",
        "requests in flight",
        "in_flight",
        (1, 8, 64, 512, 4096),
        Case("", "", "requests", rounds=1),
        _AND_FLOOR,
    ),
    _curve(
        "texts",
        "Growth with the texts of one call, 64 numbers each, in batches of 128",
        "texts in one call",
        "total",
        (1 << 10, 1 << 13, 1 << 17, 1 << 20),
        Case("", "", "bulk", items=128, dimensions=64, in_flight=32, whole=True, rounds=1),
        _AND_FLOOR,
    ),
    Curve(
        "endpoints",
        "Growth with the endpoints of an entry, one text each, 64 in flight",
        "endpoints",
        "request",
        {"llmopt": tuple((count, "endpoints", contender) for count, contender in _ENDPOINTS)},
    ),
    _curve(
        "events",
        "Growth with the chunks of a stream, all at once",
        "chunks in one stream",
        "items",
        (100, 1000, 10_000, 100_000),
        Case("", "", "stream", rounds=1),
        _AND_FLOOR,
    ),
    _curve(
        "lists",
        "Growth with the models of a list, requested",
        "models in the list",
        "items",
        _LISTS,
        Case("", "", "catalogue", rounds=1),
        {**_AND_FLOOR, "gunzip and one typed decode": "typed"},
    ),
    _curve(
        "cached",
        "Growth with the models of a list, cached",
        "models in the list",
        "items",
        _LISTS,
        Case("", "", "cached", rounds=1),
        {"from memory": "llmopt-memory", "from the disk, by a new client": "llmopt-disk"},
    ),
)


def all_cases() -> list[Case]:
    """Return every case that is measured, those of curves included."""
    return [*CASES, *(case for curve in CURVES for case in curve.cases)]


def case_named(name: str) -> Case:
    """Return a case by its name."""
    return next(each for each in all_cases() if each.name == name)


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
