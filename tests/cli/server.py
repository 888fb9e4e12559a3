"""A small OpenAI-compatible server that accepts some requests and refuses others."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any, Self

DIMENSIONS = 4
Answer = tuple[int, dict[str, Any]]


class EmbeddingServer:
    """Answers ``/v1/embeddings`` and ``/v1/models``; ``refuse`` may be set to answer otherwise.

    Attributes:
        refuse: given the number of the request and its texts, a status and a body, or None to embed.
        models: ids of the models that it lists, or a status and a body.
        requests: number of embedding requests so far.
    """

    def __init__(self) -> None:
        self.refuse: Callable[[int, list[str]], Answer | None] = lambda number, texts: None
        self.models: list[str] | Answer = ["small", "large"]
        self.requests = 0
        self._lock = Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, body: dict[str, Any]) -> Answer:
        texts = body["input"]
        with self._lock:
            self.requests += 1
            number = self.requests
        refusal = self.refuse(number, texts)
        if refusal is not None:
            return refusal
        data = [{"index": row, "embedding": vector(text)} for row, text in enumerate(texts)]
        return 200, {
            "data": data,
            "model": "small",
            "usage": {"prompt_tokens": len(texts), "total_tokens": len(texts)},
        }

    def catalogue(self) -> Answer:
        if isinstance(self.models, tuple):
            return self.models
        return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            # Each answer closes its connection, so that no thread outlives the test.
            protocol_version = "HTTP/1.0"

            def do_GET(self) -> None:
                self._send(*owner.catalogue())

            def do_POST(self) -> None:
                size = int(self.headers["content-length"])
                self._send(*owner.answer(json.loads(self.rfile.read(size))))

            def handle(self) -> None:
                # A test may end the client before its response.
                with suppress(ConnectionError):
                    super().handle()

            def finish(self) -> None:
                with suppress(ConnectionError):
                    super().finish()

            def _send(self, status: int, body: dict[str, Any]) -> None:
                content = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Silence."""

        return Handler


def vector(text: str) -> list[float]:
    """A vector that differs between texts."""
    return [float(len(text)), float(sum(text.encode()) % 1000), 0.25, 1.0]


def refused(status: int, message: str) -> Answer:
    """An error in the common shape."""
    return status, {"error": {"message": message, "type": "test", "code": None}}
