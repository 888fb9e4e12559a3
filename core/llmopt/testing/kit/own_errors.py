"""The errors that a plugin's own corpus knows, a check each."""

from __future__ import annotations

import re
from typing import Final

from llmopt.testing.corpus import FILE, CorpusFault, KnownError, corpus_of
from llmopt.testing.kit.check import Check, CheckFailed, expect
from llmopt.testing.kit.subject import Subject

_SENTENCE: Final = f"The verdict is the one that the plugin's {FILE} states."


def own_checks(subject: Subject) -> tuple[Check, ...]:
    """A check for each error of the plugin's corpus; none when it has no corpus."""
    folder = subject.sources.folder
    if folder is None:
        return ()
    try:
        known = corpus_of(folder)
    except CorpusFault as fault:
        return (_unreadable(str(fault)),)
    return tuple(_check(error) for error in known)


def _check(error: KnownError) -> Check:
    def ask(subject: Subject) -> None:
        faults = error.faults(subject.hooks.classify_error(error.failure, subject.settings()))
        expect(not faults, "\n".join(faults))

    return Check(id=f"own-errors.{_slug(error.name)}", expects=_SENTENCE, ask=ask)


def _unreadable(fault: str) -> Check:
    def ask(_: Subject) -> None:
        raise CheckFailed(f"{FILE}: {fault}")

    return Check(id="own-errors.readable", expects=f"{FILE} has the form of docs/error-corpus.md.", ask=ask)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
