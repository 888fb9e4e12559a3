"""The loopback server: streams of so many chunks, as fast as they go or at a pace.

    python -m benchmarks.streams.server

Paths are ``/{chunks}-{pace}us/v1/chat/completions``. At a pace of 0 all chunks leave in pieces of 64 KiB, as behind a proxy
that was held up; else each leaves alone, so many microseconds after the one before it, with the moment at which
it left (the monotonic clock's nanoseconds) as its text. One process, a thread that keeps the pace: a timer of the
event loop's would be a millisecond late.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from typing import Any, Final

_PATH: Final = re.compile(rb" /(\d+)-(\d+)us/")
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 02 Nov 2026 00:00:00 GMT\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"openai-processing-ms: 21\r\nx-request-id: req_0123456789abcdef\r\ntransfer-encoding: chunked\r\n\r\n"
)
# As OpenAI sends it, but for the padding.
_EVENT: Final = (
    b'data: {"id":"chatcmpl-CF2w0qvDCKCLNpvbTUFU7EJqGrEC2","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_560af6e559",'
    b'"choices":[{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
)
_LAST: Final = (
    b'data: {"id":"chatcmpl-CF2w0qvDCKCLNpvbTUFU7EJqGrEC2","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"gpt-4o-mini-2024-07-18","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":null}\n\ndata: {"id":"chatcmpl-CF2w0qvDCKCLNpvbTUFU7EJqGrEC2","object":"chat.completion.chunk",'
    b'"created":1700000000,"model":"gpt-4o-mini-2024-07-18","choices":[],"usage":{"prompt_tokens":3,'
    b'"completion_tokens":500,"total_tokens":503}}\n\ndata: [DONE]\n\n'
)
_PIECE: Final = 1 << 16
_SPIN_S: Final = 0.0002


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event() -> bytes:
    return _chunk(_EVENT % str(time.monotonic_ns()).encode())


def _serve(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    held = b""
    with connection:
        while True:
            end = held.find(b"\r\n\r\n")
            found = _LENGTH.search(held, 0, end) if end >= 0 else None
            whole = end + 4 + (int(found[1]) if found else 0)
            if end < 0 or len(held) < whole:
                piece = connection.recv(1 << 16)
                if not piece:
                    return
                held += piece
                continue
            asked = _PATH.search(held, 0, end)
            held = held[whole:]
            if asked is None:
                return
            _answer(connection, int(asked[1]), int(asked[2]) / 1e6)


def _answer(connection: socket.socket, chunks: int, pace: float) -> None:
    if not pace:
        body = b"".join(_event() for _ in range(chunks)) + _chunk(_LAST) + b"0\r\n\r\n"
        answer = _HEAD + body
        for start in range(0, len(answer), _PIECE):
            connection.sendall(answer[start : start + _PIECE])
        return
    connection.sendall(_HEAD)
    due = time.monotonic()
    for _ in range(chunks):
        due += pace
        _wait(due)
        connection.sendall(_event())
    connection.sendall(_chunk(_LAST) + b"0\r\n\r\n")


def _wait(due: float) -> None:
    left = due - time.monotonic()
    if left > _SPIN_S:
        time.sleep(left - _SPIN_S / 2)


def main() -> None:
    """Serve until the process is ended; the port is printed."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_guarded, args=(connection,), daemon=True).start()


def _guarded(connection: Any) -> None:
    try:
        _serve(connection)
    except OSError:
        # The client has gone.
        connection.close()


if __name__ == "__main__":
    main()
