"""The conformance kit itself: its checks, its error corpus, and its observers of side effects."""

from __future__ import annotations

import os
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from llmopt import BatchLimit, Failure, Verdict, VerdictKind, testing
from llmopt.testing.corpus import CorpusError, own_corpus, read_corpus
from llmopt_conformance.observe import Sources, Watch
from llmopt_conformance.runner import CHECKS

ERROR = """
[[error]]
name = "n"
source = "s"
status = 400
body = ""
kind = "auth"
"""


def test_there_are_at_least_sixty_checks_with_unique_names() -> None:
    """Each states in a sentence what it expects."""
    assert len(CHECKS) >= 60
    assert not [name for name, times in Counter(check.id for check in CHECKS).items() if times > 1]
    for check in CHECKS:
        assert check.expects.endswith("."), check.id
        assert len(check.expects.split()) >= 4, check.id


def test_every_error_of_the_corpus_belongs_to_a_check() -> None:
    """And the checks of errors have entries in the corpus."""
    checks = {check.id for check in CHECKS}
    used = {f"errors.{error.check}" for error in own_corpus()}
    assert used <= checks
    assert {"errors.quota", "errors.auth", "errors.rate-limit", "errors.too-large"} <= used
    assert all(error.source for error in own_corpus())


def test_a_corpus_entry_reports_each_wrong_field_of_a_verdict() -> None:
    """Kind, retry_after, limit and item, each with the expected value."""
    text = (
        ERROR.replace('"auth"', '["auth", "permission"]')
        + "retry_after = 2.0\nitem = 3\nlimit = { max_items = 5 }\n"
    )
    (error,) = read_corpus(text)
    assert error.failure == Failure(status=400, model="kit-model")
    right = Verdict(kind=VerdictKind.PERMISSION, retry_after=2.0, item=3, limit=BatchLimit(max_items=5))
    assert error.faults(right) == []
    faults = " ".join(error.faults(Verdict(kind=VerdictKind.TRANSIENT)))
    assert "the verdict is TRANSIENT, not AUTH or PERMISSION" in faults
    assert "retry_after is None, not 2.0" in faults
    assert "item is None, not 3" in faults
    assert "limit is None" in faults


def test_a_plugins_corpus_forbids_fields_that_it_does_not_state() -> None:
    """The kit's own corpus allows them: it holds for any plugin."""
    verdict = Verdict(kind=VerdictKind.AUTH, retry_after=2.0)
    assert read_corpus(ERROR)[0].faults(verdict) == ["n (HTTP 400): retry_after is 2.0, not None."]
    assert read_corpus(ERROR + 'check = "auth"')[0].faults(verdict) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[[error", "not valid TOML"),
        ("[other]", "nothing else"),
        ("[[error]]\nname = 'n'", r"missing \['body', 'kind', 'source', 'status'\]"),
        (ERROR + "colour = 1", r"unknown \['colour'\]"),
        (ERROR.replace("auth", "magic"), "the kinds are transient, timeout"),
        (ERROR + ERROR, "names occur twice: n"),
        (ERROR.replace('""', "7"), "body is text"),
        (ERROR + "limit = { items = 7 }", "limit is a table of"),
        (ERROR + "headers = { Retry-After = '7' }", "names in lower case"),
    ],
)
def test_an_invalid_corpus_is_an_error_with_the_reason(text: str, fault: str) -> None:
    with pytest.raises(CorpusError, match=fault):
        read_corpus(text)


def _computes() -> str:
    return " ".join(str(sum(range(number))) for number in range(5))


def _imports() -> object:
    import xml.dom.minidom

    return xml.dom.minidom


def _connects() -> None:
    socket.socket().close()


def _perform(act: Callable[[], object]) -> object:
    return act()


ACTS: list[tuple[Callable[[], object], str]] = [
    (_computes, ""),
    (_imports, ""),
    (_connects, "network"),
    (lambda: Path(os.devnull).read_text(), "files"),
    (lambda: Path("nowhere").exists(), "files"),
    (time.monotonic, "clock"),
    (lambda: time.sleep(0), "sleep"),
    (random.random, "randomness"),
    (lambda: os.environ.get("HOME"), "environment"),
    (lambda: "HOME" in os.environ, "environment"),
    (lambda: print(end=""), "output"),
    (lambda: threading.Thread(target=_computes).start(), "threads"),
]


@pytest.mark.parametrize(("act", "sin"), ACTS)
def test_the_observer_sees_the_side_effects_of_a_call(act: Callable[[], object], sin: str) -> None:
    """Imports and computing are no side effects."""
    watch = Watch(Sources(_Here()))
    watch.call(_perform, act)
    assert {each.sin for each in watch.acts} == ({sin} if sin else set())


class _Here:
    """An object with a hook, so that this file's code counts as the plugin's."""

    def hook(self) -> None:
        """Do nothing."""


def test_the_observer_stops_with_the_call() -> None:
    """It does not see what the process does afterwards."""
    watch = Watch(Sources(_Here()))
    watch.call(_computes)
    time.monotonic()
    Path(os.devnull).read_text()
    assert watch.acts == []


def test_the_observer_ignores_other_threads() -> None:
    """A fake server in another thread may use files and sockets."""
    stop = threading.Event()

    def busy() -> None:
        while not stop.is_set():
            Path(os.devnull).read_text()

    thread = threading.Thread(target=busy)
    thread.start()
    watch = Watch(Sources(_Here()))
    watch.call(lambda: [_computes() for _ in range(2_000)])
    stop.set()
    thread.join()
    assert watch.acts == []


def test_exports_are_the_same_for_type_checkers_and_at_run_time() -> None:
    """Each can be imported, also after a module of that name was imported."""
    source = Path(testing.__file__).read_text("utf-8")
    assert sorted(re.findall(r"import (\w+) as \1\n", source)) == sorted(testing.__all__)  # type: ignore[attr-defined]
    for name in testing.__all__:  # type: ignore[attr-defined]
        assert callable(getattr(testing, name)), name
    with pytest.raises(AttributeError, match="FakeProvidr"):
        _ = testing.FakeProvidr  # type: ignore[attr-defined]
