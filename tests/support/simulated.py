"""Runs a test of a fault in simulated time, where a timeout costs nothing and a busy machine changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from llmopt.policies.clock import Clock, SystemClock
from llmopt.testing.clock import run_simulated
from tests.support.faults.fault import Fault

NEVER_PAUSES = {("N10", "103 for ever at full speed")}
"""Simulated time moves while nothing can be read; these faults always send something, so they need real time."""


def run_fault(fault: Fault, main: Callable[[Clock], Coroutine[Any, Any, None]]) -> None:
    """Run `main` with a simulated clock, or with the system's for a fault that never pauses."""
    if (fault.row, fault.name) in NEVER_PAUSES:
        asyncio.run(main(SystemClock()))
    else:
        run_simulated(main)
