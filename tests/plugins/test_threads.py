"""The tables of our plugins, and the default hooks, answer several threads as they answer one.

The hooks of each plugin are held to the same by the conformance check ``purity.threads``, in kit_tests/test_our_plugins.py.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from types import SimpleNamespace
from typing import Any

import pytest

from llmopt import ModelTable
from llmopt.compatible import defaults
from llmopt_conformance import Samples
from llmopt_conformance.questions import differing_in_threads, hook_calls
from llmopt_conformance.subject import Subject
from llmopt_plugin_compatible._table import Table

THREADS = 4
ASKED = {
    "batch_limit",
    "build_request",
    "parse_embeddings",
    "parse_chat",
    "parse_stream_event",
    "classify_error",
}


def at_once(ask: Callable[[], Any]) -> list[Any]:
    together = Barrier(THREADS)

    def one(_: int) -> Any:
        together.wait()
        return ask()

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, range(THREADS)))


@pytest.mark.parametrize("file", ["known.json", "models.toml"])
@pytest.mark.parametrize("plugin", ["azure", "mistral", "openai"])
def test_a_table_that_several_threads_need_first_is_whole_for_all(plugin: str, file: str) -> None:
    """The file is read at first use; no thread may see a part of it."""
    package = f"llmopt_plugin_{plugin}"
    alone = ModelTable(package, file).models()
    shared = ModelTable(package, file)
    assert alone
    assert at_once(shared.models) == [alone] * THREADS


def test_the_table_of_providers_is_whole_for_all() -> None:
    alone, shared = Table().rows, Table()
    assert at_once(lambda: shared.rows) == [alone] * THREADS


def test_the_default_hooks_answer_several_threads_alike() -> None:
    """A plugin without hooks of its own gets the answers of the dialect."""
    marked = {name: getattr(hook, "llmopt_impl", None) for name, hook in vars(defaults).items()}
    names = {opts["specname"] or name: name for name, opts in marked.items() if opts}
    plugin = SimpleNamespace(**{hook: getattr(defaults, name) for hook, name in names.items()})
    subject = Subject(plugin, name="defaults", samples=Samples(base_url="https://defaults.example/v1"))
    assert {each.hook for each in hook_calls(subject) if subject.implements(each.hook)} >= ASKED
    assert differing_in_threads(subject) == ()
