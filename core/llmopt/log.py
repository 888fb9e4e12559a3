"""Lines in the log: what is written of each event, under which logger and at which level.

A program that uses `logging` gets records with a readable message and the values in ``extra``, prefixed with ``llmopt_``. One that
has configured structlog gets structlog events with the same values. Nothing is set up here: no handler, no level, no
configuration of structlog.

WARNING is for what a person at a bare script must see, INFO for what happens now and then (a retry, a long wait, a learned
limit), DEBUG tells each call from its start to its end. No line at INFO or above is written for every request.

The only I/O are log records, which the program's handlers write on the caller's thread; an exception that one raises is
ignored. At the first record a thread imports structlog, which takes 20 ms to 0.3 s; until it is there,
records are written through `logging` itself in the same form. No clock, and nothing awaits. Loggers and the imported
module are shared by the whole process.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType, ModuleType
from typing import Any, Final

from attrs import asdict

from llmopt._platform import register_at_fork
from llmopt.values import events

DEBUG: Final = logging.DEBUG
INFO: Final = logging.INFO
WARNING: Final = logging.WARNING
_LONG_WAIT_S: Final = 1.0
_TEXT: Final = "_text"


class _Structlog:
    """The module structlog, once it is imported: by the program, or by a thread of this class."""

    def __init__(self) -> None:
        self._importer: Final = threading.Thread(target=self._import, name="llmopt-log", daemon=True)

    def loaded(self) -> ModuleType | None:
        """The module; None before its import has ended."""
        module = sys.modules.get("structlog")
        # Another thread may be importing it now: its last lines define __all__.
        return module if module is not None and "__all__" in vars(module) else None

    def import_soon(self) -> None:
        """Import it in a thread, because that takes long; once."""
        # A thread starts once; none may be left to start.
        with suppress(RuntimeError):
            self._importer.start()

    def finish_import(self) -> None:
        """Wait for the import: in a child that is forked meanwhile it would never end."""
        if self._importer.ident is not None:
            self._importer.join(timeout=5)

    def _import(self) -> None:
        # It may fail, such as without a free descriptor: `logging` writes the same lines.
        with suppress(Exception):
            import structlog  # noqa: F401 - later found in sys.modules


_structlog: Final = _Structlog()
register_at_fork(lambda: None, before=_structlog.finish_import)


class Log:
    """The logger of one topic.

    Args:
        topic: last part of the logger's name.
    """

    def __init__(self, topic: str) -> None:
        self._logger: Final = logging.getLogger(f"llmopt.{topic}")

    def enabled(self, level: int) -> bool:
        """Whether a line of this level is written."""
        structlog = _structlog.loaded()
        if structlog is None or not structlog.is_configured():
            return self._logger.isEnabledFor(level)
        # A level that is set for a logger of llmopt silences it in structlog too. The root logger's is for logging alone.
        own = self._logger.level or logging.getLogger("llmopt").level
        return level >= own and _admits(structlog, self._logger, level)

    def write(
        self, level: int, event: str, text: str, values: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        """Write a line, unless the level is off.

        Args:
            level: `DEBUG`, `INFO` or `WARNING`.
            event: name of what has happened, for structlog and as ``llmopt_event``.
            text: a sentence that says so to a reader.
            values: what the sentence is about; with a true ``exc_info`` also the exception that is being handled.
        """
        # A faulty handler or processor must not fail a call.
        with suppress(Exception):
            if not self.enabled(level):
                return
            structlog = _structlog.loaded()
            if structlog is None:
                _structlog.import_soon()
                record = _readable(None, "", {"event": event, _TEXT: text, **values})
                message, exc_info = record.pop("event"), record.pop("exc_info", False)
                self._logger.log(level, message, exc_info=exc_info, extra=record)
                return
            logger = structlog.get_logger(self._logger.name)
            if not structlog.is_configured():
                logger, values = _over_logging(structlog, self._logger), {_TEXT: text, **values}
            getattr(logger, logging.getLevelName(level).lower())(event, **values)


def _over_logging(structlog: ModuleType, logger: logging.Logger) -> Any:
    """A logger of structlog for a program that has not configured it: it writes through `logging`."""
    processors, kind = [_readable, structlog.stdlib.render_to_log_kwargs], structlog.stdlib.BoundLogger
    return structlog.wrap_logger(logger, processors=processors, wrapper_class=kind, context_class=dict)


def _admits(structlog: ModuleType, logger: logging.Logger, level: int) -> bool:
    """Whether the program's configuration of structlog lets a level through."""
    wrapper = structlog.get_config()["wrapper_class"]
    if isinstance(wrapper, type) and issubclass(wrapper, structlog.stdlib.BoundLogger):
        return logger.isEnabledFor(level)
    # Of the bound loggers that filter by level, since structlog 25.1.
    admits = getattr(wrapper, "is_enabled_for", None)
    return admits is None or bool(admits(None, level))


def _readable(_: object, __: str, values: dict[str, Any]) -> dict[str, Any]:
    """A processor of structlog: the sentence becomes the message, and all values get their prefix."""
    record = {f"llmopt_{name}": value for name, value in values.items() if name not in (_TEXT, "exc_info")}
    exc_info = {"exc_info": True} if values.get("exc_info") else {}
    return {"event": values[_TEXT], **record, **exc_info}


RETRY: Final = Log("retry")
CIRCUIT: Final = Log("circuit")
LIMITS: Final = Log("limits")
CACHE: Final = Log("cache")
REQUEST: Final = Log("request")


# What is written of each kind of event: the logger, the level or the highest one that `_level` gives, and the sentence. Its
# braces hold attributes of the event, and what `_words` adds to them.
_LINES: Final[Mapping[object, tuple[Log, int, str]]] = {
    events.CallStart: (REQUEST, DEBUG, "call for {asked} of {whom}{count}"),
    events.CallEnd: (REQUEST, DEBUG, "call ended: {outcome}, {seconds:.3f} s, {results}"),
    events.RequestStart: (REQUEST, DEBUG, "request to {whom}{count}{about}"),
    events.RequestAttempt: (REQUEST, DEBUG, "attempt {attempt} at {endpoint}: {outcome}, {answer}"),
    events.RequestEnd: (REQUEST, DEBUG, "request ended: {outcome}, {seconds:.3f} s, attempts: {attempts}"),
    events.StreamFirstChunk: (REQUEST, DEBUG, "the stream began after {seconds:.3f} s"),
    events.BatchSplit: (REQUEST, DEBUG, "a batch of {items} texts is split after {cause}"),
    events.CompressionRefused: (REQUEST, INFO, "{endpoint} refuses compressed requests: bodies go plain"),
    events.KeysRefused: (REQUEST, INFO, "{endpoint} refuses {names}: requests go without"),
    events.CredentialRefused: (REQUEST, WARNING, "the key of {at} was refused and is not used now{why}"),
    events.RequestRetry: (RETRY, INFO, "retry {number} of {at} in {delay:.2f} s after {cause}"),
    events.RequestWaiting: (LIMITS, DEBUG, "waits for {wait} of {at}"),
    events.RequestWait: (LIMITS, INFO, "waited {seconds:.2f} s for {wait} of {at}: {outcome}{in_force}"),
    events.LimitLearned: (LIMITS, INFO, "limit of {at}: {limit} {value:g}, from {source}"),
    events.BreakerChanged: (
        CIRCUIT,
        WARNING,
        "circuit {circuit}: {old} -> {new} ({break_duration_s:.1f} s){why}",
    ),
    events.EndpointSetAside: (CIRCUIT, WARNING, "{at} ({path}) does not serve {operation}{why}"),
    events.CacheHit: (CACHE, DEBUG, "{cache} of {whom} in the cache: {items}"),
    events.CacheMiss: (CACHE, DEBUG, "{cache} of {whom} not in the cache: {items}"),
    events.CacheStale: (CACHE, DEBUG, "an old list of {whom} is returned ({age:.0f} s, {cause})"),
    events.CacheRefresh: (CACHE, DEBUG, "list of {whom} refreshed: {outcome} after {seconds:.2f} s"),
}
_ITEMS: Final = {"embeddings": "texts", "chat": "messages", "catalog": "lists"}
_WAITS: Final = {
    "limiter": "the rate limiter",
    "breaker": "an open circuit",
    "concurrency": "a place among the requests in flight",
    "pool": "a connection",
}


def wants(kind: object) -> bool:
    """Whether an event of this class may become a line."""
    line = _LINES.get(kind)
    return line is not None and line[0].enabled(line[1])


def write(event: events.Event) -> None:
    """Write the line of an event, if its kind has one and its level is on."""
    if (line := _LINES.get(type(event))) is None:
        return
    log, highest, sentence = line
    values = asdict(event)
    text = sentence.format_map({**values, **_words(event, values)})
    # The beginning of the call's id, and the number of its request.
    key = event.request_key or event.call_id
    kept = {name: value for name, value in values.items() if value not in ("", None)}
    log.write(_level(event, highest), event.name, f"[{key[:8]}{key[16:]}] {text}" if key else text, kept)


def _level(event: events.Event, highest: int) -> int:
    if event.name == "request.wait" and event.seconds <= _LONG_WAIT_S:
        return DEBUG
    return INFO if event.name == "breaker.change" and event.new != "open" else highest


def _words(event: events.Event, values: Mapping[str, Any]) -> dict[str, object]:
    """What the sentences say beside the attributes of their events."""
    told, whom = values.get, f"{event.provider}/{event.model}".strip("/")
    status, usage, limits = told("status"), told("usage"), told("limits", {})
    # None inside this process.
    over = f" over {'an open' if told('reused') else 'a new'} connection" if "//" in event.endpoint else ""
    counts = f"requests: {told('requests')}, results: {told('items')}, failed: {told('failures')}"
    tokens = f", tokens: {usage['prompt_tokens']} in, {usage['completion_tokens']} out" if usage else ""
    of = _ITEMS.get(told("operation", ""))
    answer = "no response" if status is None else f"HTTP {status}"
    return {
        "whom": whom,
        "at": f"{whom} at {event.endpoint}",
        "asked": "the models" if told("operation") == "catalog" else told("operation"),
        "about": f", tokens: about {told('tokens')}" if told("tokens") else "",
        "count": f", {of}: {told('items')}" if of and told("items") else "",
        "wait": _WAITS.get(told("cause", "")),
        "why": f", after {told('cause')}: {told('message')}" if told("cause") else "",
        "results": counts + tokens,
        "answer": f"{answer} after {told('seconds', 0.0) * 1000:.0f} ms{over}",
        "in_force": "".join(f", {name} {value:g}" for name, value in limits.items()),
        "names": ", ".join(told("keys", ())),
        "number": event.attempt - 1,
        "path": f"providers.{event.provider}.endpoints[{told('index')}]",
    }
