"""What llmopt wants to reach, and whether it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.speed.cases import case_named
from benchmarks.speed.results import Results, bytes_of

Measured = Callable[[Results], float | None]


@dataclass(frozen=True)
class Target:
    """One line.

    Attributes:
        what: the case and the comparison.
        most: what may be measured at most, None for what is only told.
        unit: of both numbers.
        measured: the number of a run, None when the run lacks a part of it.
        aim: a better value that is aimed at.
    """

    what: str
    most: float | None
    unit: str
    measured: Measured
    aim: float | None = None


def _ratio(case: str, other: str, *, measure: str = "cpu") -> Measured:
    return lambda results: results.ratio(case, "llmopt", other, measure)


def _best_ratio(case: str, others: Sequence[str], *, measure: str) -> Measured:
    """Against the better of several ways to use the same client."""

    def measured(results: Results) -> float | None:
        found = [results.ratio(case, "llmopt", other, measure) for other in others]
        known = [each for each in found if each is not None]
        return max(known) if known else None

    return measured


def _beyond(case_name: str, others: Sequence[str]) -> Measured:
    """As `_best_ratio` of wall time, without what the server takes for itself at that concurrency."""
    case = case_named(case_name)
    rounds = math.ceil(case.total / case.items / case.in_flight)
    thinking = rounds * case.delay_ms * 1e3 / case.total

    def measured(results: Results) -> float | None:
        walls = [results.value(case_name, name, "wall") for name in ("llmopt", *others)]
        ours, *theirs = [None if wall is None else wall - thinking for wall in walls]
        known = [each for each in theirs if each is not None]
        return None if ours is None or not known else ours / min(known)

    return measured


def _added_by_sync(results: Results) -> float | None:
    both = [results.value("sync", name, "cpu") for name in ("llmopt", "llmopt-async")]
    return both[0] - both[1] if both[0] is not None and both[1] is not None else None


def _catalogue_ms(results: Results) -> float | None:
    cost = results.value("catalogue", "llmopt", "cpu")
    return None if cost is None else cost * 1000 / 1e3


def _catalogue_mb(results: Results) -> float | None:
    row = results.rows("catalogue").get("llmopt")
    # Of one list: rounds ask for one after the other, while those before are still being written.
    return None if row is None else (row["memory_once"] - row["memory_before"]) / 1e6


def _start(one: str, other: str, *, ratio: bool) -> Measured:
    def measured(results: Results) -> float | None:
        first, second = (results.value("start", name, "cpu") for name in (one, other))
        if first is None or second is None:
            return None
        return first / second if ratio else first - second

    return measured


def _bytes_ratio(case: str, one: str, other: str, what: str) -> Measured:
    def measured(results: Results) -> float | None:
        rows = results.rows(case)
        first, second = (bytes_of(rows[name], what) if name in rows else None for name in (one, other))
        return first / second if first and second else None

    return measured


def _hold_ms(case: str) -> Measured:
    def measured(results: Results) -> float | None:
        held = results.rows(case).get("llmopt", {}).get("hold")
        return None if held is None else held * 1e3

    return measured


def _memory(results: Results) -> float | None:
    row = results.rows("memory").get("llmopt")
    return None if row is None else row["peak"] / 1e6


_BASETEN = ("baseten", "baseten-base64")

TARGETS: Sequence[Target] = (
    Target("one text per request, 64 in flight, over bare aiohttp", 1.8, "x", _ratio("one-64", "floor"), 1.4),
    Target("the same, against openai", 1 / 12, "x", _ratio("one-64", "openai"), 1 / 18),
    Target("the same, against litellm's Router", 1 / 15, "x", _ratio("one-64", "router"), 1 / 22),
    Target("512 in flight, over bare aiohttp", 1.8, "x", _ratio("one-512", "floor")),
    Target("2,048 x 1,536 base64, over bare aiohttp", 1.25, "x", _ratio("large", "floor"), 1.1),
    Target("the same, against openai", 1 / 7, "x", _ratio("large", "openai")),
    Target("the same, the loop is held", 20, "ms", _hold_ms("large")),
    Target("2,048 x 1,536 JSON numbers, the loop is held", 20, "ms", _hold_ms("numbers-2048")),
    Target("512 x 384 JSON numbers, against Baseten", 1 / 3, "x", _ratio("numbers-512", "baseten")),
    Target("the same, against openai", 1 / 15, "x", _ratio("numbers-512", "openai")),
    Target(
        "131,072 texts x 384, wall, against Baseten",
        1 / 2,
        "x",
        _best_ratio("many-384", _BASETEN, measure="wall"),
    ),
    Target("the same, against openai", 1 / 8, "x", _ratio("many-384", "openai", measure="wall")),
    Target("the same, beyond the server's own 1.6 s", None, "x", _beyond("many-384", ("openai",))),
    Target("and against Baseten", None, "x", _beyond("many-384", _BASETEN)),
    Target(
        "131,072 texts x 1,536, wall, against Baseten",
        1 / 2,
        "x",
        _best_ratio("many-1536", _BASETEN, measure="wall"),
    ),
    Target("the same, against openai", 1 / 8, "x", _ratio("many-1536", "openai", measure="wall")),
    Target("the same, beyond the server's own 1.6 s", None, "x", _beyond("many-1536", ("openai",))),
    Target("and against Baseten", None, "x", _beyond("many-1536", _BASETEN)),
    Target("synchronous client, added to the asynchronous one", 120, "µs CPU", _added_by_sync),
    Target("catalogue of 5,000 models, per 1,000", 10, "ms CPU", _catalogue_ms),
    Target("the same, memory above the start, for one list", 50, "MB", _catalogue_mb),
    Target(
        "bytes of its answer, packed over as they are",
        1 / 2,
        "x",
        _bytes_ratio("catalogue", "llmopt", "llmopt-plain", "sent"),
    ),
    Target(
        "bytes of a request with 128 passages, packed over as they are",
        1 / 2,
        "x",
        _bytes_ratio("packed", "llmopt-packed", "llmopt", "received"),
    ),
    Target(
        "`import llmopt; llmopt.AsyncClient()`, against `import httpx`",
        1,
        "x",
        _start("llmopt", "httpx", ratio=True),
    ),
    Target("20 unused plugins", 10, "ms CPU", _start("llmopt-plugins", "llmopt-found", ratio=False)),
    Target("131,072 x 1,536 into a file, peak memory", 300, "MB", _memory),
)


def reach_table(results: Results) -> list[list[str]]:
    """A head, and a row for each target that the run says something of."""
    lines = [["", "at most", "aim", "measured", ""]]
    for target in TARGETS:
        measured = target.measured(results)
        if measured is not None:
            aim = "" if target.aim is None else _told(target.aim, target.unit)
            most, met = "", ""
            if target.most is not None:
                most = _told(target.most, target.unit)
                met = "yes" if measured <= target.most else "**no**"
            lines.append([target.what, most, aim, _told(measured, target.unit), met])
    return lines


def _told(number: float, unit: str) -> str:
    if unit == "x" and number < 0.9:
        return f"1/{1 / number:.1f}".removesuffix(".0")
    digits = 2 if number < 9.95 else 1 if number < 20 else 0
    return f"{number:.{digits}f} {unit}"
