"""Child processes of the benchmarks: an environment for each client, JSON lines over pipes, and the servers."""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import urllib.request
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

ROOT: Final = Path(__file__).parents[1]
CHECKOUT: Final = "llmopt"
"""Name of the environment with llmopt and the reference clients: the current one, with the code of this checkout."""
PEERS: Final = ("openai", "litellm", "langchain", "baseten", "server")
"""The other environments. Each peer has its own, because their requirements exclude each other.

The folder ``peers`` has a file for each, with the exact version of everything that is installed.
"""
START_TIMEOUT_S: Final = 120.0
"""Seconds for a client to be imported and to send its first request."""
MAX_MESSAGE: Final = 300
"""Characters of an error message that are kept."""
# Settings and keys of the user must not reach a client, and nothing may be fetched at import.
_INHERITED: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "SYSTEMROOT", "HOME")
_SET: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGCHAIN_TRACING_V2": "false",
    "NO_PROXY": "127.0.0.1",
    "OPENBLAS_NUM_THREADS": "1",
}

Report = dict[str, Any]


class ProcessFailedError(Exception):
    """A child process ended or did not answer in time."""


class JsonProcess:
    """A child process that reads and writes one JSON object per line.

    Args:
        python: the interpreter.
        task: the argument of `benchmarks.worker`.
        environment: environment variables.
        folder: working directory, the one for temporary files by default.
    """

    def __init__(
        self, python: str, task: Report, environment: Mapping[str, str], folder: Path | None = None
    ) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # closed with the process
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", json.dumps(task)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=dict(environment),
            cwd=folder or tempfile.gettempdir(),
        )
        self._received = b""

    def send(self, order: Report) -> None:
        """Write one line.

        Raises:
            ProcessFailedError: the process has ended.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ProcessFailedError(self._last_error()) from None

    def receive(self, timeout_s: float) -> Report:
        """Wait for one line.

        Raises:
            ProcessFailedError: the process has ended, or wrote nothing within ``timeout_s``.
        """
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
            data = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            if not data:
                raise ProcessFailedError(
                    self._last_error() if ready else f"no answer within {timeout_s:.0f} s"
                )
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return dict(json.loads(line))

    def ask(self, timeout_s: float = 300.0, **order: Any) -> Report:
        """Write one line and wait for one."""
        self.send(order)
        return self.receive(timeout_s)

    def exit_code(self, timeout_s: float) -> int | None:
        """Wait for the end of the process; None if it takes longer, and the process is killed."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None

    def close(self) -> None:
        """End the process: it ends at the end of its input, and is killed after 5 s."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self.exit_code(5)
        self._errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _last_error(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:MAX_MESSAGE] if lines else f"ended with exit code {self._process.poll()}"


class ServerProcess:
    """A server of `benchmarks.servers` in its own process.

    Args:
        kind: "embeddings" or "streams".
        python: the interpreter; with uvloop the embeddings server costs half as much.
        core: the core that it stays on, None for any.
    """

    def __init__(self, kind: str, python: str = sys.executable, core: int | None = None) -> None:
        where = [] if core is None else [str(core)]
        self._command = [python, "-m", "benchmarks.servers", kind, *where]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, text=True, env=child_environment(checkout=False)
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
        """Connections, requests and bytes of the embeddings server so far, and its CPU seconds; {} for another."""
        if self._command[3] != "embeddings":
            return {}
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.origin}/stats") as response:
            return dict(json.load(response))


class Environments:
    """The interpreters of the environments.

    Args:
        paths: interpreters by the name of their environment.
        folder: where missing environments are created, None to create none.
    """

    def __init__(self, paths: Mapping[str, str], folder: Path | None) -> None:
        self._paths: Final = paths
        self._folder: Final = folder
        self._failures: Final[dict[str, str]] = {}

    @classmethod
    def from_arguments(cls, arguments: argparse.Namespace) -> Self:
        """Use the options that `add_environment_arguments` adds."""
        return cls(dict(each.split("=", 1) for each in arguments.python), arguments.venvs)

    def python(self, name: str) -> str:
        """Return the interpreter of an environment, created if necessary; the current one by default."""
        if name in self._paths:
            return self._paths[name]
        if name not in PEERS or self._folder is None or name in self._failures:
            return sys.executable
        home = self._folder / name
        python = home / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        requirements, installed = _requirements(name), home / "installed.txt"
        # An environment with other versions is made anew.
        if not installed.exists() or installed.read_text() != requirements.read_text():
            self._create(name, home, python, requirements)
        return sys.executable if name in self._failures else str(python)

    def failure(self, name: str) -> str | None:
        """Return why an environment could not be created, None if it could."""
        return self._failures.get(name)

    def _create(self, name: str, home: Path, python: Path, requirements: Path) -> None:
        print(f"creating {home} from {requirements}", flush=True)
        try:
            venv.create(home, with_pip=True, clear=True)
            command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)]
            pip = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            self._failures[name] = f"{type(error).__name__}: {error}"[:200]
            return
        if pip.returncode:
            errors = [line for line in pip.stderr.splitlines() if line.startswith("ERROR")]
            self._failures[name] = (errors or ["pip failed"])[-1][:200]
        else:
            (home / "installed.txt").write_text(requirements.read_text())


def _requirements(name: str) -> Path:
    return ROOT / "benchmarks" / "peers" / f"{name}.txt"


def add_environment_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the peers are installed."""
    parser.add_argument(
        "--venvs",
        type=Path,
        metavar="DIR",
        help="folder of the peers' environments; missing ones are created there with pip",
    )
    parser.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help=f"interpreter of an environment ({', '.join(PEERS)}) that is elsewhere; may be repeated",
    )


def child_environment(
    *, checkout: bool, home: Path | None = None, folders: Sequence[str] = ()
) -> dict[str, str]:
    """Return the environment variables of a child process.

    Args:
        checkout: whether the core and the OpenAI plugin of this checkout can be imported.
        home: home folder, None for the user's.
        folders: further folders for imports.
    """
    paths = [str(ROOT)]
    if checkout:
        paths += [str(ROOT / "core"), str(ROOT / "plugins" / "openai")]
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    variables = {**inherited, **_SET, "PYTHONPATH": os.pathsep.join([*paths, *folders])}
    return variables if home is None else {**variables, "HOME": str(home)}


def machine() -> str:
    """Describe this machine, for the results."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"
