"""``llmopt chat``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
import msgspec
from attrs import asdict, fields, frozen

from llmopt.cli.console import (
    CommandError,
    Exit,
    code_of,
    config,
    error_table,
    example,
    no_color,
    say,
    sentence_of,
    tell,
    telling_errors,
)
from llmopt.errors import LLMOptError
from llmopt.values.chat import ChatEvent, ChatReply

if TYPE_CHECKING:
    from llmopt.client.sync_client import Client


@click.command(
    "chat",
    epilog=example(
        "llmopt chat openai/gpt-5-mini",
        "llmopt chat mistral/mistral-small-latest --system 'Answer in French.' --temperature 0.2",
        "git diff | llmopt chat my-vllm/qwen3 --system 'Write a commit message for this.'",
    ),
)
@click.argument("model", metavar="PROVIDER/MODEL")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Most tokens of an answer.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), metavar="X", help="How freely to choose, 0 for hardly."
)
@click.option(
    "--top-p", type=click.FloatRange(0, 1), metavar="X", help="Share of likely tokens to choose from."
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Where an answer ends; may be repeated.")
@click.option("--seed", type=int, metavar="N", help="Ask for the same answer each time.")
@click.option("--reasoning-effort", metavar="WORD", help="How long to think, such as low, medium or high.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time for each answer.",
)
@click.option("--no-stream", is_flag=True, help="Print an answer when all of it is there.")
@click.option(
    "--json", "as_json", is_flag=True, help="Events as JSON on standard output, one a line, for machines."
)
@config
@no_color
@telling_errors
def command(**options: Any) -> Exit:
    """Chat with a model.

    On a terminal this is a conversation: type a question, and the answer is printed as it comes. Ctrl-C stops an
    answer and keeps what came of it; Ctrl-C at the prompt, or Ctrl-D, ends the conversation. Otherwise standard
    input is the one question, and standard output gets the answer alone.

    With --json each line is what one event adds (text, reasoning, tool_calls, finish_reason, usage ...), and the last
    line of an answer is {"reply": ...}, all of it together, or {"error": ...}.
    """
    return chat(ChatOptions(**options))


# What ``llmopt chat`` was asked to do.


@frozen(kw_only=True)
class ChatOptions:
    """The options of the command; `llmopt.cli.chat` says what each of them means."""

    model: str
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    reasoning_effort: str | None = None
    deadline: float | None = None
    no_stream: bool = False
    as_json: bool = False
    config: str | None = None
    no_color: bool = False

    def call(self) -> dict[str, Any]:
        """The options of the call itself. Somebody sits before it, who can stop waiting."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop or None,
            "seed": self.seed,
            "reasoning_effort": self.reasoning_effort,
            "deadline": self.deadline,
            "when_open": "wait",
        }


# An answer on standard output, as it comes: for people, and for machines.

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


# What was said so far. Pure.


class Conversation:
    """The messages of a chat on the command line.

    Args:
        system: what the model is told first, None for nothing.
    """

    def __init__(self, system: str | None) -> None:
        self._messages: Final[list[dict[str, str]]] = []
        if system:
            self._messages.append({"role": "system", "content": system})

    def asking(self, question: str) -> list[dict[str, str]]:
        """The messages with which to ask a question."""
        return [*self._messages, {"role": "user", "content": question}]

    def keep(self, question: str, answer: str) -> None:
        """A question was asked, and this came of the answer.

        Without any answer it was not asked: many a model refuses two questions in a row.
        """
        if answer:
            self._messages.append({"role": "user", "content": question})
            self._messages.append({"role": "assistant", "content": answer})


# One run of ``llmopt chat``: a single question, or a conversation.

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
