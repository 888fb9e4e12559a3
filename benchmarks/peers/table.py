"""The outcomes as a Markdown table."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.cases import Case
from benchmarks.peers.contenders import Contender
from benchmarks.peers.outcome import Outcome

BEGIN = "<!-- table: written by benchmarks/faults.py -->"
END = "<!-- end of table -->"
Outcomes = Mapping[tuple[str, str], Outcome]


def written(page: str, table: str) -> str:
    """Put a table into a page, in the place of the one between the two marks; a page without them is the table."""
    if BEGIN not in page or END not in page:
        return f"{BEGIN}\n{table}{END}\n"
    before, rest = page.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{table}{END}{rest.split(END, 1)[1]}"


def write(path: Path, table: str) -> None:
    """Put a table into a file, a new one if there is none."""
    page = path.read_text() if path.exists() else ""
    path.write_text(written(page, table))


def table_of(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    versions: Mapping[str, str],
    outcomes: Outcomes,
) -> str:
    """The whole table: a row for each case, a column for each contender."""
    heads = ["case", *(f"{each.title} ({versions[each.name]})" for each in contenders)]
    rows = [[case.title, *(cell_of(outcomes[case.name, each.name]) for each in contenders)] for case in cases]
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell_of(outcome: Outcome) -> str:
    """Requests, what came of it, seconds, and how a wait was seen."""
    if outcome.broken is not None:
        return outcome.broken
    words = [f"**{outcome.requests}**", _result(outcome), f"{outcome.seconds:.1f} s", outcome.visible]
    return " · ".join(word for word in [*words, _end(outcome.exit_code)] if word)


def _result(outcome: Outcome) -> str:
    if outcome.still_waiting:
        return "no answer yet"
    parts = [_rows(outcome)] if outcome.rows is not None else []
    if outcome.error is not None:
        parts.append(f"`{outcome.error}`")
    if outcome.retry_after is not None:
        parts.append(f"says {outcome.retry_after:.0f} s")
    return ", ".join(parts)


def _end(exit_code: int | None) -> str:
    """How the process died, if it did: after the answer, so that a caller sees it only as a failed program."""
    if not exit_code:
        return ""
    return f"then {signal.Signals(-exit_code).name}" if exit_code < 0 else f"then exit {exit_code}"


def _rows(outcome: Outcome) -> str:
    if outcome.rows != outcome.count:
        return f"**WRONG: {outcome.rows} rows for {outcome.count} texts**"
    if outcome.wrong:
        remedy = " unless sorted by `index`" if outcome.sorted_right else ""
        return f"**WRONG ROWS: {outcome.wrong} of {outcome.count}**{remedy}"
    return f"{outcome.good} of {outcome.count}"
