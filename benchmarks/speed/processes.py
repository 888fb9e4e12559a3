"""The processes of a run: the server's, and each contender's."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
# Nothing of the caller's own settings and keys reaches a contender, and nothing is fetched at import.
_KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "HOME")
_GIVEN = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGCHAIN_TRACING_V2": "false",
    "NO_PROXY": "127.0.0.1",
    "OPENBLAS_NUM_THREADS": "1",
}
START_S = 120.0
BLOCK_S = 300.0

Report = dict[str, Any]


def environment_of(*, checkout: bool, folders: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a contender's process; with ``checkout`` the core and the plugin are those of this folder."""
    paths = [str(ROOT)]
    if checkout:
        paths += [str(ROOT / "core"), str(ROOT / "plugins" / "openai")]
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **_GIVEN, "PYTHONPATH": os.pathsep.join([*paths, *folders])}


class SilentError(Exception):
    """A contender's process said nothing, in time or at all."""


class Server:
    """The loopback server, in its own process.

    Args:
        python: the Python it runs in; with uvloop it costs half as much.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [self._python, "-m", "benchmarks.speed.server"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment_of(checkout=False),
        )
        assert self._process.stdout is not None
        self.origin = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def counters(self) -> Mapping[str, float]:
        """What it has served, and what that cost it."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.origin}/stats") as answer:
            return dict(json.load(answer))


class Worker:
    """A contender's process. ``first`` is what it said when it was ready."""

    def __init__(self, python: str, contender: str, case: str, origin: str, *, checkout: bool) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
        task = json.dumps({"contender": contender, "case": case, "origin": origin})
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.speed.worker", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment_of(checkout=checkout),
            cwd=tempfile.gettempdir(),
        )
        self._held = b""
        self.first: Report = self._line(START_S)

    def ask(self, **order: Any) -> Report:
        """Give an order and wait for the report."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SilentError(self._last_words()) from None
        return self._line(BLOCK_S)

    def _line(self, seconds: float) -> Report:
        assert self._process.stdout is not None
        while b"\n" not in self._held:
            ready, _, _ = select.select([self._process.stdout], [], [], seconds)
            piece = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not piece:
                raise SilentError(self._last_words() if ready else f"no answer within {seconds:.0f} s")
            self._held += piece
        line, _, self._held = self._held.partition(b"\n")
        return dict(json.loads(line))

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"ended with {self._process.poll()}"

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
