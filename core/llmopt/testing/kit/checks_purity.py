"""Hooks compute: they do nothing else, depend on nothing else, and leave everything as it was."""

from __future__ import annotations

from typing import Final

from llmopt.testing.kit.acts import Sin
from llmopt.testing.kit.check import Family, NotApplicable, expect
from llmopt.testing.kit.exercise import Exercise, exercises
from llmopt.testing.kit.subject import Subject

check: Final = Family("purity")

_OPENERS: Final = frozenset({"open_transport", "credential_provider"})
"""Hooks that make something which works later: they may look around, and no more."""
_ALLOWED: Final = frozenset({"clock", "environment", "files", "randomness"})


def _asked(subject: Subject) -> tuple[Exercise, ...]:
    found = exercises(subject)
    if not found:
        raise NotApplicable("the plugin has no hooks that could be asked")
    return found


def _never(subject: Subject, sin: Sin, doing: str) -> None:
    for each in _asked(subject):
        if each.hook in _OPENERS and sin in _ALLOWED:
            continue
        for act in each.acts:
            expect(act.sin != sin, f"{each.title} {doing}: {act.what} at {act.place}.")


@check("no-network")
def _network(subject: Subject) -> None:
    """A hook never touches the network; the core sends what build_request returns."""
    _never(subject, "network", "does network I/O")


@check("no-files")
def _files(subject: Subject) -> None:
    """A hook never touches files; what a plugin needs is in its code, or read when it is imported lazily."""
    _never(subject, "files", "does file I/O")


@check("no-processes")
def _processes(subject: Subject) -> None:
    """A hook never starts or signals a process."""
    _never(subject, "processes", "starts or signals a process")


@check("no-threads")
def _threads(subject: Subject) -> None:
    """A hook never starts a thread."""
    _never(subject, "threads", "starts a thread")


@check("no-sleep")
def _sleep(subject: Subject) -> None:
    """A hook never sleeps: it runs on the event loop, so that all requests would wait with it."""
    _never(subject, "sleep", "sleeps")


@check("no-clock")
def _clock(subject: Subject) -> None:
    """A hook never asks the time: response.received says when an answer came."""
    _never(subject, "clock", "depends on the time")


@check("no-randomness")
def _randomness(subject: Subject) -> None:
    """A hook never draws random numbers."""
    _never(subject, "randomness", "depends on chance")


@check("no-environment")
def _environment(subject: Subject) -> None:
    """A hook never reads environment variables: the profile names them, the core reads them."""
    _never(subject, "environment", "reads the environment")


@check("no-output")
def _output(subject: Subject) -> None:
    """A hook never prints."""
    _never(subject, "output", "prints")


@check("repeats")
def _repeats(subject: Subject) -> None:
    """The same question gets the same answer."""
    for each in _asked(subject):
        expect(each.repeats, f"{each.title} gave two different answers to the same question.")


@check("arguments")
def _arguments(subject: Subject) -> None:
    """A hook leaves its arguments as they are; it copies what it wants to change."""
    for each in _asked(subject):
        expect(not each.changed, f"{each.title} changed its argument {', '.join(each.changed)}.")


@check("nothing-shared")
def _shared(subject: Subject) -> None:
    """What a hook returns is its caller's alone: changing it changes no argument and no later result."""
    for each in _asked(subject):
        expect(
            not each.shares,
            f"{each.title} returns a dictionary that is not new: changing it changes {each.shares}.",
        )
