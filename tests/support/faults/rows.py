"""The fault matrix as values: every injection of docs/development/fault-matrix.md that is one reply or one connection."""

from __future__ import annotations

from tests.support.faults.connection_rows import WIRE_ROWS
from tests.support.faults.fault import Fault
from tests.support.faults.payload_rows import PAYLOAD_ROWS
from tests.support.faults.status_rows import STATUS_ROWS

ROWS: tuple[Fault, ...] = (*WIRE_ROWS, *STATUS_ROWS, *PAYLOAD_ROWS)


def faults_of(*rows: str) -> list[Fault]:
    """Return the faults whose row starts with one of these: "N", "H02", "P"; for `pytest.mark.parametrize`.

    Raises:
        LookupError: there is none; a test over no faults would prove nothing.
    """
    found = [fault for fault in ROWS if fault.row.startswith(rows)]
    if not found:
        raise LookupError(f"no faults of {rows}")
    return found


def find_fault(row: str, name: str) -> Fault:
    """Return one fault by its row and name.

    Raises:
        LookupError: there is none; the text lists the names of that row.
    """
    for each in ROWS:
        if (each.row, each.name) == (row, name):
            return each
    raise LookupError(f"{row} has no {name!r}, but {[each.name for each in ROWS if each.row == row]}")
