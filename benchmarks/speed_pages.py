"""The tables and plots of the speed benchmark in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed_cases import CASES, case_named
from benchmarks.speed_results import Results, targets_table
from benchmarks.tables import markdown, replace_part

_LLMOPT_COLOUR: Final = "#1f6feb"
_FLOOR_COLOUR: Final = "#3d7d4a"
_PEER_COLOUR: Final = "#9aa4b2"
_MAX_LINEAR_RATIO: Final = 8
"""Longer than the shortest bar by more than this: the axis is logarithmic."""

PLOTS: Final[Sequence[tuple[str, str, str]]] = (
    ("one-64", "cpu", "CPU per request, µs"),
    ("one-512", "cpu", "CPU per request, µs"),
    ("large", "cpu", "CPU per vector, µs"),
    ("numbers-512", "cpu", "CPU per vector, µs"),
    ("numbers-128", "cpu", "CPU per vector, µs"),
    ("numbers-2048", "cpu", "CPU per vector, µs"),
    ("catalogue", "cpu", "CPU per model, µs"),
    ("one-1", "cpu", "CPU per request, µs"),
    ("many-1536", "total", "wall, s"),
    ("many-384", "total", "wall, s"),
    ("sync", "cpu", "CPU per request, µs"),
    ("start", "cpu", "CPU without Python's own, ms"),
    ("memory", "peak", "peak memory, MB"),
)
"""A case, the measure that is shown, and the label of the axis."""


def write_pages(results: Results, folder: Path) -> None:
    """Write the tables into performance.md, between its marks, and the plots into the folder beside it."""
    page = folder / "performance.md"
    plots = draw(results, folder / "performance")
    replace_part(page, "targets", "speed", markdown(targets_table(results)))
    replace_part(page, "cases", "speed", _sections(results, plots))


def _sections(results: Results, plots: Sequence[str]) -> str:
    sections = []
    for case in CASES:
        if case.name not in results.cases:
            continue
        plot = f"![{case.title}](performance/{case.name}.svg)\n\n" if case.name in plots else ""
        sections.append(f"### {case.title}\n\n{plot}{markdown(results.table(case))}\n")
    machines = {results.cases[case.name]["machine"] for case in CASES if case.name in results.cases}
    return f"Measured on: {'; '.join(sorted(machines))}.\n\n{''.join(sections)}"


def draw(results: Results, folder: Path) -> list[str]:
    """Write the plots of all measured cases; returns the names of these cases."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same results always give the same file.
    mpl.rcParams.update({"svg.hashsalt": "llmopt", "font.size": 9})
    folder.mkdir(parents=True, exist_ok=True)
    return [name for name, measure, axis in PLOTS if _draw(results, name, measure, axis, folder)]


def _draw(results: Results, name: str, measure: str, axis: str, folder: Path) -> bool:
    from matplotlib import pyplot as plt

    bars = _bars(results, name, measure)
    if not bars:
        return False
    figure, axes = plt.subplots(figsize=(7, 0.5 + 0.28 * len(bars)), layout="constrained")
    labels, lengths, colours = zip(*reversed(bars), strict=True)
    if max(lengths) > _MAX_LINEAR_RATIO * min(lengths):
        # Dots, because the length of a bar means nothing on an axis without zero.
        axes.set_xscale("log")
        axes.scatter(lengths, labels, c=colours, s=44, zorder=3)
        axes.grid(visible=True, axis="y", linewidth=0.6, color="#d5dae1")
        axes.set_xlim(min(lengths) / 1.6, max(lengths) * 2.4)
        axis = f"{axis} (logarithmic)"
    else:
        axes.barh(labels, lengths, color=colours, height=0.7)
        axes.set_xlim(0, max(lengths) * 1.15)
    for label, length in zip(labels, lengths, strict=True):
        axes.annotate(
            _label(length), (length, label), (7, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.set_xlabel(axis)
    axes.set_title(case_named(name).title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        figure.savefig(folder / f"{name}.{ending}", dpi=150, metadata=metadata)
    plt.close(figure)
    return True


def _bars(results: Results, name: str, measure: str) -> list[tuple[str, float, str]]:
    case, bars = case_named(name), []
    for contender, row in results.rows(name).items():
        if contender in ("sockets", "python"):
            continue
        length: Any = row["peak"] / 1e6 if measure == "peak" else None
        if measure == "total":
            length = (results.value(name, contender, "wall") or 0.0) * case.total / 1e6
        elif length is None:
            length = results.value(name, contender, measure)
        bars.append((row["title"], max(float(length), 1e-3), _colour(contender)))
    return bars


def _colour(contender: str) -> str:
    if contender.startswith("llmopt"):
        return _LLMOPT_COLOUR
    return _FLOOR_COLOUR if contender == "floor" else _PEER_COLOUR


def _label(length: float) -> str:
    return f"{length:,.0f}" if length >= 100 else f"{length:.3g}"
