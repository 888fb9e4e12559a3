"""Watching a call: what it does besides computing.

Two observers together miss little. The interpreter's profiling hook sees each call of a function
written in C, by identity, so that ``from time import time`` hides nothing; its audit hook sees files,
sockets and processes however they are reached.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from threading import get_ident
from types import CodeType, FrameType
from typing import Any, Final, TypeVar

from attrs import frozen

from llmopt.testing.kit.acts import Sin, name_of_call, sin_of_call, sin_of_event
from llmopt.testing.kit.sources import CORE, Sources, is_standard

_T = TypeVar("_T")


@frozen(kw_only=True)
class Act:
    """One thing done besides computing: its kind, the function, and the place in the plugin."""

    sin: Sin
    what: str
    place: str


def _environment_codes() -> frozenset[CodeType]:
    kind = type(os.environ)
    names = ("__getitem__", "__iter__", "__len__", "__setitem__", "__delitem__", "copy", "setdefault")
    return frozenset(
        code for name in names if (code := getattr(getattr(kind, name, None), "__code__", None)) is not None
    )


_ENVIRONMENT: Final = _environment_codes()
_watching: list[Watch] = []
_installed: list[Callable[..., None]] = []


class Watch:
    """Notes what calls do.

    Args:
        sources: where the plugin's code is.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources: Final = sources
        self._noting = False
        self.acts: Final[list[Act]] = []
        self.thread = 0
        # Looked up now: to find them is file I/O itself.
        _ = sources.files, sources.folder

    def call(self, function: Callable[..., _T], *args: Any, **values: Any) -> _T:
        """Call a function under observation."""
        self.thread = get_ident()
        before = sys.getprofile()
        collecting = gc.isenabled()
        # What a collection tidies up meanwhile is nobody's act here.
        gc.disable()
        _watching.append(self)
        _audit_once()
        sys.setprofile(self._profile)
        try:
            return function(*args, **values)
        finally:
            sys.setprofile(before)
            _watching.remove(self)
            if collecting:
                gc.enable()

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "c_call":
            sin = sin_of_call(arg)
            if sin is not None:
                self.note(sin, name_of_call(arg), frame)
        elif event == "call" and frame.f_code in _ENVIRONMENT:
            self.note("environment", "os.environ", frame.f_back)

    def note(self, sin: Sin, what: str, frame: FrameType | None) -> None:
        """Write down what the code of a frame did."""
        if self._noting:
            return
        self._noting = True
        try:
            self._add(sin, what, self._place(frame))
        finally:
            self._noting = False

    def _add(self, sin: Sin, what: str, place: str | None) -> None:
        if place is not None and not any(act.sin == sin and act.place == place for act in self.acts):
            self.acts.append(Act(sin=sin, what=what, place=place))

    def _place(self, frame: FrameType | None) -> str | None:
        """Where the plugin did it; None when it was the core, an import, or nothing of the call's."""
        if frame is None or _trusted(frame.f_code.co_filename):
            return None
        innermost = frame
        while frame.f_code is not Watch.call.__code__:
            name = frame.f_code.co_filename
            if self._sources.owns(name):
                return f"{self._sources.shown(name)}:{frame.f_lineno}"
            if name.startswith("<frozen importlib"):
                return None
            if frame.f_back is None:
                return None
            frame = frame.f_back
        name = innermost.f_code.co_filename
        return None if is_standard(name) else f"{name}:{innermost.f_lineno}"


def _trusted(name: str) -> bool:
    # The core's own values may look at the clock when they are made; what attrs writes for them too.
    return name.startswith((f"{CORE}/", "<attrs generated")) and f"{CORE}/testing/" not in name


def _audit_once() -> None:
    # An audit hook cannot be taken out again, so there is one for the process, idle outside of a watch.
    if not _installed:
        _installed.append(_audit)
        sys.addaudithook(_audit)


def _audit(event: str, _: tuple[object, ...]) -> None:
    # What other threads do meanwhile is not the call's.
    if not _watching or _watching[-1].thread != get_ident():
        return
    sin = sin_of_event(event)
    if sin is not None:
        _watching[-1].note(sin, event, sys._getframe(1))  # noqa: SLF001 - the documented way to a frame
