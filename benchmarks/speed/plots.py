"""The plots, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.speed.cases import case_named
from benchmarks.speed.results import Results

_OURS: Final = "#1f6feb"
_FLOOR: Final = "#3d7d4a"
_OTHERS: Final = "#9aa4b2"

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
    ("start", "cpu", "CPU beyond Python's own, ms"),
    ("memory", "peak", "peak memory, MB"),
)
"""A case, what is shown of it, and what stands at its axis."""


def draw(results: Results, folder: Path) -> list[str]:
    """Write the plots of all cases that were run; their names without ending."""
    import matplotlib as mpl

    mpl.use("Agg")
    # The same run gives the same file, byte for byte.
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
    if max(lengths) > 8 * min(lengths):
        # Without a zero on the axis, the length of a bar would mean nothing.
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
        return _OURS
    return _FLOOR if contender == "floor" else _OTHERS


def _label(length: float) -> str:
    return f"{length:,.0f}" if length >= 100 else f"{length:.3g}"
