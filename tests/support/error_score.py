"""Scores a collection of error bodies: serves each over a socket, and compares the exception with the expected kind.

``python -m tests.support.error_score FILE [--plugin compatible]`` prints what differs and the score. FILE holds one JSON
object a line: ``provider``, ``operation`` ("embeddings", "chat" or "catalog"), ``status``, ``headers``, ``body`` and
``expected_kind`` (a `VerdictKind`). Without ``--plugin`` each provider is served by the plugin that has its name.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from attrs import frozen

import llmopt
from llmopt.values.http import EXCEPTION_OF, VerdictKind

Reply = tuple[int, Mapping[str, str], bytes]
"""Status, headers and body of a response."""
LOCAL = {
    "lmstudio", "llama.cpp", "sglang", "vllm", "lmdeploy", "tabbyapi", "tgi", "koboldcpp", "localai",
    "text-generation-webui",
}  # fmt: skip
ALIASES = {"azure apim": "azure", "openai": "openai", "mistral": "mistral"}
CALLS: Mapping[str, Callable[[llmopt.Client, str], object]] = {
    "chat": lambda client, name: client.chat(f"{name}/m", [{"role": "user", "content": "hi"}]),
    "embeddings": lambda client, name: client.embed(f"{name}/m", ["a text", "another text"]),
    "catalog": lambda client, name: client.list_models(name),
}


@frozen(kw_only=True)
class Outcome:
    """What the client raised for one error body.

    Attributes:
        case: the line of the collection.
        error: what was raised, None for nothing.
        requests: how many requests the call sent.
    """

    case: Mapping[str, Any]
    error: Exception | None
    requests: int

    @property
    def right(self) -> bool:
        """Whether the exception is the one of the expected kind."""
        return type(self.error) is EXCEPTION_OF[VerdictKind(self.case["expected_kind"])]

    @property
    def worded(self) -> bool:
        """Whether the message has words of the body, where the body has any."""
        said = longest_text(self.case["body"])
        return not said or said[:24] in " ".join(str(self.error).split())


def longest_text(body: str) -> str:
    """The longest text of a body; of HTML, what stands outside the tags."""
    if body.lstrip().startswith("<"):
        return max(body.replace(">", "<").split("<")[::2], key=len)
    try:
        texts = list(_texts(json.loads(body.removeprefix("data: "))))
    except ValueError:
        texts = [body]
    # The longest one that is a sentence, because an id, a type or an address may be longer.
    texts = [" ".join(text.split()) for text in texts if " " in text.strip()] or [
        text for text in texts if "://" not in text
    ]
    # JSON in a message is unpacked: what stands before it is enough.
    return max(texts, key=len, default="").split("{")[0].strip()


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    respond: Callable[[str, bytes], Reply]

    def _answer(self) -> None:
        status, headers, body = type(self).respond(
            self.path, self.rfile.read(int(self.headers.get("content-length", 0)))
        )
        self.send_response_only(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = _answer  # noqa: N815 - names of the standard library

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def _serving(respond: Callable[[str, bytes], Reply]) -> Iterator[str]:
    """The base URL of a server that answers every request so."""
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Handler", (_Handler,), {"respond": staticmethod(respond)})
    )
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def bodies_server(
    answer: Callable[[dict[str, Any]], tuple[int, object]],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that answers JSON with JSON: its base URL, and the requests that it received."""
    requests: list[dict[str, Any]] = []

    def respond(_: str, body: bytes) -> Reply:
        requests.append(json.loads(body))
        status, value = answer(requests[-1])
        return status, {}, json.dumps(value).encode()

    with _serving(respond) as url:
        yield f"{url}/v1", requests


def outcomes(cases: Iterable[Mapping[str, Any]], plugin: str | None = None) -> Iterator[Outcome]:
    """Serve each body to a provider entry of its own, without retries.

    Args:
        cases: lines of the collection.
        plugin: serves all of them; None for the plugin of each case's provider.
    """
    cases = list(cases)
    requests: Counter[int] = Counter()

    def respond(path: str, _: bytes) -> Reply:
        number = int(path.split("/")[1])
        requests[number] += 1
        case = cases[number]
        return case["status"], case.get("headers", {}), case["body"].encode()

    with _serving(respond) as url:
        entries = {
            f"x{number}": {
                "plugin": plugin or plugin_of(case["provider"]),
                "base_url": f"{url}/{number}/v1",
                # One for each: what a key may not do is remembered.
                "api_key": f"key-of-the-score-{number}",
                "max_retries": 0,
                "rpm": 60_000,
            }
            for number, case in enumerate(cases)
        }
        with llmopt.Client({"providers": entries}, cache=False) as client:
            for number, case in enumerate(cases):
                error: Exception | None = None
                try:
                    CALLS[case["operation"]](client, f"x{number}")
                except Exception as raised:
                    error = raised
                yield Outcome(case=case, error=error, requests=requests[number])


def plugin_of(provider: str) -> str:
    """The plugin that serves a provider of the collection."""
    from llmopt_plugin_compatible._table import TABLE

    if provider in LOCAL:
        return "local"
    return ALIASES.get(provider) or (provider if provider in TABLE.rows else "compatible")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a collection."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def main() -> int:
    """Print what differs and the score; 0 if every exception is right and every message has words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--plugin")
    arguments = parser.parse_args()
    right = worded = count = 0
    for number, outcome in enumerate(outcomes(read(arguments.file), arguments.plugin)):
        count, right, worded = count + 1, right + outcome.right, worded + outcome.worded
        case = outcome.case
        if not outcome.right:
            print(f"{number} {case['provider']} {case['status']}: expected {case['expected_kind']},", end=" ")
            print(f"got {type(outcome.error).__name__}: {outcome.error}")
        if not outcome.worded:
            print(f"{number} {case['provider']}: {longest_text(case['body'])!r} is not in {outcome.error}")
    print(f"{right} of {count} right, {worded} with the server's words")
    return right != count or worded != count


if __name__ == "__main__":
    sys.exit(main())
