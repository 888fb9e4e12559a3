"""One run of ``llmopt chat``: a single question, or a conversation."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from llmopt.cli.answer import Answer, Lines, Text
from llmopt.cli.chat_options import ChatOptions
from llmopt.cli.conversation import Conversation
from llmopt.cli.exits import CommandError, Exit, code_of
from llmopt.errors import LLMOptError
from llmopt.values.chat import ChatEvent

if TYPE_CHECKING:
    from llmopt.client.sync_client import Client

_PROMPT: Final = "> "


def chat(options: ChatOptions) -> Exit:
    """Do it.

    Raises:
        CommandError: there is no question.
        KeyboardInterrupt: somebody has had enough of the only answer.
    """
    from llmopt.client.sync_client import Client

    with Client(options.config) as client:
        talk = Talk(client, options)
        return talk.conversation() if sys.stdin.isatty() else talk.question(_piped())


def _piped() -> str:
    """Standard input to its end, as UTF-8."""
    data = sys.stdin.buffer.read()
    try:
        question = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CommandError("standard input is not UTF-8 text.") from None
    if not question.strip():
        raise CommandError("standard input holds no question; write one, or run this on a terminal.")
    return question


class Talk:
    """A conversation with one model.

    Args:
        client: asks.
        options: as given.
    """

    def __init__(self, client: Client, options: ChatOptions) -> None:
        self._client: Final = client
        self._options: Final = options
        self._color: Final = not (options.no_color or os.environ.get("NO_COLOR"))
        self._said: Final = Conversation(options.system)

    def question(self, question: str) -> Exit:
        """Ask once."""
        try:
            return self._ask(question)
        except KeyboardInterrupt:
            return Exit.INTERRUPTED

    def conversation(self) -> Exit:
        """Ask what is typed, until nothing more is."""
        with suppress(ImportError):
            # Editing and history at the prompt, where Python has it.
            import_module("readline")
        click.echo(f"{self._options.model}: Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        while True:
            try:
                question = _typed()
            except EOFError:
                click.echo(err=True)
                return Exit.OK
            except KeyboardInterrupt:
                click.echo(err=True)
                return Exit.INTERRUPTED
            if not question.strip():
                continue
            # Stopped: what came is kept, and it is the next question's turn.
            with suppress(KeyboardInterrupt):
                code = self._ask(question)
                if code == Exit.SETUP:
                    # The next question would meet the same.
                    return code

    def _ask(self, question: str) -> Exit:
        answer: Answer = Lines() if self._options.as_json else Text(color=self._color)
        try:
            if self._options.no_stream:
                self._whole(question, answer)
            else:
                self._streamed(question, answer)
        except LLMOptError as error:
            answer.fail(error)
            return code_of(error)
        except KeyboardInterrupt:
            answer.stop()
            raise
        return Exit.OK

    def _whole(self, question: str, answer: Answer) -> None:
        with _waiting(self._options):
            reply = self._client.chat(
                self._options.model, self._said.asking(question), **self._options.call()
            )
        if not self._options.as_json:
            answer.add(ChatEvent(text=reply.text, reasoning=reply.reasoning, refusal=reply.refusal))
        self._said.keep(question, reply.text or reply.refusal)
        answer.end(reply)

    def _streamed(self, question: str, answer: Answer) -> None:
        asked = self._said.asking(question)
        stream = self._client.stream(self._options.model, asked, **self._options.call())
        try:
            with _waiting(self._options):
                first = next((each for each in stream if each.adds or self._options.as_json), None)
            if first is not None:
                answer.add(first)
            for event in stream:
                answer.add(event)
        finally:
            stream.close()
            # Also of an answer that was stopped, or broke off: the conversation goes on from there.
            self._said.keep(question, stream.text or stream.refusal)
        answer.end(stream.reply)


def _typed() -> str:
    """A line from the terminal. The prompt goes to standard error where standard output is somewhere else."""
    if sys.stdout.isatty():
        return input(_PROMPT)
    click.echo(_PROMPT, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextmanager
def _waiting(options: ChatOptions) -> Iterator[None]:
    """A sign on the terminal that something is going on, until the first word."""
    sign: Any = nullcontext()
    if sys.stderr.isatty() and sys.stdout.isatty() and not options.as_json:
        from rich.console import Console

        console = Console(stderr=True, no_color=options.no_color or None)
        sign = console.status("", spinner="dots")
    with sign:
        yield
