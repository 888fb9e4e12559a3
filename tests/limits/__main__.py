"""Prints the table of limits: what each row must keep, and what was measured.

    python -m tests.limits [--all] [WORD ...]

The words select rows by their names. Without ``--all``, the short variant of each row is
measured, as in every run of the tests.
"""

from __future__ import annotations

import argparse
import time

from tests.limits.rows import ROWS, Row
from tests.limits.simulation import Report


def main() -> None:
    """Run the rows, and print a line for each case."""
    parser = argparse.ArgumentParser(prog="python -m tests.limits", description=__doc__)
    parser.add_argument("words", nargs="*", help="rows whose names contain one of these words")
    parser.add_argument("--all", action="store_true", help="all cases of each row")
    arguments = parser.parse_args()
    rows = [row for row in ROWS if not arguments.words or any(word in row.name for word in arguments.words)]
    if not rows:
        names = "".join(f"\n  {row.name}" for row in ROWS)
        parser.error(f"no row has any of these words in its name; the rows are:{names}")
    print(f"{'':50} {'possible':>8} {'refused':>8} {'lost':>5} {'least':>5} {'seconds':>8} {'CPU s':>6}")
    for row in rows:
        print_row(row, whole=arguments.all)


def print_row(row: Row, *, whole: bool) -> None:
    """Run the cases of a row, and print a line for each."""
    print(row.name, flush=True)
    kept = 0
    cases = row.selected(nightly=whole) or list(row.cases[:1])
    for case in cases:
        began = time.process_time()
        report = case.report()
        broken = row.bounds.broken(report)
        kept += not broken
        print(
            line(case.name, report, time.process_time() - began),
            "" if not broken else "NOT KEPT: " + "; ".join(broken),
            flush=True,
        )
    print(f"  kept in {kept} of {len(cases)}", flush=True)


def line(name: str, report: Report, cpu: float) -> str:
    """One line of the table."""
    return (
        f"  {name:48} {report.share_of_possible:8.1%} {report.refused:8.2%} {report.lost:5d}"
        f" {report.least_share:5.2f} {report.seconds:8.1f} {cpu:6.1f}"
    )


if __name__ == "__main__":
    main()
