"""``llmopt chat``: one question from standard input, or a conversation on a terminal.

It reads the configuration and sends requests through `llmopt.Client`, and prints replies to standard output and everything
else to standard error, but the prompt of a terminal, and with ``--json`` errors, which go to standard output too. The conversation is kept in memory only.

It reads standard input or the terminal, and NO_COLOR in the environment. Importing readline, if Python has it,
changes the input of the whole process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol

import click
from attrs import asdict, fields, filters, frozen

from llmopt.cli.console import (
    CommandError,
    Exit,
    config_option,
    error_as_json,
    error_message,
    example,
    exit_code_for,
    no_color_option,
    print_error,
    print_json_line,
    print_message,
    printable,
    printable_text,
    report_errors_as_json,
)
from llmopt.errors import LLMOptError
from llmopt.values.chat import ChatEvent, ChatReply

if TYPE_CHECKING:
    from llmopt.client.sync_client import Client

_PROMPT: Final = "> "
_INCOMPLETE: Final = {
    "length": "the answer reached the token limit and is incomplete; raise --max-tokens.",
    "content_filter": "the provider's content filter stopped the answer.",
}


@click.command(
    "chat",
    epilog=example(
        "llmopt chat openai/gpt-5-mini",
        "llmopt chat mistral/mistral-small-latest --system 'Answer in French.' --temperature 0.2",
        "git diff | llmopt chat my-vllm/qwen3 --system 'Write a commit message for this.'",
    ),
)
@click.argument("model", metavar="PROVIDER/MODEL")
@click.option("--system", metavar="TEXT", help="System message, sent before the conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Maximum tokens of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Sampling temperature; 0 is the most deterministic.",
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    metavar="X",
    help="Sample from the most likely tokens only, up to this share.",
)
@click.option("--stop", multiple=True, metavar="TEXT", help="Text that ends an answer; can be repeated.")
@click.option("--seed", type=int, metavar="N", help="Seed for repeatable answers, where the provider has it.")
@click.option("--reasoning-effort", metavar="WORD", help="How long to reason, such as low, medium or high.")
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time limit for each answer.",
)
@click.option("--no-stream", is_flag=True, help="Print an answer when it is complete.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line on standard output.")
@config_option
@no_color_option
@report_errors_as_json
def command(**options: Any) -> Exit:
    """Chat with a model.

    On a terminal this is a conversation: type a question, and the answer is printed as it arrives. Ctrl-C stops an
    answer and keeps what has arrived; Ctrl-C at the prompt, or Ctrl-D, ends the conversation. Otherwise standard
    input is the only question, and the answer alone goes to standard output.

    With --json each line has what one event adds (text, reasoning, tool_calls, finish_reason, usage ...), and the last
    line of an answer is {"reply": ...} with the whole answer, or {"error": ...}.
    """
    return run_chat(ChatArguments(**options))


@frozen(kw_only=True)
class ChatArguments:
    """The arguments of the command; the options of `command` say what each of them means."""

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

    def call_options(self) -> dict[str, Any]:
        """The options of the client's call."""
        return {
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": self.stop or None,
            "seed": self.seed,
            "reasoning_effort": self.reasoning_effort,
            "deadline": self.deadline,
            # The user sees that it waits, and can press Ctrl-C.
            "when_open": "wait",
        }


def run_chat(arguments: ChatArguments) -> Exit:
    """Run the command.

    Raises:
        CommandError: standard input holds no question.
        KeyboardInterrupt: the only answer was interrupted.
    """
    from llmopt.client.sync_client import Client

    with Client(arguments.config) as client:
        session = ChatSession(client, arguments)
        return session.converse() if sys.stdin.isatty() else session.ask_once(_read_question())


class ChatSession:
    """A conversation with one model.

    Args:
        client: sends the messages.
        arguments: of the command.
    """

    def __init__(self, client: Client, arguments: ChatArguments) -> None:
        self._client: Final = client
        self._arguments: Final = arguments
        self._color: Final = not (arguments.no_color or os.environ.get("NO_COLOR"))
        self._messages: Final[list[dict[str, str]]] = []
        if arguments.system:
            self._messages.append({"role": "system", "content": arguments.system})

    def ask_once(self, question: str) -> Exit:
        """Ask one question."""
        try:
            return self._ask(question)
        except KeyboardInterrupt:
            return Exit.INTERRUPTED

    def converse(self) -> Exit:
        """Ask what is typed until the user ends the conversation."""
        with suppress(ImportError):
            # Importing readline gives input() editing and history, where Python has it.
            import_module("readline")
        click.echo(f"{printable(self._arguments.model)}: Ctrl-C stops an answer, Ctrl-D ends.", err=True)
        while True:
            try:
                question = _prompt()
            except EOFError:
                click.echo(err=True)
                return Exit.OK
            except KeyboardInterrupt:
                click.echo(err=True)
                return Exit.INTERRUPTED
            if not question.strip():
                continue
            # Ctrl-C ends this answer only.
            with suppress(KeyboardInterrupt):
                code = self._ask(question)
                if code == Exit.SETUP:
                    # The configuration is wrong: the next question would fail in the same way.
                    return code

    def _ask(self, question: str) -> Exit:
        renderer: Renderer = JsonRenderer() if self._arguments.as_json else TextRenderer(color=self._color)
        try:
            if self._arguments.no_stream:
                self._ask_whole(question, renderer)
            else:
                self._ask_streamed(question, renderer)
        except LLMOptError as error:
            renderer.fail(error)
            return exit_code_for(error)
        except KeyboardInterrupt:
            renderer.stop()
            raise
        return Exit.OK

    def _ask_whole(self, question: str, renderer: Renderer) -> None:
        messages, options = self._with_question(question), self._arguments.call_options()
        with _spinner(self._arguments):
            reply = self._client.chat(self._arguments.model, messages, **options)
        if not self._arguments.as_json:
            renderer.add(ChatEvent(text=reply.text, reasoning=reply.reasoning, refusal=reply.refusal))
        self._remember(question, reply.text or reply.refusal)
        renderer.end(reply)

    def _ask_streamed(self, question: str, renderer: Renderer) -> None:
        messages, options = self._with_question(question), self._arguments.call_options()
        stream = self._client.stream(self._arguments.model, messages, **options)
        try:
            with _spinner(self._arguments):
                first = next((each for each in stream if each.adds or self._arguments.as_json), None)
            if first is not None:
                renderer.add(first)
            for event in stream:
                renderer.add(event)
        finally:
            stream.close()
            # Also after an interrupt or an error: the conversation continues with what has arrived.
            self._remember(question, stream.text or stream.refusal)
        renderer.end(stream.reply)

    def _with_question(self, question: str) -> list[dict[str, str]]:
        return [*self._messages, {"role": "user", "content": question}]

    def _remember(self, question: str, answer: str) -> None:
        # A question without an answer is dropped: many models refuse two user messages in a row.
        if answer:
            self._messages.append({"role": "user", "content": question})
            self._messages.append({"role": "assistant", "content": answer})


def _read_question() -> str:
    """Standard input to its end, as UTF-8."""
    data = sys.stdin.buffer.read()
    try:
        # Editors on Windows put a byte order mark at the beginning, which the model would get as a character.
        question = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CommandError("standard input is not UTF-8 text.") from None
    if not question.strip():
        raise CommandError("standard input is empty; pipe a question in, or run this on a terminal.")
    return question


def _prompt() -> str:
    """A line from the terminal. The prompt goes to standard error where standard output is redirected."""
    # `input` writes its prompt to standard output, where a redirected answer must stand alone.
    if sys.stdout.isatty():
        return input(_PROMPT)
    click.echo(_PROMPT, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line


@contextmanager
def _spinner(arguments: ChatArguments) -> Iterator[None]:
    """A spinner on the terminal until the first word."""
    spinner: Any = nullcontext()
    if sys.stderr.isatty() and sys.stdout.isatty() and not arguments.as_json:
        from rich.console import Console

        console = Console(stderr=True, no_color=arguments.no_color or None)
        spinner = console.status("", spinner="dots")
    with spinner:
        yield


class Renderer(Protocol):
    """Prints an answer as it arrives."""

    def add(self, event: ChatEvent) -> None:
        """Print the next event."""

    def end(self, reply: ChatReply) -> None:
        """Finish a complete answer."""

    def stop(self) -> None:
        """Finish an answer that the user interrupted."""

    def fail(self, error: Exception) -> None:
        """Finish with an error."""


class TextRenderer:
    """Prints the text of an answer; on a terminal also the reasoning before it, dimmed.

    Args:
        color: whether the terminal may be given colours; ignored elsewhere.
    """

    def __init__(self, *, color: bool) -> None:
        self._terminal: Final = sys.stdout.isatty()
        self._color: Final = color
        self._reasoning = False
        self._last = "\n"

    def add(self, event: ChatEvent) -> None:
        """See `Renderer.add`."""
        if event.reasoning and self._terminal:
            self._reasoning = True
            self._write(event.reasoning, dim=True)
        if text := event.text or event.refusal:
            if self._reasoning:
                self._reasoning = False
                self._write("\n\n" if self._last != "\n" else "\n")
            self._write(text)

    def end(self, reply: ChatReply) -> None:
        """See `Renderer.end`."""
        self._end_line()
        if note := _INCOMPLETE.get(reply.finish_reason or ""):
            print_message(f"llmopt: {note}")

    def stop(self) -> None:
        """See `Renderer.stop`."""
        self._end_line()

    def fail(self, error: Exception) -> None:
        """See `Renderer.fail`."""
        self._end_line()
        print_error(error)

    def _write(self, text: str, *, dim: bool = False) -> None:
        # A model must not move the cursor or change colours, also not behind a pipe into a pager.
        text = printable_text(text)
        self._last = text[-1:] or self._last
        sys.stdout.write(click.style(text, dim=True) if dim and self._color else text)
        sys.stdout.flush()

    def _end_line(self) -> None:
        self._reasoning = False
        if self._last != "\n":
            self._write("\n")


class JsonRenderer:
    """Prints one JSON object per line: each event, then the reply or the error."""

    def add(self, event: ChatEvent) -> None:
        """See `Renderer.add`."""
        if filled := {name: value for name, value in _as_json(event).items() if value}:
            self._write(filled)

    def end(self, reply: ChatReply) -> None:
        """See `Renderer.end`."""
        self._write({"reply": _as_json(reply)})

    def stop(self) -> None:
        """See `Renderer.stop`."""

    def fail(self, error: Exception) -> None:
        """See `Renderer.fail`."""
        self._write({"error": error_as_json(error)})
        print_message(f"llmopt: {error_message(error)}")

    def _write(self, value: dict[str, Any]) -> None:
        print_json_line(value)


def _as_json(value: ChatEvent | ChatReply) -> dict[str, Any]:
    """All fields but what only the provider or its plugin reads."""
    table = {each.name: getattr(value, each.name) for each in fields(type(value)) if each.name not in _OPAQUE}
    table["tool_calls"] = [asdict(call, filter=filters.exclude(*_OPAQUE)) for call in value.tool_calls]
    table["usage"] = None if value.usage is None else asdict(value.usage)
    return table


_OPAQUE: Final = ("raw", "provider_data")
