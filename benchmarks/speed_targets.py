"""The targets of the speed benchmark: what llmopt must reach, how it compares beyond that, and what a service needs.

Each row is computed from the results of its case; a row whose case was not measured is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.speed_cases import case_named
from benchmarks.speed_results import Measured, Results, bytes_per_request
from benchmarks.tables import aligned

Measure = Callable[[Results], Measured | float | None]
_BASETEN: Final = ("baseten", "baseten-base64")


@dataclass(frozen=True)
class Target:
    """A value that llmopt should reach.

    Attributes:
        title: the case and the comparison.
        limit: the maximum, None for a value without a limit.
        unit: unit of the numbers: "x" for a ratio, "1/" for a ratio that is shown as a fraction.
        measure: returns the measured value, None if it was not measured.
        goal: a better value than the limit, None for none.
        minimum: whether the limit is the smallest value that is allowed.
    """

    title: str
    limit: float | None
    unit: str
    measure: Measure
    goal: float | None = None
    minimum: bool = False


def _ratio(case: str, other: str, *, measure: str = "cpu", contender: str = "llmopt") -> Measure:
    return lambda results: results.ratio(case, contender, other, measure)


def _best_ratio(case: str, others: Sequence[str], *, measure: str) -> Measure:
    """Compare with the better of several ways to use the same client."""

    def measured(results: Results) -> Measured | None:
        ratios = [results.ratio(case, "llmopt", other, measure) for other in others]
        known = [each for each in ratios if each is not None]
        return max(known, key=lambda each: each.median) if known else None

    return measured


def _without_latency(case_name: str, others: Sequence[str]) -> Measure:
    """Like `_best_ratio` of wall time, without the latency of the server at that concurrency."""
    case = case_named(case_name)
    rounds = math.ceil(case.total / case.items / case.in_flight)
    latency = rounds * case.delay_ms * 1e3 / case.total

    def measured(results: Results) -> float | None:
        walls = [results.value(case_name, name, "wall") for name in ("llmopt", *others)]
        own, *others_walls = [None if wall is None else wall.median - latency for wall in walls]
        known = [each for each in others_walls if each is not None]
        return None if own is None or not known else own / min(known)

    return measured


def _instructions(results: Results) -> float | None:
    counted = results.instructions("one-64", "llmopt")
    return None if counted is None else counted / 1e3


def _instructions_ratio(results: Results) -> float | None:
    own, floor = (results.instructions("one-64", name) for name in ("llmopt", "floor"))
    return own / floor if own and floor else None


def _added(case: str, one: str, other: str) -> Measure:
    return lambda results: results.compared(case, one, other, "cpu", lambda first, second: first - second)


def _cost(case: str, factor: float) -> Measure:
    """CPU of llmopt in a case, per unit times a factor."""

    def measured(results: Results) -> Measured | None:
        cost = results.value(case, "llmopt", "cpu")
        return None if cost is None else cost.scaled(factor)

    return measured


def _list_memory(results: Results) -> float | None:
    row = results.rows("catalogue").get("llmopt")
    # For one list: in the rounds the lists before it are still being written to the cache.
    return None if row is None else (row["memory_once"] - row["memory_before"]) / 1e6


def _bytes_ratio(case: str, one: str, other: str, direction: str) -> Measure:
    def measured(results: Results) -> float | None:
        rows = results.rows(case)
        first, second = (
            bytes_per_request(rows[name], direction) if name in rows else None for name in (one, other)
        )
        return first / second if first and second else None

    return measured


def _blocked_loop_ms(case: str) -> Measure:
    def measured(results: Results) -> float | None:
        seconds = results.rows(case).get("llmopt", {}).get("hold")
        return None if seconds is None else seconds * 1e3

    return measured


def _memory(results: Results) -> float | None:
    row = results.rows("memory").get("llmopt")
    return None if row is None else row["peak"] / 1e6


def _listed(case: str, name: str, factor: float = 1.0) -> Measure:
    def measured(results: Results) -> Measured | None:
        value = results.listed(case, name)
        return None if value is None else value.scaled(factor)

    return measured


MUST_REACH: Final[Sequence[Target]] = (
    Target("one text, 64 in flight, over bare aiohttp", 0.65, "x", _ratio("one-64", "floor"), 0.5),
    Target("user instructions of one text, 64 in flight", 450, "k", _instructions),
    Target("the same, over those of bare aiohttp", None, "x", _instructions_ratio),
    Target("one at a time, over bare aiohttp", 0.7, "x", _ratio("one-1", "floor"), 0.55),
    Target("512 in flight, over bare aiohttp", 0.6, "x", _ratio("one-512", "floor"), 0.45),
    Target("one text, 64 in flight, over openai", 1 / 20, "1/", _ratio("one-64", "openai"), 1 / 25),
    Target(
        "synchronous, one at a time, added to asynchronous",
        48,
        "µs CPU",
        _added("sync", "llmopt", "llmopt-async"),
        42,
    ),
    Target(
        "128 x 1,536 base64, 32 in flight, over bare aiohttp", 0.8, "x", _ratio("base64-32", "floor"), 0.6
    ),
    Target(
        "512 x 384 JSON numbers, one at a time, over Baseten",
        0.67,
        "x",
        _ratio("numbers-512", "baseten"),
        0.6,
    ),
    Target(
        "512 x 384 JSON numbers, 8 in flight, over Baseten",
        0.95,
        "x",
        _ratio("numbers-512-8", "baseten"),
        0.8,
    ),
    Target("10 endpoints, over one", 1.15, "x", _ratio("endpoints", "llmopt", contender="llmopt-10"), 1.05),
    Target(
        "1,000 endpoints, over one", 1.3, "x", _ratio("endpoints", "llmopt", contender="llmopt-1000"), 1.1
    ),
    Target(
        "list of 5,000 models, over gunzip and one typed decode", 1.5, "x", _ratio("catalogue", "typed"), 1.2
    ),
    Target(
        "the same, looking at every model",
        None,
        "x",
        _ratio("catalogue", "typed", contender="llmopt-reading"),
    ),
    Target(
        "stream in a burst, per chunk, over bare aiohttp and JSON", 1.0, "x", _ratio("stream", "floor"), 0.7
    ),
    Target("CPU of the first request, over an earlier version's", 0.45, "x", _ratio("first", "before"), 0.35),
    Target("own files of a warm call", 30, "", _listed("walk", "files"), 20),
    Target("own functions of a warm call", 150, "", _listed("walk", "functions"), 110),
)

FURTHER: Final[Sequence[Target]] = (
    Target(
        "one text, 64 in flight, against litellm's Router", 1 / 15, "1/", _ratio("one-64", "router"), 1 / 22
    ),
    Target("2,048 x 1,536 base64, over bare aiohttp", 1.25, "x", _ratio("large", "floor"), 1.1),
    Target("the same, against openai", 1 / 7, "1/", _ratio("large", "openai")),
    Target("the same, the loop is blocked", 20, "ms", _blocked_loop_ms("large")),
    Target("2,048 x 1,536 JSON numbers, the loop is blocked", 20, "ms", _blocked_loop_ms("numbers-2048")),
    Target("512 x 384 JSON numbers, against openai", 1 / 15, "1/", _ratio("numbers-512", "openai")),
    Target(
        "131,072 texts x 384, wall, against Baseten",
        1 / 2,
        "1/",
        _best_ratio("many-384", _BASETEN, measure="wall"),
    ),
    Target("the same, against openai", 1 / 8, "1/", _ratio("many-384", "openai", measure="wall")),
    Target(
        "the same, without the server's latency of 1.6 s",
        None,
        "1/",
        _without_latency("many-384", ("openai",)),
    ),
    Target("and against Baseten", None, "1/", _without_latency("many-384", _BASETEN)),
    Target(
        "131,072 texts x 1,536, wall, against Baseten",
        1 / 2,
        "1/",
        _best_ratio("many-1536", _BASETEN, measure="wall"),
    ),
    Target("the same, against openai", 1 / 8, "1/", _ratio("many-1536", "openai", measure="wall")),
    Target(
        "the same, without the server's latency of 1.6 s",
        None,
        "1/",
        _without_latency("many-1536", ("openai",)),
    ),
    Target("and against Baseten", None, "1/", _without_latency("many-1536", _BASETEN)),
    Target(
        "bytes of a list of 5,000 models, compressed over uncompressed",
        1 / 2,
        "1/",
        _bytes_ratio("catalogue", "llmopt", "llmopt-plain", "sent"),
    ),
    Target(
        "bytes of a request with 128 passages, compressed over uncompressed",
        1 / 2,
        "1/",
        _bytes_ratio("compressed", "llmopt-compressed", "llmopt", "received"),
    ),
    Target("`import llmopt; llmopt.AsyncClient()`, against `import httpx`", 1, "x", _ratio("start", "httpx")),
    Target("20 unused plugins", 10, "ms CPU", _added("start", "llmopt-plugins", "llmopt-provider")),
    Target("131,072 x 1,536 into a file, peak memory", 300, "MB", _memory),
)

SERVICE: Final[Sequence[Target]] = (
    Target("cached list of 5,000 models, from memory or disk", 500, "ms", _listed("service", "cached_ms")),
    Target("uncached list of 5,000 models", 2, "s", _listed("service", "uncached_s")),
    Target("lists of 60 providers, of which 5 fail", 10, "s", _listed("service", "all_providers_s")),
    Target("calls that failed after retries", 1, "%", _listed("service", "failed", 100)),
    Target("HTTP requests per call", 1.2, "", _listed("service", "requests_per_call")),
    Target("look-ups answered from the cache", 80, "%", _listed("service", "hits", 100), minimum=True),
    Target(
        "requests on a connection that was there", 90, "%", _listed("service", "reuse", 100), minimum=True
    ),
    Target(
        "99 % of all that a call adds, waiting for a connection included",
        100,
        "ms",
        _listed("service", "added_p99_ms"),
    ),
    Target("CPU for a list, per 100 models", 10, "ms", _cost("catalogue", 0.1)),
    Target("99 % of the delays of a chunk", 5, "ms", _listed("service", "chunk_p99_ms")),
    Target("memory for a list of 5,000 models", 50, "MB", _list_memory),
)


def targets_table(
    results: Results, targets: Sequence[Target], *, found: str = "yes", unmeasured: str | None = None
) -> list[list[str]]:
    """Return a head, and a row for each target.

    Args:
        results: the results.
        targets: the targets.
        found: the word for a limit that is kept.
        unmeasured: what the row of a target says that was not measured; without it there is no such row.
    """
    lines = [["", "limit", "goal", "measured", "over the starts", ""]]
    for target in targets:
        result = target.measure(results)
        limit = "" if target.limit is None else _limit(target)
        goal = "" if target.goal is None else _with_unit(target.goal, target.unit)
        if result is not None:
            lines.append([target.title, limit, goal, *_cells(target, result, found)])
        elif unmeasured is not None:
            lines.append([target.title, limit, goal, unmeasured, "", ""])
    return lines


def _cells(target: Target, result: Measured | float, found: str) -> list[str]:
    """What was measured, its spread, and whether the limit is kept."""
    measured = result if isinstance(result, Measured) else Measured(result, result, result, 1)
    over = ""
    if measured.starts > 1:
        over = " to ".join(_number(each, target.unit) for each in (measured.low, measured.high))
    median = measured.median
    return [_with_unit(median, target.unit), over, _verdict(target, median, found)]


def targets_text(results: Results) -> str:
    """Return the tables of targets for a terminal."""
    parts = (("Must reach", MUST_REACH), ("Further targets", FURTHER), ("A service", SERVICE))
    tables = [(title, targets_table(results, targets)) for title, targets in parts]
    return "\n".join(f"\n{title}\n{aligned(table)}" for title, table in tables if len(table) > 1)


def _verdict(target: Target, measured: float, found: str) -> str:
    if target.limit is None:
        return ""
    reached = measured >= target.limit if target.minimum else measured <= target.limit
    return found if reached else "**no**" if found == "yes" else "**missed**"


def _limit(target: Target) -> str:
    return f"{'≥' if target.minimum else '≤'} {_with_unit(target.limit or 0.0, target.unit)}"


def _number(number: float, unit: str) -> str:
    if unit == "1/":
        return f"1/{1 / number:.1f}".removesuffix(".0")
    whole = float(number).is_integer() and (unit != "x" or number >= 10)
    digits = 0 if whole or abs(number) >= 20 else 1 if abs(number) >= 9.95 else 2
    return f"{number:,.{digits}f}"


def _with_unit(number: float, unit: str) -> str:
    return _number(number, unit) if unit == "1/" else f"{_number(number, unit)} {unit}".strip()
