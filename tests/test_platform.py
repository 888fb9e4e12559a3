"""What llmopt does on a system that lacks a part of POSIX: the part is taken away, and everything else works.

``docs/operating.md`` says which systems these tests have run on.
"""

from __future__ import annotations

import ast
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmopt import _platform
from llmopt.cache.files import UnsafePath, ensure_private_folder, installation_secret
from tests.cache.stores import item, key, opened
from tests.support.emulators import OpenAIEmulator, serve_in_thread
from tests.test_structure import imports_of, modules, name_of, syntax_tree

# The modules that Windows lacks, and what the modules that it has lack there.
_MODULES = {"fcntl", "grp", "msvcrt", "posix", "pwd", "resource", "select", "syslog", "termios", "tty"}
_NAMES = {
    "epoll", "fork", "forkpty", "getegid", "geteuid", "getgid", "getuid", "kqueue", "mkfifo", "register_at_fork",
    "O_CLOEXEC", "O_NOFOLLOW", "add_signal_handler", "sched_getaffinity", "umask", "fchmod", "chown", "fchown",
    "SIGHUP", "SIGKILL", "SIGPIPE", "SIGALRM", "SIGUSR1", "SIGUSR2",
}  # fmt: skip

_WITHOUT_POSIX = """
# What the standard library of this system uses itself is imported before.
import asyncio, logging, os, select, signal, sqlite3, subprocess, sys, tempfile
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for module, name in [
    (os, "register_at_fork"), (os, "fork"), (os, "geteuid"), (os, "O_NOFOLLOW"), (os, "O_CLOEXEC"),
    (select, "poll"), (signal, "SIGHUP"),
]:
    delattr(module, name)

import importlib, pkgutil
import llmopt
for each in pkgutil.walk_packages(llmopt.__path__, "llmopt."):
    if not each.name.endswith(("__main__", "pytest_plugin")):
        importlib.import_module(each.name)

logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
with llmopt.Client(cache=True) as client:
    for text in ("one", "two", "two"):  # each on the connection of the one before; the last from the cache
        print(client.embed("server/text-embedding-3-small", [text]).vectors.shape)
    for _ in range(2):
        print(len(client.list_models("server")))
    ((pool,),) = [[origin["connections"] for origin in stats.values()] for stats in client.stats().values()]
    print(pool["created"], pool["reused"])

from llmopt.cli.app import main
sys.argv = ["llmopt", "embed", "-", "--model", "server/text-embedding-3-small", "--out", "out.npy"]
main()
"""


def _attributes(path: Path) -> set[str]:
    """The attributes in a file that exist on some systems only."""
    found = {node for node in ast.walk(syntax_tree(path)) if isinstance(node, ast.Attribute)}
    return {n.attr for n in found} & _NAMES | {
        ast.unparse(n) for n in found if n.attr in {"name", "platform"}
    } & {
        "os.name",
        "sys.platform",
    }


def test_one_file_of_the_core_names_what_is_of_one_platform() -> None:
    """`_platform.py`: a second place would be forgotten on the next system."""
    words = _MODULES | _NAMES | {"os.name", "sys.platform"}
    named = re.compile(rf"\b({'|'.join(map(re.escape, sorted(words)))})\b")
    found = {
        f"{name_of(path)}: {word}"
        for path in modules()
        # The syntax tree tells code from prose, and most files have no such word at all.
        if path.stem != "_platform" and named.search(path.read_text("utf-8"))
        for word in (imports_of(path) & _MODULES) | _attributes(path)
    }
    assert found == set()


def test_everything_else_works_without_posix(tmp_path: Path) -> None:
    """Every module can be imported; embeddings, lists of models and the command line work, with a cache in memory."""
    (tmp_path / "script.py").write_text(_WITHOUT_POSIX)
    with serve_in_thread(OpenAIEmulator(key="emulated")) as server:
        (tmp_path / "llmopt.toml").write_text(
            f'[providers.server]\nplugin = "openai"\nbase_url = "{server.base_url}"\napi_key = "emulated"\n'
        )
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            input="a text\nanother\n",
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    models = lines[3]
    assert lines == ["(1, 1536)", "(1, 1536)", "(1, 1536)", models, models, "1 2"]
    assert [received.path for received in server.requests] == [
        "/v1/embeddings",
        "/v1/embeddings",
        "/v1/models",
        "/v1/embeddings",
    ]
    assert np.load(tmp_path / "out.npy").shape == (2, 1536)


@pytest.mark.parametrize("missing", ["fcntl", "geteuid"])
async def test_without_locks_or_owners_nothing_is_cached_on_disk(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that others may write to would be worse than none; one line says so, and no warning at every start."""
    if missing == "fcntl":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    else:
        monkeypatch.delattr(os, "geteuid")
    with pytest.raises(UnsafePath, match="needs file permissions and locks"):
        ensure_private_folder(tmp_path)
    assert installation_secret(tmp_path) is None
    with caplog.at_level(logging.INFO, "llmopt"):
        async with opened(tmp_path / "cache") as store:
            await store.put([item(1)])
            assert await store.get([key(1)]) == [None]
            assert await store.get([key(2)]) == [None]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "nothing is cached on disk for now" in caplog.text
    assert not (tmp_path / "cache").exists()


def test_without_forks_nothing_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows there is no such function."""
    monkeypatch.delattr(os, "register_at_fork")
    _platform.register_at_fork(lambda: pytest.fail("called"))


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "select"])
def test_a_socket_is_polled_with_what_there_is(poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With data it is readable, and at the end of the stream."""
    if not poll:
        monkeypatch.delattr(select, "poll")
    here, there = socket.socketpair()
    with here, there:
        readable = _platform.readable_check(here.fileno())
        assert not readable()
        there.send(b"x")
        assert readable()
        here.recv(1)
        assert not readable()
        there.close()
        assert readable()


def test_signals_that_are_missing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has SIGBREAK, and no SIGHUP."""
    assert _platform.end_signals() == [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    monkeypatch.delattr(signal, "SIGHUP")
    monkeypatch.setattr(signal, "SIGBREAK", 21, raising=False)
    assert _platform.end_signals() == [signal.SIGINT, signal.SIGTERM, 21]
