"""One contender meets one case: the server on this side, the contender's process on the other."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Case
from benchmarks.peers.contenders import Contender
from benchmarks.peers.outcome import Outcome, outcome_of
from tests.support.faults import FaultServer, serving

ROOT = Path(__file__).parents[2]
LATE_S = 20.0  # seconds after its window in which a worker has to say that it gave up
START_S = 60.0  # seconds for a contender to be imported and warmed up
END_S = 5.0  # seconds for its process to end, in which a crash at exit shows; then it is killed
# Nothing of the caller's own settings and keys reaches a contender, and nothing is fetched at import.
KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT")
GIVEN = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}

Report = dict[str, Any]


class BrokenMeetingError(Exception):
    """The contender's process said nothing, in time or at all."""


class Worker:
    """A contender's process, which speaks in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], complaints: Path) -> None:
        self._process = process
        self._complaints = complaints

    def report(self, seconds: float) -> Report:
        """Wait for its next line.

        Raises:
            BrokenMeetingError: none came in so many seconds, or it ended.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise BrokenMeetingError(self._last_words() if ready else f"silent for {seconds:.0f} s")
        report: Report = json.loads(line)
        return report

    def start(self) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def exit_code(self) -> int | None:
        """Wait for its end; None when that takes too long."""
        try:
            return self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_S)
            return None

    def _last_words(self) -> str:
        lines = self._complaints.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "ended without a word"


@contextlib.contextmanager
def working(python: str, task: Report, home: Path) -> Iterator[Worker]:
    """Run a worker in a folder of its own until the block ends."""
    environ = {name: os.environ[name] for name in KEPT if name in os.environ}
    complaints = home / "stderr"
    with complaints.open("w") as stderr:
        process = subprocess.Popen(
            [python, "-m", "benchmarks.peers.worker", json.dumps(task)],
            cwd=home,
            env=environ | GIVEN | {"HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    with process:
        try:
            yield Worker(process, complaints)
        finally:
            process.kill()


def probe(contender: Contender, python: str) -> Report:
    """Ask whether a contender can be imported, and for its version."""
    with tempfile.TemporaryDirectory() as home:
        try:
            with working(python, {"contender": contender.name, "probe": True}, Path(home)) as worker:
                return worker.report(START_S)
        except (BrokenMeetingError, OSError) as problem:
            return {"missing": str(problem)}


def meet(contender: Contender, case: Case, python: str) -> Outcome:
    """Run one contender through one case, in a fresh home, with a fresh server."""
    with tempfile.TemporaryDirectory() as folder, serving() as thread:
        home = Path(folder)
        try:
            if case.again:
                _call(contender, case, python, home, thread.server)
            return _call(contender, case, python, home, thread.server)
        except BrokenMeetingError as problem:
            return Outcome(broken=f"could not be run: {problem}")


def _call(contender: Contender, case: Case, python: str, home: Path, server: FaultServer) -> Outcome:
    task = {
        "contender": contender.name,
        "origin": server.base_url,
        "texts": case.texts,
        "window": case.window,
        "deadline": case.deadline,
    }
    with working(python, task, home) as worker:
        worker.report(START_S)
        before = len(server.requests)
        case.arm(server)
        worker.start()
        report = worker.report(case.window + LATE_S)
        arrivals = [request.time for request in server.requests[before:]]
        return outcome_of(report, case.texts, arrivals, worker.exit_code())
