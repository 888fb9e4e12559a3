"""User instructions per request under callgrind, for the cases and contenders of the speed benchmark.

The number of instructions does not depend on the load of the machine, nor on where the process lies in memory. A contender
runs twice with different numbers of requests, and the difference is divided, so that neither imports nor the warm-up count.
"""

from __future__ import annotations

import json
import tempfile
from typing import Final

from benchmarks.clients import Contender
from benchmarks.instructions import collected_instructions, require_valgrind
from benchmarks.processes import CHECKOUT, Environments, ServerProcess, child_environment
from benchmarks.speed_cases import Case

__all__ = ["COUNTED", "count_instructions", "require_valgrind"]

COUNTED: Final = ("one-1", "one-64", "one-512", "base64-32")
_ROUNDS: Final = 8
"""Requests of each caller that are counted."""
_MIN_REQUESTS: Final = 256


def count_instructions(case: Case, contender: Contender, environments: Environments) -> int | None:
    """Return the user instructions per request; None if the contender cannot run, with the reason printed."""
    few = case.in_flight
    # A request with many texts takes more instructions, so that fewer requests give a steady figure.
    many = few + max(_ROUNDS * case.in_flight, _MIN_REQUESTS) // min(8, case.items)
    folder = tempfile.gettempdir()
    with ServerProcess("embeddings", environments.python("server")) as server:
        programs = [
            _program(case, contender, environments, server.origin, requests) for requests in (few, many)
        ]
        try:
            first = collected_instructions(*programs[0], folder, plain_first=True)
            second = collected_instructions(*programs[1], folder)
        except RuntimeError as error:
            print(f"  {contender.title}: not run: {error}", flush=True)
            return None
    instructions = (second - first) // (many - few)
    print(f"  {contender.title:26} {instructions / 1e3:10.1f} k instructions per request", flush=True)
    return instructions


def _program(
    case: Case, contender: Contender, environments: Environments, origin: str, requests: int
) -> tuple[list[str], dict[str, str]]:
    """The command of a worker that sends ``requests`` requests, and its environment variables."""
    task = {"contender": contender.name, "case": case.name, "origin": origin, "count": requests}
    program = ["-m", "benchmarks.worker", json.dumps(task | {"benchmark": "once"})]
    environment = child_environment(checkout=contender.environment == CHECKOUT)
    # Else the order of sets, and with it the number of instructions, would differ between runs.
    environment["PYTHONHASHSEED"] = "0"
    return [environments.python(contender.environment), *program], environment
