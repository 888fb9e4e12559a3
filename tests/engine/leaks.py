"""Collects everything that a run leaves behind, to search it for secrets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import pickle
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs

import llmopt
from llmopt.values.events import Event


class Gathered:
    """Texts by where they were found. Give it as `on_event`, and hand it errors, objects and folders.

    Args:
        keys: must be nowhere.
        texts: must be nowhere but among the local variables of a call's own frames, whose arguments they are.

    Attributes:
        errors: how many exceptions were looked at.
        events: how many events.
        records: how many log records.
    """

    def __init__(self, *, keys: Sequence[str], texts: Sequence[str]) -> None:
        self._keys = tuple(word.encode() for word in keys)
        self._words = (*self._keys, *(word.encode() for word in texts))
        self._found: list[str] = []
        self.errors = self.events = self.records = 0

    def __call__(self, event: Event) -> None:
        self.events += 1
        self.look(f"event {event.name}", repr(event), repr(attrs.asdict(event)))

    def look(self, where: str, *texts: str | bytes, for_keys: bool = False) -> None:
        """Remember a hit, and where it was."""
        for text in texts:
            data = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
            for word in self._keys if for_keys else self._words:
                at = data.find(word)
                if at >= 0:
                    self._found.append(f"{where}: ...{data[max(0, at - 60) : at + 60]!r}...")

    def error(self, where: str, error: BaseException) -> None:
        """Look at an exception and at those that hang on it: shown, with locals, field by field, pickled."""
        self.errors += 1
        whole = traceback.TracebackException.from_exception(error, capture_locals=True)
        for frames in (each.stack for each in _chain(whole)):
            # What stands in the caller's own frames is the caller's.
            frames[:] = [frame for frame in frames if "/llmopt" in frame.filename]
        self.look(f"{where}: traceback", "".join(traceback.format_exception(error)))
        self.look(f"{where}: traceback with locals", "".join(whole.format()), for_keys=True)
        for each in _linked(error):
            self.look(f"{where}: {type(each).__name__}", str(each), repr(each), repr(vars(each)))
            if isinstance(each, llmopt.LLMOptError):
                self.look(f"{where}: pickle", pickle.dumps(each))

    def objects(self) -> None:
        """Look at the repr of every living object whose class is llmopt's or one of its plugins'."""
        ours: dict[type, bool] = {}
        for each in gc.get_objects():
            kind = type(each)
            if kind not in ours:
                ours[kind] = str(kind.__module__).startswith("llmopt")
            if ours[kind]:
                with contextlib.suppress(ReferenceError):
                    self.look(f"repr of {kind.__module__}.{kind.__qualname__}", repr(each))

    def folder(self, path: Path) -> None:
        """Look into every file, and at its name."""
        for file in path.rglob("*"):
            self.look(f"name of {file}", str(file))
            if file.is_file():
                self.look(f"file {file}", file.read_bytes())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear every log record at DEBUG, every warning, and what the event loop complains of."""
        handler = _Handler(self)
        root, loop = logging.getLogger(), asyncio.get_running_loop()
        level = root.level
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)
        loop.set_exception_handler(lambda _, context: self.look("event loop", repr(context)))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
            finally:
                root.removeHandler(handler)
                root.setLevel(level)
                loop.set_exception_handler(None)
        self.look("warning", *(str(each.message) for each in caught))

    def hits(self) -> list[str]:
        """Where a word was found, each place once."""
        return list(dict.fromkeys(self._found))


class _Handler(logging.Handler):
    def __init__(self, gathered: Gathered) -> None:
        super().__init__(logging.DEBUG)
        self._gathered = gathered
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._gathered.records += 1
        self._gathered.look(f"log of {record.name}", self.format(record), repr(record.__dict__))


def _chain(whole: traceback.TracebackException | None) -> Iterator[traceback.TracebackException]:
    while whole is not None:
        yield whole
        whole = whole.__cause__ or whole.__context__


def _linked(error: BaseException) -> Iterable[BaseException]:
    """An exception, its causes, and what a partial failure carries."""
    seen: dict[int, BaseException] = {}
    left = [error]
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen[id(each)] = each
        left += [other for other in (each.__cause__, each.__context__) if other is not None]
        result: Any = getattr(each, "result", None)
        left += list(getattr(result, "errors", {}).values())
    return seen.values()
