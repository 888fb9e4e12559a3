"""The errors that an attempt can end in, worded. No HTTP library is known here.

Messages say what happened and what to do, and name the origin and nothing more of the URL.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from typing import Final

from llmopt.errors import (
    AttemptTimeout,
    ClientClosed,
    ConfigError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    LLMOptError,
    PoolTimeout,
)
from llmopt.transport.request import Trip

_DOING: Final = {
    "pool": "waiting for a free connection",
    "connect": "connecting",
    "send": "sending the request",
    "wait": "waiting for the answer",
    "read": "reading the answer",
    "done": "reading the answer",
}
_ERRNO: Final = re.compile(r"\[Errno (\d+)\]")
_NO_DESCRIPTORS: Final = (errno.EMFILE, errno.ENFILE)
_PROXY_AUTHENTICATION: Final = 407


def placed(error: LLMOptError, trip: Trip) -> LLMOptError:
    """The error with what the trip knows: where it happened, and whether anything was sent."""
    error.endpoint = error.endpoint or trip.origin
    if isinstance(error, InvalidResponse):
        error.status = error.status or trip.status
        error.sent = "yes"
    elif trip.connecting or isinstance(error, (ConfigError, ConnectFailed, PoolTimeout)):
        error.sent = "no"
    else:
        error.sent = "maybe"
    return error


def closed() -> ClientClosed:
    """The pool was closed before, or is closed meanwhile."""
    return ClientClosed("the connection pool is closed; make a new client.")


def unsendable(trip: Trip) -> ConfigError:
    """The request cannot be written down; what is wrong with it may be a key and is not said."""
    return ConfigError(
        f"the method or a header of the request to {trip.origin} holds a character that HTTP forbids."
    )


def pool_timeout(trip: Trip) -> PoolTimeout:
    """No connection became free in time."""
    return PoolTimeout(
        f"no connection to {trip.origin} became free{_within(trip.request.pool_timeout)}; "
        "raise pool_size or lower max_concurrency."
    )


def connect_timeout(trip: Trip) -> ConnectFailed:
    """Name look-up, TCP and TLS took too long."""
    return ConnectFailed(
        f"{_could_not(trip)}{_within(trip.request.connect_timeout)}; is it reachable from here?",
        cause="timeout",
    )


def attempt_timeout(trip: Trip) -> AttemptTimeout:
    """The attempt as a whole took too long."""
    seconds = trip.request.timeout
    return AttemptTimeout(
        f"{trip.origin} gave no complete answer{_within(seconds)} (spent last on {_DOING[trip.phase]}).",
        timeout=seconds,
    )


def proxy_refused(trip: Trip, status: int, text: str = "") -> ConnectFailed:
    """The proxy answered in the server's stead."""
    hint = (
        "check the user name and password in the proxy's URL"
        if status == _PROXY_AUTHENTICATION
        else "ask its keeper, or put the host into NO_PROXY"
    )
    reason = f"{status} {_printable(text)}".strip()
    return ConnectFailed(f"{_could_not(trip)}: the proxy answered {reason}; {hint}.", cause="proxy")


def proxy_failed(trip: Trip) -> ConnectFailed:
    """The way through the proxy failed, nobody says how."""
    return ConnectFailed(f"{_could_not(trip)}: the proxy could not be used.", cause="proxy")


def connect_failed(error: OSError | None, trip: Trip) -> ConnectFailed:
    """No connection came about, for a reason of the system's or for none that is known."""
    fault = _connect_failed(error, trip)
    if error is not None:
        # Without its traceback, whose frames hold the headers.
        fault.__cause__ = error.with_traceback(None)
    return fault


def lost(trip: Trip) -> ConnectionLost:
    """The connection broke while the request was under way."""
    if trip.heard:
        return ConnectionLost(f"the connection to {trip.origin} broke in the middle of the answer.")
    return ConnectionLost(f"{trip.origin} closed the connection without an answer.", stale=trip.reused)


def truncated(trip: Trip) -> InvalidResponse:
    """The answer ended before its end, in good order."""
    return InvalidResponse(f"the answer of {trip.origin} ended before it was complete.", reason="truncated")


def malformed(trip: Trip) -> InvalidResponse:
    """What came is not HTTP."""
    if trip.status is not None:
        return InvalidResponse(f"the answer of {trip.origin} goes on in what is not HTTP.", reason="http")
    return InvalidResponse(
        f"{trip.origin} answered, but not in HTTP that can be read; is it the right port, and http or https?",
        reason="http",
    )


def _connect_failed(error: OSError | None, trip: Trip) -> ConnectFailed:
    if error is None:
        return ConnectFailed(
            f"{_could_not(trip)}: no proper answer to the attempt.", cause=_whose(trip, "other")
        )
    if isinstance(error, socket.gaierror):
        return _unresolved(error, trip)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error, trip)
    if isinstance(error, ssl.SSLError):
        return _no_tls(error.reason or "the handshake failed", trip)
    return _from_number(_number(error), trip)


def _from_number(number: int | None, trip: Trip) -> ConnectFailed:
    if number == errno.ECONNREFUSED:
        reason, cause = "connection refused; is the server running?", _whose(trip, "refused")
    elif number == errno.ETIMEDOUT:
        reason, cause = "no reaction; is it reachable from here?", "timeout"
    elif number in _NO_DESCRIPTORS:
        reason, cause = "too many open files; raise `ulimit -n` or lower pool_size.", "other"
    elif trip.origin.startswith("https:") and number in (None, errno.ECONNRESET, errno.EPIPE):
        return _no_tls("the connection was closed in the handshake", trip)
    else:
        reason, cause = f"{_system_text(number)}.", _whose(trip, "other")
    return ConnectFailed(f"{_could_not(trip)}: {reason}", cause=cause)


def _unresolved(error: socket.gaierror, trip: Trip) -> ConnectFailed:
    cause = _whose(trip, "dns")
    if error.errno == socket.EAI_NONAME:
        return ConnectFailed(
            f"{_could_not(trip)}: the host name does not exist; check its spelling.",
            cause=cause,
            permanent=True,
        )
    return ConnectFailed(f"{_could_not(trip)}: the host name could not be looked up now.", cause=cause)


def _untrusted(error: ssl.SSLCertVerificationError, trip: Trip) -> ConnectFailed:
    return ConnectFailed(
        f"the certificate of {trip.origin} is not accepted: {_printable(error.verify_message)}; check the host "
        "name, or name your certificate authority in SSL_CERT_FILE.",
        cause="tls",
        permanent=True,
    )


def _no_tls(reason: str, trip: Trip) -> ConnectFailed:
    text = _printable(reason.replace("_", " ").lower())
    return ConnectFailed(
        f"no TLS connection to {trip.origin} came about: {text}; is it https that the server speaks there?",
        cause="tls",
    )


def _number(error: OSError) -> int | None:
    """The error's number; of several addresses that failed differently, the one that tells most."""
    if error.errno is not None:
        return error.errno
    numbers = [int(text) for text in _ERRNO.findall(str(error))]
    return errno.ECONNREFUSED if errno.ECONNREFUSED in numbers else next(iter(numbers), None)


def _system_text(number: int | None) -> str:
    return "the system gave no reason" if number is None else os.strerror(number).lower()


def _could_not(trip: Trip) -> str:
    through = "" if trip.proxy is None else f" through the proxy {trip.proxy.url}"
    return f"could not connect to {trip.origin}{through}"


def _whose(trip: Trip, cause: str) -> str:
    """With a proxy in between it is the proxy that could not be reached."""
    return cause if trip.proxy is None else "proxy"


def _within(seconds: float | None) -> str:
    return " in time" if seconds is None else f" within {seconds:g} s"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:200]
