"""Callers without a usable loop or thread: other asynchronous libraries, half-patched processes, no resources."""

from __future__ import annotations

import asyncio
import errno
import sys
import threading
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

import llmopt

MODEL = "local/default"
CHAT_MODEL = "openai/gpt-5"
MESSAGES = [{"role": "user", "content": "x"}]


async def _iterate(client: llmopt.AsyncClient) -> None:
    async for _ in client.embed_iter(MODEL, ["a"]):
        pass


async def _stream(client: llmopt.AsyncClient) -> None:
    async with client.stream(CHAT_MODEL, MESSAGES):
        pass


CALLS: dict[str, Callable[[llmopt.AsyncClient], Coroutine[Any, Any, object]]] = {
    "embed": lambda client: client.embed(MODEL, ["a"]),
    "embed_iter": _iterate,
    "chat": lambda client: client.chat(CHAT_MODEL, MESSAGES),
    "stream": _stream,
    "list_models": lambda client: client.list_models("local"),
    "batch_list_models": lambda client: client.batch_list_models(["local"]),
    "warm": lambda client: client.warm(["local"]),
    "invalidate": lambda client: client.invalidate("local"),
    "aclose": lambda client: client.aclose(),
}


@pytest.mark.row("C20")
@pytest.mark.parametrize("call", CALLS)
def test_a_loop_of_another_library_is_refused_in_words(call: str) -> None:
    """trio and curio run coroutines by themselves, as this test does."""
    client = llmopt.AsyncClient(cache=False)
    coroutine = CALLS[call](client)
    with pytest.raises(llmopt.ConfigError, match=r"asyncio.*trio\.to_thread"):
        coroutine.send(None)


@pytest.mark.row("C20")
@pytest.mark.parametrize(
    ("module", "function", "patched", "refused"),
    [
        ("gevent.monkey", "is_module_patched", {"socket"}, True),
        ("gevent.monkey", "is_module_patched", {"socket", "_thread"}, False),
        ("gevent.monkey", "is_module_patched", set(), False),
        ("eventlet.patcher", "is_monkey_patched", {"socket"}, True),
        ("eventlet.patcher", "is_monkey_patched", {"socket", "thread"}, False),
    ],
)
def test_sockets_patched_without_threads_are_refused_in_words(
    module: str, function: str, patched: set[str], refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread of the system would wait for a greenlet of another one for ever."""
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: patched.__contains__}))  # type: ignore[arg-type]
    with llmopt.Client(cache=False) as client:
        if refused:
            with pytest.raises(llmopt.ConfigError, match="thread=False"):
                client.embed(MODEL, ["a"])
        else:
            assert client.embed(MODEL, ["a"]).vectors.shape == (1, 256)


def _raising(error: Exception) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    return refuse


@pytest.mark.row("C12")
@pytest.mark.parametrize(
    ("owner", "name", "error", "resource"),
    [
        (asyncio, "new_event_loop", OSError(errno.EMFILE, "canned"), "descriptors"),
        (threading.Thread, "start", RuntimeError("can't start new thread"), "threads"),
    ],
    ids=["no descriptor", "no thread"],
)
def test_a_client_without_a_thread_says_why(
    owner: Any, name: str, error: Exception, resource: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And works later."""
    with llmopt.Client(cache=False) as client:
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, _raising(error))
            with pytest.raises(llmopt.OutOfResources) as caught:
                client.embed(MODEL, ["a"])
        assert caught.value.resource == resource
        assert client.embed(MODEL, ["a"]).vectors.shape == (1, 256)
