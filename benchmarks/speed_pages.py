"""The tables and plots of the speed benchmark in the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed_cases import CASES, Curve, case_named
from benchmarks.speed_results import Results, curve_points, curve_table
from benchmarks.speed_targets import FURTHER, MUST_REACH, SERVICE, targets_table
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
    ("base64-1", "cpu", "CPU per vector, µs"),
    ("base64-8", "cpu", "CPU per vector, µs"),
    ("base64-32", "cpu", "CPU per vector, µs"),
    ("numbers-512-8", "cpu", "CPU per vector, µs"),
    ("stream", "cpu", "CPU per chunk, µs"),
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
    for name, targets, found in (
        ("targets", MUST_REACH, "yes"),
        ("service", SERVICE, "met"),
        ("further", FURTHER, "yes"),
    ):
        table = targets_table(results, targets, found=found, unmeasured="not measured")
        replace_part(page, name, "speed", markdown(table))
    replace_part(page, "growth", "speed", _growth(results, folder / "performance"))
    replace_part(page, "cases", "speed", _sections(results, plots))


def _sections(results: Results, plots: Sequence[str]) -> str:
    sections = []
    measured = [case for case in CASES if results.has_table(case)]
    for case in measured:
        plot = f"![{case.title}](performance/{case.name}.svg)\n\n" if case.name in plots else ""
        sections.append(f"### {case.title}\n\n{plot}{markdown(results.table(case))}\n")
    machines = {results.cases[case.name].get("machine", "only instructions") for case in measured}
    return f"Measured on: {'; '.join(sorted(machines))}.\n\n{''.join(sections)}"


def _growth(results: Results, folder: Path) -> str:
    sections = []
    for curve in results.curves():
        draw_curve(results, curve, folder)
        plot = f"![{curve.title}](performance/growth-{curve.name}.svg)"
        table = markdown(curve_table(results, curve))
        sections.append(f"### {curve.title}\n\n{plot}\n\n{table}\n")
    return "".join(sections)


def draw_curve(results: Results, curve: Curve, folder: Path) -> None:
    """Write the plot of a curve; both axes are logarithmic, so a cost that does not grow is a horizontal line."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    for title, points in curve_points(results, curve).items():
        contender = next(each for _, _, each in curve.lines[title])
        style = "--" if contender == "llmopt-disk" else "-"
        axes.plot(
            [*points],
            [each.median for each in points.values()],
            style,
            marker="o",
            label=title,
            color=_colour(contender),
        )
        low, high = ([getattr(each, end) for each in points.values()] for end in ("low", "high"))
        axes.fill_between([*points], low, high, alpha=0.2, color=_colour(contender), linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatter(lambda y, _: _label(y))
    axes.grid(visible=True, linewidth=0.6, color="#d5dae1")
    axes.set_xlabel(curve.x)
    axes.set_ylabel(f"CPU per {curve.unit}, µs")
    axes.set_title(curve.title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    _save(figure, folder / f"growth-{curve.name}")
    plt.close(figure)


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
    _save(figure, folder / name)
    plt.close(figure)
    return True


def _save(figure: Any, path: Path) -> None:
    for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        figure.savefig(path.with_suffix(f".{ending}"), dpi=150, metadata=metadata)


def _bars(results: Results, name: str, measure: str) -> list[tuple[str, float, str]]:
    case, bars = case_named(name), []
    for contender, row in results.rows(name).items():
        if contender in ("sockets", "python", "typed"):
            continue
        if measure == "peak":
            length = row["peak"] / 1e6
        else:
            value = results.value(name, contender, "wall" if measure == "total" else measure)
            assert value is not None
            length = value.median * (case.total / 1e6 if measure == "total" else 1)
        bars.append((row["title"], max(length, 1e-3), _colour(contender)))
    return bars


def _colour(contender: str) -> str:
    if contender.startswith("llmopt"):
        return _LLMOPT_COLOUR
    return _FLOOR_COLOUR if contender == "floor" else _PEER_COLOUR


def _label(length: float) -> str:
    return f"{length:,.0f}" if length >= 100 else f"{length:.3g}"
