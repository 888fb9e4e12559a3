"""The errors of one attempt and their messages, independent of the HTTP library.

Messages say what happened and what to do. They contain the origin and nothing else of the URL, which may hold
secrets. A file apart from `exchange`, which imports httptools: an httpx transport must work without loading it.

It makes and completes exceptions: no network, no clock, no shared state. To find the cause of a failed connection it
may touch the disk, on the event loop: it opens /dev/null to see whether a descriptor is free, and it reads the
environment variable SSL_CERT_FILE and looks whether that file exists. The attempt's `RequestState` is only read.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Final

from llmopt.errors import (
    AttemptTimeout,
    ClientClosed,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    LLMOptError,
    OutOfResources,
    PoolTimeout,
)
from llmopt.transport.request import RequestState
from llmopt.values.redaction import printable
from llmopt.values.resources import out_of_resources, system_numbers

_PHASE_TEXT: Final = {
    "pool": "waiting for a free connection",
    "connect": "connecting",
    "send": "sending the request",
    "wait": "waiting for the response",
    "read": "reading the response",
    "done": "reading the response",
}
# The alerts of TLS about the certificate of the client, by their names in OpenSSL.
_CLIENT_CERTIFICATE_ALERT: Final = re.compile(r"ALERT_(.*CERTIFICATE.*|UNKNOWN_CA)")
_PROXY_AUTHENTICATION: Final = 407
_NEEDS_FILES: Final = (socket.gaierror, ssl.SSLCertVerificationError)
"""Without a free descriptor the resolver cannot read its files and says that the name does not exist, and OpenSSL cannot
read the directory of certificate authorities and says that the certificate is wrong."""


def add_request_state(error: LLMOptError, state: RequestState) -> LLMOptError:
    """Add where the error happened, and whether anything was sent."""
    error.endpoint = error.endpoint or state.origin
    if isinstance(error, InvalidResponse):
        error.status = error.status or state.status
        # An invalid response is a response: the server has processed the request.
        error.sent = "yes"
    elif state.connecting or isinstance(error, (ConfigError, ConnectFailed, PoolTimeout)):
        error.sent = "no"
    else:
        error.sent = "maybe"
    return error


def pool_closed() -> ClientClosed:
    """The pool was closed, before or during the request."""
    return ClientClosed("the connection pool is closed; make a new client.")


def invalid_request(state: RequestState) -> ConfigError:
    """The request contains forbidden characters; the message does not repeat them, they may be part of a key."""
    return ConfigError(
        f"the method or a header of the request to {state.origin} contains a character that HTTP forbids."
    )


def pool_timeout(state: RequestState) -> PoolTimeout:
    """No connection became free in time."""
    return PoolTimeout(
        f"no connection to {state.origin} became free{_within(state.request.pool_timeout)}; "
        "raise pool_size or lower max_concurrency."
    )


def connect_timeout(state: RequestState) -> ConnectFailed:
    """Name resolution, TCP and TLS took too long."""
    return ConnectFailed(
        f"{_could_not_connect(state)}{_within(state.request.connect_timeout)}; is it reachable from here?",
        cause="timeout",
    )


def attempt_timeout(state: RequestState) -> AttemptTimeout:
    """The attempt as a whole took too long."""
    seconds = state.request.timeout
    return AttemptTimeout(
        f"{state.origin} sent no complete response{_within(seconds)} (the last phase was {_PHASE_TEXT[state.phase]}).",
        timeout=seconds,
    )


def proxy_refused(state: RequestState, status: int, text: str = "") -> ConnectFailed:
    """The proxy sent a response of its own instead of the server's."""
    hint = (
        "check the user name and password in the proxy's URL"
        if status == _PROXY_AUTHENTICATION
        else "check the proxy, or add the host to NO_PROXY"
    )
    reason = f"{status} {_printable(text)}".strip()
    return ConnectFailed(f"{_could_not_connect(state)}: the proxy answered {reason}; {hint}.", cause="proxy")


def proxy_failed(state: RequestState) -> ConnectFailed:
    """The proxy could not be used, for an unknown reason."""
    return ConnectFailed(f"{_could_not_connect(state)}: the proxy could not be used.", cause="proxy")


def connect_failed(error: OSError | None, state: RequestState) -> ConnectFailed | OutOfResources:
    """No connection could be opened; ``error`` is the reason that the system gave, None if unknown."""
    if error is not None:
        if isinstance(error, _NEEDS_FILES) and (exhausted := _no_descriptor()) is not None:
            error = exhausted
        if (local := out_of_resources(error, _could_not_connect(state))) is not None:
            return local
    failure = _connect_error(error, state)
    if error is not None:
        # Without its traceback: its frames hold the headers.
        failure.__cause__ = error.with_traceback(None)
    return failure


def _no_descriptor() -> OSError | None:
    """The system's error if no descriptor is free now."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error
    return None


def connection_lost(state: RequestState) -> ConnectionLost | ConnectFailed:
    """The connection broke while the request was under way."""
    if isinstance(state.connection_error, ssl.SSLError) and _about_client_certificate(state.connection_error):
        # With TLS 1.3 the server refuses the client's certificate after the client has begun to send.
        return _client_certificate_refused(state.connection_error, state)
    if state.response_started:
        # Not stale: once the server has begun to answer, it may have done the work, and a free repetition is
        # wrong.
        return ConnectionLost(f"the connection to {state.origin} broke in the middle of the response.")
    hint = (
        "" if state.reused or not _encrypted(state) else "; does it want a client certificate (client_cert)?"
    )
    return ConnectionLost(
        f"{state.origin} closed the connection without a response{hint or '.'}", stale=state.reused
    )


def response_truncated(state: RequestState) -> InvalidResponse:
    """The connection was closed cleanly before the response was complete."""
    return InvalidResponse(
        f"the response of {state.origin} ended before it was complete.", reason="truncated"
    )


def response_malformed(state: RequestState) -> InvalidResponse:
    """The received bytes are not HTTP."""
    if state.status is not None:
        return InvalidResponse(f"the response of {state.origin} became invalid HTTP.", reason="http")
    return InvalidResponse(
        f"{state.origin} did not answer with valid HTTP; check the port, and http or https.",
        reason="http",
    )


def _connect_error(error: OSError | None, state: RequestState) -> ConnectFailed:
    if error is None:
        return _not_connected(state, "no valid response to the connection attempt.")
    if isinstance(error, socket.gaierror):
        # Only EAI_NONAME is permanent; EAI_AGAIN and others mean that the name server did not answer.
        wrong = error.errno == socket.EAI_NONAME
        text = "does not exist; check its spelling." if wrong else "could not be resolved now."
        return _not_connected(state, f"the host name {text}", "dns", permanent=wrong)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_rejected(error, state)
    if isinstance(error, ssl.SSLError):
        if _about_client_certificate(error):
            return _client_certificate_refused(error, state)
        return _tls_failed(error.reason or "the handshake failed", state)
    return _from_errno(_errno_of(error), state)


def _from_errno(number: int | None, state: RequestState) -> ConnectFailed:
    if number == errno.ECONNREFUSED:
        return _not_connected(state, "connection refused; is the server running?", "refused")
    if number == errno.ETIMEDOUT:
        text = f"{_could_not_connect(state)}: no response; is it reachable from here?"
        return ConnectFailed(text, cause="timeout")
    # A server that speaks plain HTTP on this port often resets the connection when it reads a TLS hello.
    if _encrypted(state) and number in (None, errno.ECONNRESET, errno.EPIPE):
        return _tls_failed("the connection was closed in the handshake", state)
    text = "the system gave no reason" if number is None else os.strerror(number).lower()
    return _not_connected(state, f"{text}.")


def _encrypted(state: RequestState) -> bool:
    return state.origin.startswith("https:")


def _about_client_certificate(error: ssl.SSLError) -> bool:
    return bool(_CLIENT_CERTIFICATE_ALERT.search(error.reason or ""))


def _client_certificate_refused(error: ssl.SSLError, state: RequestState) -> ConnectFailed:
    text = _printable((error.reason or "").replace("_", " ").lower())
    return ConnectFailed(
        f"{state.origin} refused the certificate of this client, or wants one ({text}); check client_cert and "
        "client_key.",
        cause="tls",
        permanent=True,
    )


def _certificate_rejected(error: ssl.SSLCertVerificationError, state: RequestState) -> ConnectFailed:
    file = os.environ.get("SSL_CERT_FILE")
    missing = "" if not file or Path(file).is_file() else " The file that SSL_CERT_FILE names does not exist."
    return ConnectFailed(
        f"the certificate of {state.origin} was not accepted: {_printable(error.verify_message)}; check the host "
        f"name, or name your certificate authority in ca_file or SSL_CERT_FILE.{missing}",
        cause="tls",
        permanent=True,
    )


def _tls_failed(reason: str, state: RequestState) -> ConnectFailed:
    text = _printable(reason.replace("_", " ").lower())
    return ConnectFailed(
        f"no TLS connection to {state.origin}: {text}; does the server use https on this port? It "
        "may also want a client certificate (client_cert).",
        cause="tls",
    )


def _errno_of(error: OSError) -> int | None:
    """The error's number; if several addresses failed differently, the most useful one."""
    numbers = system_numbers(error)
    # With IPv6 unreachable and IPv4 refused, "refused" is what the user can act on.
    return errno.ECONNREFUSED if errno.ECONNREFUSED in numbers else next(iter(numbers), None)


def _could_not_connect(state: RequestState) -> str:
    through = "" if state.proxy is None else f" through the proxy {state.proxy.url}"
    return f"could not connect to {state.origin}{through}"


def _not_connected(
    state: RequestState, reason: str, cause: str = "other", *, permanent: bool = False
) -> ConnectFailed:
    """The error with its cause; with a proxy it is always the proxy that could not be reached."""
    cause = cause if state.proxy is None else "proxy"
    return ConnectFailed(f"{_could_not_connect(state)}: {reason}", cause=cause, permanent=permanent)


def _within(seconds: float | None) -> str:
    return " in time" if seconds is None else f" within {seconds:g} s"


def _printable(text: str) -> str:
    # The text comes from the peer.
    return printable(text)[:200]
