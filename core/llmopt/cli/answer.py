"""An answer on standard output, as it comes: for people, and for machines."""

from __future__ import annotations

import re
import sys
from typing import Any, Final, Protocol

import click
import msgspec
from attrs import asdict, fields

from llmopt.cli.exits import sentence_of
from llmopt.cli.tally import error_table
from llmopt.cli.tell import say, tell
from llmopt.values.chat import ChatEvent, ChatReply

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CUT: Final = {
    "length": "the answer was cut off at the most tokens allowed; raise --max-tokens.",
    "content_filter": "the provider's filter cut the answer off.",
}


class Answer(Protocol):
    """Where an answer goes."""

    def add(self, event: ChatEvent) -> None:
        """What came next."""

    def end(self, reply: ChatReply) -> None:
        """All of it is there."""

    def stop(self) -> None:
        """Somebody has had enough of it."""

    def fail(self, error: Exception) -> None:
        """It broke off, or there was none."""


class Text:
    """The words alone; on a terminal also the thoughts before them, dimmed.

    Args:
        color: whether the terminal may be given colours; ignored elsewhere.
    """

    def __init__(self, *, color: bool) -> None:
        self._terminal: Final = sys.stdout.isatty()
        self._color: Final = color
        self._thinking = False
        self._last = "\n"

    def add(self, event: ChatEvent) -> None:
        """As `Answer.add`."""
        if event.reasoning and self._terminal:
            self._thinking = True
            self._write(event.reasoning, dim=True)
        if said := event.text or event.refusal:
            if self._thinking:
                self._thinking = False
                self._write("\n\n" if self._last != "\n" else "\n")
            self._write(said)

    def end(self, reply: ChatReply) -> None:
        """As `Answer.end`."""
        self._close()
        if note := _CUT.get(reply.finish_reason or ""):
            say(f"llmopt: {note}")

    def stop(self) -> None:
        """As `Answer.stop`."""
        self._close()

    def fail(self, error: Exception) -> None:
        """As `Answer.fail`."""
        self._close()
        tell(error)

    def _write(self, text: str, *, dim: bool = False) -> None:
        if self._terminal:
            # What a model writes moves no cursor and changes no colour; other text is left as it is.
            text = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))
        self._last = text[-1:] or self._last
        sys.stdout.write(click.style(text, dim=True) if dim and self._color else text)
        sys.stdout.flush()

    def _close(self) -> None:
        self._thinking = False
        if self._last != "\n":
            self._write("\n")


class Lines:
    """A JSON object a line: each event, and at the end all of it or the error."""

    def add(self, event: ChatEvent) -> None:
        """As `Answer.add`."""
        if told := {name: value for name, value in _told(event).items() if value}:
            self._write(told)

    def end(self, reply: ChatReply) -> None:
        """As `Answer.end`."""
        self._write({"reply": _told(reply)})

    def stop(self) -> None:
        """As `Answer.stop`."""

    def fail(self, error: Exception) -> None:
        """As `Answer.fail`."""
        self._write({"error": error_table(error)})
        say(f"llmopt: {sentence_of(error)}")

    def _write(self, value: dict[str, Any]) -> None:
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
        sys.stdout.flush()


def _told(value: ChatEvent | ChatReply) -> dict[str, Any]:
    """What is told of it: everything but the provider's own JSON."""
    found = {
        name: getattr(value, name) for name in (each.name for each in fields(type(value))) if name != "raw"
    }
    found["tool_calls"] = [asdict(call) for call in value.tool_calls]
    found["usage"] = None if value.usage is None else asdict(value.usage)
    return found
