"""The conformance kit itself: its checks, its error corpus, its observers."""

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


def test_there_are_sixty_checks_and_more_each_with_a_name_of_its_own() -> None:
    """Each says in a sentence what it expects."""
    assert len(CHECKS) >= 60
    assert not [name for name, times in Counter(check.id for check in CHECKS).items() if times > 1]
    for check in CHECKS:
        assert check.expects.endswith("."), check.id
        assert len(check.expects.split()) >= 4, check.id


def test_every_error_of_the_corpus_belongs_to_a_check() -> None:
    """And every such check has errors."""
    checks = {check.id for check in CHECKS}
    used = {f"errors.{error.check}" for error in own_corpus()}
    assert used <= checks
    assert {"errors.quota", "errors.auth", "errors.rate-limit", "errors.too-large"} <= used
    assert all(error.source for error in own_corpus())


def test_a_corpus_names_what_is_wrong_with_a_verdict() -> None:
    """Kind, wait, limit and item, each with what was expected."""
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


def test_what_a_plugins_corpus_leaves_out_the_verdict_leaves_out() -> None:
    """In the kit's own corpus it is left open."""
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
def test_a_corpus_that_cannot_be_used_says_why(text: str, fault: str) -> None:
    """Down to the entry."""
    with pytest.raises(CorpusError, match=fault):
        read_corpus(text)


def _computes() -> str:
    return " ".join(str(sum(range(number))) for number in range(5))


def _imports() -> object:
    import xml.dom.minidom

    return xml.dom.minidom


def _connects() -> None:
    socket.socket().close()


def _done(act: Callable[[], object]) -> object:
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
def test_what_a_call_does_is_seen(act: Callable[[], object], sin: str) -> None:
    """Whatever way it takes; imports and computing are no act."""
    watch = Watch(Sources(_Here()))
    watch.call(_done, act)
    assert {each.sin for each in watch.acts} == ({sin} if sin else set())


class _Here:
    """Code of this file counts as the plugin's."""

    def hook(self) -> None:
        """Nothing."""


def test_a_watch_ends() -> None:
    """What comes after it is nobody's business, and a profiler of the user's goes on."""
    watch = Watch(Sources(_Here()))
    watch.call(_computes)
    time.monotonic()
    Path(os.devnull).read_text()
    assert watch.acts == []


def test_other_threads_are_not_blamed_on_the_call() -> None:
    """A server in another thread may do what it likes."""
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
    """And every name can be had, also after a module of that name was imported."""
    source = Path(testing.__file__).read_text("utf-8")
    assert sorted(re.findall(r"import (\w+) as \1\n", source)) == sorted(testing.__all__)  # type: ignore[attr-defined]
    for name in testing.__all__:  # type: ignore[attr-defined]
        assert callable(getattr(testing, name)), name
    with pytest.raises(AttributeError, match="FakeProvidr"):
        _ = testing.FakeProvidr  # type: ignore[attr-defined]
