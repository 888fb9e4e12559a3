"""``llmopt chat``: one question, a conversation, and JSON output."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest

from tests.cli.run import LLMOPT, invoke, llmopt
from tests.cli.waiting import until
from tests.support.faults import (
    Answer,
    Request,
    Script,
    Send,
    ServerThread,
    Signal,
    Stall,
    Wait,
    answer_openai,
    chat_payload,
    error_answer,
    json_answer,
    serving,
    stream_answer,
    stream_events,
)
from tests.support.streams import (
    DONE,
    END,
    TEXT,
    WORDS,
    chunk,
    error_event,
    event,
    head,
    stream_script,
    unfinished_stream,
    word_events,
)

MODEL = "near/m"
NEVER_ENDING = Script([Send(head()), Send(chunk(b"".join(word_events()))), Stall()])
# A shell makes a test runner in the background ignore SIGINT; its child processes inherit that.
PROGRAM = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from llmopt.cli.app import main; main()"


@pytest.fixture
def thread(here: Path) -> Iterator[ServerThread]:
    """A server that chats, configured as "near"."""
    with serving() as made:
        made.server.default(stream_answer(WORDS))
        (here / "llmopt.toml").write_text(
            f'[providers.near]\nplugin = "local"\nbase_url = "{made.server.base_url}"\nmax_retries = 0\n'
            "timeouts = {first = 5, first_event = 5}\n"
        )
        yield made


def request_body(thread: ServerThread, number: int = 0) -> Any:
    return thread.server.requests[number].json()


# One question.


def test_a_question_on_standard_input(thread: ServerThread) -> None:
    """Standard output is the answer and a line feed, nothing else."""
    done = llmopt("chat", MODEL, stdin="Wer war König?\n".encode())
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, TEXT + "\n", b"")
    assert request_body(thread)["messages"] == [{"role": "user", "content": "Wer war König?\n"}]
    assert request_body(thread)["stream"] is True


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_the_log_at_debug_is_on_standard_error_alone(
    thread: ServerThread, here: Path, options: tuple[str, ...]
) -> None:
    """A retry included; what a pipe gets is the answer."""
    entry = here / "llmopt.toml"
    entry.write_text(entry.read_text().replace("max_retries = 0", "retry_delay = 0.001"))
    thread.server.play(error_answer(503, "busy"))
    setup = "import logging; logging.basicConfig(level=logging.DEBUG); "
    program = [sys.executable, "-c", setup + PROGRAM]
    done = subprocess.run(
        [*program, "chat", MODEL, *options], input="?", capture_output=True, encoding="utf-8", check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()] if options else [{"text": done.stdout}]
    assert "".join(line.get("text", "") for line in lines).removesuffix("\n") == TEXT
    assert "INFO:llmopt.retry" in done.stderr
    assert "DEBUG:llmopt.request" in done.stderr


def test_options_become_parameters_of_the_request(thread: ServerThread) -> None:
    options = [
        "--system",
        "Be brief.",
        "--max-tokens",
        "7",
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--seed",
        "3",
    ]
    options += ["--stop", "a", "--stop", "b", "--reasoning-effort", "low", "--deadline", "30"]
    assert invoke("chat", MODEL, *options, stdin=b"Hello?").exit_code == 0
    body = request_body(thread)
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    expected = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["a", "b"]}
    assert {name: body[name] for name in expected} == expected
    assert body["reasoning_effort"] == "low"


def test_without_a_stream(thread: ServerThread) -> None:
    """The output looks the same."""
    thread.server.default(answer_openai)
    done = invoke("chat", MODEL, "--no-stream", stdin=b"Hello?")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "Hello world\n", "")
    assert request_body(thread)["stream"] is False


def test_json_output_is_the_events_and_then_the_reply(thread: ServerThread) -> None:
    """One object per line, without empty fields."""
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": "{}"}}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    pieces = [
        *word_events(),
        event(choices=[{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": "stop"}]),
    ]
    thread.server.default(stream_script(*pieces, event(choices=[], usage=usage), DONE))
    done = invoke("chat", MODEL, "--json", stdin=b"Hello?")
    assert (done.exit_code, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "".join(line.get("text", "") for line in lines[:-1]) == TEXT
    assert lines[1] == {"text": "Es ", "model": "m", "id": "c1"}
    part = {"index": 0, "id": "c1", "name": "look", "arguments": "{}"}
    assert {"tool_calls": [part], "finish_reason": "tool_calls"}.items() <= lines[-4].items()
    reply = lines[-1]["reply"]
    assert (reply["text"], reply["finish_reason"]) == (TEXT, "tool_calls")
    assert reply["usage"]["total_tokens"] == 7
    assert reply["tool_calls"] == [{"id": "c1", "name": "look", "arguments": "{}"}]
    thread.server.default(answer_openai)
    done = invoke("chat", MODEL, "--json", "--no-stream", stdin=b"Hello?")
    assert json.loads(done.stdout)["reply"]["text"] == "Hello world"


@pytest.mark.parametrize(
    ("script", "code", "out", "message"),
    [
        (error_answer(404, "no such model"), 1, "", "no such model"),
        (error_answer(401, "who are you?"), 1, "", "api_key"),
        (unfinished_stream(*word_events()), 1, TEXT + "\n", "broke off"),
        (stream_script(*word_events(), error_event("it broke")), 1, TEXT + "\n", "it broke"),
    ],
    ids=["404", "401", "no end", "error"],
)
def test_errors_are_one_sentence(
    script: Answer | Script, code: int, out: str, message: str, thread: ServerThread
) -> None:
    """On standard error, with an exit code; the text before the error is on standard output."""
    thread.server.default(script)
    done = invoke("chat", MODEL, stdin=b"Hello?")
    assert (done.exit_code, done.stdout) == (code, out)
    assert message in done.stderr
    assert done.stderr.startswith("llmopt: ")
    assert done.stderr.count("\n") == 1
    done = invoke("chat", MODEL, "--json", stdin=b"Hello?")
    assert done.exit_code == code
    assert message in json.loads(done.stdout.splitlines()[-1])["error"]["message"]


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "message"),
    [
        (["nobody/m"], b"Hello?", 3, "nobody"),
        (["m"], b"Hello?", 2, "provider/model"),
        ([MODEL], b"  \n", 2, "standard input is empty"),
        ([MODEL], b"\xff\xfe\x00", 2, "UTF-8"),
        ([MODEL, "--temperature", "-1"], b"Hello?", 2, "temperature"),
        ([MODEL, "--max-tokens", "0"], b"Hello?", 2, "max-tokens"),
        ([MODEL, "--top-p", "2"], b"Hello?", 2, "top-p"),
        ([], b"Hello?", 2, "PROVIDER/MODEL"),
    ],
    ids=["provider", "reference", "empty", "bytes", "temperature", "tokens", "top-p", "nothing"],
)
def test_invalid_input_is_an_error_before_any_request(
    arguments: list[str], stdin: bytes, code: int, message: str, thread: ServerThread
) -> None:
    done = invoke("chat", *arguments, stdin=stdin)
    assert done.exit_code == code
    assert message in done.stderr
    assert thread.server.requests == []


def test_an_answer_cut_off_at_the_limit_of_tokens_is_reported(thread: ServerThread) -> None:
    finish = event(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}])
    thread.server.default(stream_script(*word_events(), finish, DONE))
    done = invoke("chat", MODEL, stdin=b"Hello?")
    assert (done.exit_code, done.stdout) == (0, TEXT + "\n")
    assert "--max-tokens" in done.stderr


CONTROLS = "a\x1b[31mb\tc\r\nd\x7fe\x9bf\u202eg\u2066h\u2028i\x85j👩‍🚀 שלום\u200f"
"""A colour, DEL, C1, overrides of the direction of text, separators of lines; and a tab, a joiner and a mark that stay."""


@pytest.mark.row("S04")
@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_control_characters_do_not_reach_a_pipe(thread: ServerThread, options: list[str]) -> None:
    """It may be a pager, which passes escapes on; line ends are line feeds."""
    thread.server.default(json_answer(chat_payload([CONTROLS])) if options else stream_answer([CONTROLS]))
    shown = invoke("chat", MODEL, *options, stdin=b"Hello?").stdout_bytes.decode()
    mark = "\N{REPLACEMENT CHARACTER}"
    assert shown == f"a{mark}[31mb\tc\nd{mark}e{mark}f{mark}g{mark}h\ni\nj👩‍🚀 שלום\u200f\n"


@pytest.mark.row("S04")
@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_json_output_escapes_control_characters(thread: ServerThread, options: list[str]) -> None:
    """A parser reads the text as it was; in the output there are neither controls nor further line ends."""
    thread.server.default(json_answer(chat_payload([CONTROLS])) if options else stream_answer([CONTROLS]))
    shown = invoke("chat", MODEL, "--json", *options, stdin=b"Hello?").stdout_bytes.decode()
    assert json.loads(shown.rstrip("\n").rpartition("\n")[2])["reply"]["text"] == CONTROLS
    assert not set("\x1b\x7f\x9b\u202e\u2066\u2028\x85") & set(shown)
    assert shown.splitlines() == shown.rstrip("\n").split("\n")


def test_a_closed_output_pipe_is_no_error(thread: ServerThread) -> None:
    thread.server.default(stream_answer(["x" * 1000] * 500))
    process = subprocess.Popen(
        [*LLMOPT, "chat", MODEL], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"Hello?")
    process.stdin.close()
    process.stdout.read(10)
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(60) == 0


def test_ctrl_c_ends_the_only_answer(thread: ServerThread) -> None:
    """Exit code 130; the text before it is on standard output."""
    thread.server.default(NEVER_ENDING)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, "chat", MODEL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Hello?")
    process.stdin.close()
    process.stdin = None
    assert process.stdout.read(len(TEXT.encode())).decode() == TEXT
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, b"\n", b"")
    thread.run(thread.server.wait_all_closed())


# A conversation.


class Terminal:
    """A chat process on a terminal of its own, and the text that it wrote there."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-W", "error", "-c", PROGRAM, "chat", MODEL, *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**os.environ, "TERM": "dumb", **env},
        )
        os.close(slave)
        self.seen = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                piece = os.read(self._master, 4096)
            except OSError:
                # The other end is closed.
                return
            if not piece:
                return
            data += piece
            self.seen = data.decode(errors="replace").replace("\r\n", "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        os.close(self._master)

    def type(self, text: str) -> None:
        """Type some text."""
        os.write(self._master, text.encode())

    def shows(self, text: str, times: int = 1) -> None:
        """Wait until the terminal has shown a text this many times."""
        until(lambda: self.seen.count(text) >= times, self.process)

    def interrupt(self) -> None:
        """Send SIGINT, as Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def ends(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self.process.wait(60)


def counting(thread: ServerThread) -> Callable[[Request], Answer]:
    """Answers with the number of messages in the request."""
    return lambda request: stream_answer([f"I got {len(request.json()['messages'])} messages."])


def test_a_conversation_is_kept(thread: ServerThread) -> None:
    """Each request has all earlier messages; blank lines are no questions; Ctrl-D ends the command."""
    thread.server.default(counting(thread))
    with Terminal("--system", "Be brief.") as terminal:
        terminal.shows("> ")
        terminal.type("First?\n")
        terminal.shows("I got 2 messages.\n> ")
        terminal.type("\n   \nSecond?\n")
        terminal.shows("I got 4 messages.\n> ")
        terminal.type("\x04")
        assert terminal.ends() == 0
    messages = request_body(thread, 1)["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert [message["content"] for message in messages[1:]] == ["First?", "I got 2 messages.", "Second?"]


def test_ctrl_c_stops_an_answer_and_then_the_conversation(thread: ServerThread) -> None:
    """The partial answer stays in the conversation; Ctrl-C at the prompt ends the command."""
    thread.server.play(NEVER_ENDING)
    thread.server.default(counting(thread))
    with Terminal() as terminal:
        terminal.shows("> ")
        terminal.type("First?\n")
        terminal.shows(TEXT)
        terminal.interrupt()
        terminal.shows(f"{TEXT}\n> ")
        terminal.type("Second?\n")
        terminal.shows("I got 3 messages.\n> ")
        terminal.interrupt()
        assert terminal.ends() == 130
        assert "Traceback" not in terminal.seen
    assert request_body(thread, 1)["messages"][1] == {"role": "assistant", "content": TEXT}


def test_a_question_stopped_before_its_first_word_is_dropped(thread: ServerThread) -> None:
    """Many models reject two user messages in a row."""
    waiting = asyncio.Event()
    thread.server.play(Script([Signal(waiting), Stall()]))
    thread.server.default(counting(thread))
    with Terminal() as terminal:
        terminal.shows("> ")
        terminal.type("First?\n")
        thread.run(thread.server.wait_requests(1))
        terminal.interrupt()
        terminal.shows("> ", 2)
        terminal.type("Second?\n")
        terminal.shows("I got 1 messages.\n> ")
        terminal.type("\x04")
        assert terminal.ends() == 0


def test_an_error_does_not_end_the_conversation(thread: ServerThread) -> None:
    """The command prints it and goes on to the next question."""
    thread.server.play(error_answer(400, "not like this"), unfinished_stream(*word_events()))
    thread.server.default(counting(thread))
    with Terminal() as terminal:
        terminal.shows("> ")
        terminal.type("First?\n")
        terminal.shows("llmopt: not like this")
        terminal.shows("> ", 2)
        terminal.type("Second?\n")
        terminal.shows("broke off")
        terminal.shows("> ", 3)
        terminal.type("Third?\n")
        terminal.shows("I got 3 messages.\n> ")
        terminal.type("\x04")
        assert terminal.ends() == 0


def test_an_answer_cannot_control_the_terminal(thread: ServerThread) -> None:
    """Reasoning is dimmed unless colours are off; control characters are replaced."""
    thought = event(choices=[{"index": 0, "delta": {"reasoning_content": "Hmm."}}])
    words = stream_events(["a\x1b[31mb\tc\r\nd 👩‍🚀"])
    thread.server.default(lambda _: stream_script(thought, *words))
    for env, shown in (({}, "\x1b[2mHmm.\x1b[0m\n\n"), ({"NO_COLOR": "1"}, "Hmm.\n\n")):
        with Terminal(**env) as terminal:
            terminal.shows("> ")
            terminal.type("First?\n")
            terminal.shows("d 👩‍🚀\n> ")
            assert shown in terminal.seen
            assert "a\N{REPLACEMENT CHARACTER}[31mb" in terminal.seen
            terminal.type("\x04")
            assert terminal.ends() == 0


def test_words_are_shown_as_they_arrive(thread: ServerThread) -> None:
    """Each before the server sends the next."""
    gates = [asyncio.Event() for _ in WORDS]
    steps: list[Any] = [Send(head()), Send(chunk(word_events()[0]))]
    for piece, gate in zip(word_events()[1:], gates, strict=True):
        steps += [Send(chunk(piece)), Wait(gate)]
    thread.server.default(Script([*steps, Send(chunk(DONE) + END)]))
    with Terminal() as terminal:
        terminal.shows("> ")
        terminal.type("First?\n")
        for count, gate in enumerate(gates, 1):
            terminal.shows("".join(WORDS[:count]))
            thread.call(gate.set)
        terminal.shows(f"{TEXT}\n> ")
        terminal.type("\x04")
        assert terminal.ends() == 0
