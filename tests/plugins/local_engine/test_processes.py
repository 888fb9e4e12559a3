"""The embedded model in processes of its own: the same vectors, and no process that is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
import msgspec
import numpy as np
import pytest

import llmopt
from llmopt_plugin_local import _processes
from llmopt_plugin_local._embedded import embed
from llmopt_plugin_local._processes import WorkerProcesses

TEXTS = [f"the quick fox {number} jumps \N{SNOWMAN}" for number in range(1_500)]


def request(**more: Any) -> bytes:
    return msgspec.json.encode({"model": "default", "input": TEXTS[:3], **more})


@pytest.fixture(scope="module")
def workers() -> Any:
    found = WorkerProcesses(1)
    yield found
    found.close()


def test_a_process_answers_like_this_one(workers: WorkerProcesses) -> None:
    """Byte by byte, also refusals; and one process answers all of them."""
    for body in (request(), request(dimensions=16), request(dimensions=999), request(model="none"), b"{"):
        assert workers.embed(body) == embed(body)
    assert workers.embed(request())[0] == 200


def test_a_process_that_ends_is_replaced(workers: WorkerProcesses) -> None:
    """Whoever has killed it."""
    expected = workers.embed(request())
    worker = workers._idle.get()
    assert worker is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    workers._idle.put(worker)
    assert workers.embed(request()) == expected


@pytest.mark.parametrize("program", ["import sys; sys.exit(3)", "print('noise')"])
def test_processes_that_only_end_are_an_error(program: str, tmp_path: Path) -> None:
    """Not an endless loop."""
    package = tmp_path / "llmopt_plugin_local"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "_processes.py").write_text(program)
    workers = WorkerProcesses(1)
    with patch.object(_processes.sys, "path", [str(tmp_path)]):
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError, match="worker process"):
                workers.embed(request())
    workers.close()


def test_a_missing_package_is_told_as_in_this_process(tmp_path: Path) -> None:
    workers = WorkerProcesses(1)
    (tmp_path / "onnxruntime.py").write_text("raise ModuleNotFoundError('no', name='onnxruntime')")
    with (
        patch.object(_processes.sys, "path", [str(tmp_path), *_processes.sys.path]),
        pytest.raises(llmopt.ConfigError, match="MiniLM engine needs the package 'onnxruntime'"),
    ):
        workers.embed(request(model="minilm"))
    workers.close()


async def test_vectors_of_several_processes_are_those_of_none() -> None:
    """Bit by bit, in order, in several batches; and closing ends the processes."""

    async def vectors(started: list[Any], **options: Any) -> Any:
        start: Callable[[], Any] = _processes._start
        with patch.object(_processes, "_start", lambda: started.append(start()) or started[-1]):
            async with llmopt.AsyncClient({"providers": {"local": {"plugin": "local", **options}}}) as client:
                return (await client.embed("local/default", TEXTS)).vectors

    started: list[Any] = []
    none, two = await vectors([]), await vectors(started, processes=2)
    np.testing.assert_array_equal(none, two)
    assert len(started) == 2
    await asyncio.gather(*(asyncio.to_thread(each.wait) for each in started))


@pytest.mark.parametrize("number", [-1, 17, "many", True, 1.5])
async def test_a_wrong_number_is_refused(number: object) -> None:
    """Before anything is started."""
    with pytest.raises(llmopt.ConfigError, match=r"providers\.local\.processes: expected"):
        async with llmopt.AsyncClient(
            {"providers": {"local": {"plugin": "local", "processes": number}}}
        ) as client:
            await client.embed("local/default", ["a"])
