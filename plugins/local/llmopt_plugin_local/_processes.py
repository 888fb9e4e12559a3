"""Worker processes for the embedded engine: one Python process uses one core for it, several use several.

Threads would not help: most of the time goes into splitting texts into word pieces, which is Python code and holds
its lock. The workers are started as ``python -m llmopt_plugin_local._processes``, not by `multiprocessing`, which would
import the program's main module in each of them. A message is its length and then its bytes; an answer has a status
before that. The arithmetic is the same as in this process, so the vectors are equal bit by bit.

Blocking I/O on pipes, and no clock. `WorkerProcesses` is used by the threads of one executor, no more of them than there
are processes. A worker ends when its pipe is closed, so none outlives its parent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from struct import Struct
from typing import IO, Final

import httpx

from llmopt import ConfigError

_REQUEST: Final = Struct("<Q")
_ANSWER: Final = Struct("<HQ")
_CONFIG_ERROR: Final = 0
"""In place of a status: the answer is the text of a `ConfigError`."""
_Worker = subprocess.Popen[bytes]


class WorkerProcesses:
    """A number of processes that embed, each started when it is first needed.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._idle: Final[SimpleQueue[_Worker | None]] = SimpleQueue()
        self._closed = False
        for _ in range(count):
            self._idle.put(None)

    def embed(self, body: bytes) -> tuple[int, bytes]:
        """Have a process answer a request; one that has ended is replaced once.

        Raises:
            ConfigError: a package that the model needs is missing.
            httpx.RemoteProtocolError: two processes ended one after the other.
        """
        worker = self._idle.get()
        try:
            for _ in range(2):
                worker = worker or _start()
                try:
                    return _ask(worker, body)
                except (OSError, EOFError):
                    _end(worker)
                    worker = None
            raise httpx.RemoteProtocolError(
                "a worker process of the embedded engine ended; see its standard error"
            )
        finally:
            self._put_back(worker)

    def close(self) -> None:
        """End the processes: the idle ones now, each other one after its request."""
        self._closed = True
        with suppress(Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    _end(worker)

    def _put_back(self, worker: _Worker | None) -> None:
        self._idle.put(worker)
        if self._closed:
            # Closed while it worked.
            self.close()


def _start() -> _Worker:
    # The paths of this process, which may have been changed since it started.
    paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": paths}
    # With -P nothing is imported from the current folder that this process would not import.
    command = [sys.executable, "-P", "-m", "llmopt_plugin_local._processes"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603 - itself


def _ask(worker: _Worker, body: bytes) -> tuple[int, bytes]:
    sent, received = worker.stdin, worker.stdout
    if sent is None or received is None:
        raise EOFError
    sent.write(_REQUEST.pack(len(body)) + body)
    sent.flush()
    status, size = _ANSWER.unpack(_read(received, _ANSWER.size))
    answer = _read(received, size)
    if status == _CONFIG_ERROR:
        raise ConfigError(answer.decode())
    return status, answer


def _read(pipe: IO[bytes], size: int) -> bytes:
    data = pipe.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _end(worker: _Worker) -> None:
    for pipe in (worker.stdin, worker.stdout):
        with suppress(OSError):
            if pipe is not None:
                pipe.close()
    worker.kill()
    # It cannot refuse this signal.
    worker.wait()


def _serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    from llmopt_plugin_local._embedded import embed

    with suppress(EOFError):
        while True:
            (size,) = _REQUEST.unpack(_read(requests, _REQUEST.size))
            body = _read(requests, size)
            try:
                status, answer = embed(body)
            except ConfigError as error:
                status, answer = _CONFIG_ERROR, str(error).encode()
            answers.write(_ANSWER.pack(status, len(answer)) + answer)
            answers.flush()


def _main() -> None:
    # Ctrl-C goes to all processes of a terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, answers = os.dup(0), os.dup(1)
    # Whatever a library prints must not get between the answers.
    os.dup2(2, 1)
    with os.fdopen(requests, "rb") as received, os.fdopen(answers, "wb") as sent:
        _serve(received, sent)


if __name__ == "__main__":
    _main()
