"""Whether the core finds the plugin's hooks at all."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Any, Final

from llmopt import hookspecs
from llmopt.markers import PROJECT
from llmopt.providers.discovery import NAME
from llmopt.providers.hooks import HOOK_NAMES
from llmopt.testing.kit.check import Family, expect, explain
from llmopt.testing.kit.subject import Subject

check: Final = Family("discovery")


def _routines(subject: Subject) -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in dir(subject.plugin):
        found = inspect.getattr_static(subject.plugin, name, None)
        function = getattr(subject.plugin, name) if inspect.isroutine(found) else None
        if function is not None:
            yield name, function


def _marked(subject: Subject) -> Iterator[tuple[str, Callable[..., Any]]]:
    return ((name, each) for name, each in _routines(subject) if hasattr(each, f"{PROJECT}_impl"))


def _close(name: str) -> str:
    close = get_close_matches(name, sorted(HOOK_NAMES), n=1)
    return f"; did you mean {close[0]}?" if close else f"; the hooks are {', '.join(sorted(HOOK_NAMES))}"


@check("name")
def _name(subject: Subject) -> None:
    """The provider's name has small letters, digits, "-" and "_" only, so that it can begin "provider/model"."""
    expect(NAME.match(subject.name), f"the provider is called {subject.name!r}.")


@check("any-hook")
def _any_hook(subject: Subject) -> None:
    """At least one function of the module is marked with @llmopt.hookimpl."""
    expect(list(_marked(subject)), f"{subject.sources.module_name} has no marked function.")


@check("markers")
def _markers(subject: Subject) -> None:
    """Every function that is named like a hook is marked with @llmopt.hookimpl; unmarked it is never called."""
    bare = [n for n, each in _routines(subject) if n in HOOK_NAMES and not hasattr(each, f"{PROJECT}_impl")]
    expect(not bare, f"{', '.join(bare)} is named like a hook and lacks @llmopt.hookimpl.")


@check("spelling")
def _spelling(subject: Subject) -> None:
    """Every function that is marked with @llmopt.hookimpl has the name of a hook."""
    for name, _ in _marked(subject):
        expect(name in HOOK_NAMES, f"there is no hook {name!r}{_close(name)}.")


@check("parameters")
def _parameters(subject: Subject) -> None:
    """A hook takes parameters of its specification only, by their names; it may leave some out."""
    for name, function in _marked(subject):
        if name in HOOK_NAMES:
            allowed = list(inspect.signature(getattr(hookspecs, name)).parameters)
            wrong = [
                each for each in inspect.signature(function).parameters if each not in {*allowed, "self"}
            ]
            expect(
                not wrong,
                f"{name} has the parameter {', '.join(wrong)}; the hook is {name}({', '.join(allowed)}).",
            )


@check("plain-functions")
def _plain(subject: Subject) -> None:
    """Hooks are plain functions: not async, no generators, no wrappers around other plugins."""
    for name, function in _marked(subject):
        kind = (
            "a coroutine function"
            if inspect.iscoroutinefunction(function)
            else "a generator"
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
            else ""
        )
        expect(not kind, f"{name} is {kind}.")


@check("annotations")
def _annotations(subject: Subject) -> None:
    """Every hook says what it returns, so that a type checker can hold it to that."""
    for name, function in _marked(subject):
        expect("return" in getattr(function, "__annotations__", {}), f"{name} has no return annotation.")


@check("loads")
def _loads(subject: Subject) -> None:
    """The core takes the plugin's hooks."""
    try:
        _ = subject.loaded
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what a user would meet
        expect(condition=False, found=explain(error))
