"""What a command says on standard error."""

from __future__ import annotations

import os
import traceback
from typing import Final

import click

from llmopt.cli.exits import sentence_of
from llmopt.cli.text import plain

_TRACEBACK: Final = "LLMOPT_TRACEBACK"


def say(message: str) -> None:
    """A line for people."""
    click.echo(plain(message, lines=True), err=True)


def tell(error: BaseException, *, more: str = "") -> None:
    """The sentence of an error; where it comes from as well, if LLMOPT_TRACEBACK is set.

    Args:
        error: what went wrong.
        more: a further sentence.
    """
    if os.environ.get(_TRACEBACK):
        traceback.print_exception(error)
    sentence = sentence_of(error)
    if more and not sentence.endswith((".", "!", "?")):
        sentence += "."
    say(f"llmopt: {sentence}{f' {more}' if more else ''}")


def named(name: str, sentence: str) -> str:
    """A sentence about something, with its name in front unless it is there already."""
    return sentence if name in sentence else f"{name}: {sentence}"
