"""The one place that turns the errors of aiohttp and of the system into llmopt's.

Messages name the origin and nothing more of the URL. The errors of aiohttp are never chained: they hold
the request with its headers.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
import ssl
from typing import Final

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EofStream

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
from llmopt.wire.trip import Trip

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
_PROXY_REFUSES: Final = 407


def translate(error: BaseException, trip: Trip) -> LLMOptError | None:
    """The error of llmopt for whatever ended an attempt, or None for what is not to be translated.

    A cancellation is the caller's and passes, unless it is how aiohttp says that the pool was closed.
    """
    if isinstance(error, LLMOptError):
        return _placed(error, trip)
    if trip.closed and (isinstance(error, Exception) or not _cancelled()):
        return _placed(closed(), trip)
    fault = _fault(error, trip)
    return None if fault is None else _placed(fault, trip)


def closed() -> ClientClosed:
    """For a request to, or in, a pool that was closed."""
    return ClientClosed("the connection pool is closed; make a new client.")


def pool_timeout(trip: Trip) -> PoolTimeout:
    """No connection became free in time."""
    return PoolTimeout(
        f"no connection to {trip.origin} became free within {trip.request.pool_timeout:g} s; "
        "raise pool_size or lower max_concurrency."
    )


def connect_timeout(trip: Trip) -> ConnectFailed:
    """Name look-up, TCP and TLS took too long."""
    return ConnectFailed(
        f"{_could_not(trip)} within {trip.request.connect_timeout:g} s; is it reachable from here?",
        cause="timeout",
    )


def proxy_refused(trip: Trip, status: int, text: str = "") -> ConnectFailed:
    """The proxy answered in the server's stead."""
    hint = "check the user and password in the proxy's URL" if status == _PROXY_REFUSES else "ask its keeper"
    reason = f"{status} {_printable(text)}".rstrip()
    return ConnectFailed(f"{_could_not(trip)}: the proxy refused with {reason}; {hint}.", cause="proxy")


def _placed(error: LLMOptError, trip: Trip) -> LLMOptError:
    error.endpoint = error.endpoint or trip.origin
    error.sent = "no" if trip.connecting else "maybe"
    if isinstance(error, InvalidResponse):
        error.status = error.status or trip.status
        error.sent = "yes"
    return error


def _cancelled() -> bool:
    """Whether somebody asked for the cancellation of this task."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _fault(error: BaseException, trip: Trip) -> LLMOptError | None:
    if not isinstance(error, Exception):
        return None
    if isinstance(error, TimeoutError) and error.errno is None:
        return _attempt_timeout(trip)
    if isinstance(error, ValueError) and not isinstance(error, aiohttp.ClientConnectionError):
        return _unsendable(error, trip)
    if trip.connecting:
        return _connect_failed(error, trip)
    if isinstance(error, HttpProcessingError):
        return InvalidResponse(
            f"{trip.origin} answered, but not in proper HTTP; is it the right port, and http or https?",
            reason="http",
        )
    if isinstance(error, aiohttp.ClientPayloadError) and not trip.broken:
        return InvalidResponse(f"the answer of {trip.origin} ended before it was complete.", reason="truncated")
    if isinstance(error, (aiohttp.ClientError, OSError, EofStream, RuntimeError)):
        return _lost(trip)
    return None


def _attempt_timeout(trip: Trip) -> AttemptTimeout:
    seconds = trip.request.timeout
    return AttemptTimeout(
        f"{trip.origin} gave no complete answer within {seconds:g} s (spent last on {_DOING[trip.phase]}).",
        timeout=seconds,
    )


def _unsendable(error: ValueError, trip: Trip) -> ConfigError:
    if isinstance(error, aiohttp.InvalidURL):
        return ConfigError(f"no request can go to {trip.origin}: its host is not written in the usual form.")
    return ConfigError(
        f"the method or a header of the request to {trip.origin} holds a character that HTTP forbids."
    )


def _lost(trip: Trip) -> ConnectionLost:
    if trip.heard:
        return ConnectionLost(f"the connection to {trip.origin} broke in the middle of the answer.")
    return ConnectionLost(
        f"{trip.origin} closed the connection without an answer.", stale=trip.reused
    )


def _connect_failed(error: Exception, trip: Trip) -> LLMOptError | None:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return proxy_refused(trip, error.status, error.message)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _untrusted(error.certificate_error, trip)
    if isinstance(error, aiohttp.ClientConnectorError):
        cause: OSError = error.os_error
    elif isinstance(error, OSError):
        cause = error
    elif isinstance(error, (aiohttp.ClientError, HttpProcessingError, RuntimeError)):
        return ConnectFailed(f"{_could_not(trip)}: no proper answer to the attempt.", cause=_whose(trip, "other"))
    else:
        return None
    fault = _from_system(cause, trip)
    # Its traceback would lead to frames that hold the request's headers.
    fault.__cause__ = cause.with_traceback(None)
    return fault


def _untrusted(error: Exception, trip: Trip) -> ConnectFailed:
    reason = getattr(error, "verify_message", "") or "it does not fit the host"
    return ConnectFailed(
        f"the certificate of {trip.origin} is not accepted: {_printable(reason)}; check the host name, or "
        "name your certificate authority in SSL_CERT_FILE.",
        cause="tls",
        permanent=True,
    )


def _from_system(error: OSError, trip: Trip) -> ConnectFailed:
    if isinstance(error, socket.gaierror):
        return _unresolved(error, trip)
    if isinstance(error, ssl.SSLError):
        return _no_tls(error.reason or "handshake failed", trip)
    number = _number(error)
    if number == errno.ECONNREFUSED:
        return ConnectFailed(
            f"{_could_not(trip)}: connection refused; is the server running?", cause=_whose(trip, "refused")
        )
    if number in _NO_DESCRIPTORS:
        return ConnectFailed(
            f"{_could_not(trip)}: too many open files; raise `ulimit -n` or lower pool_size.", cause="other"
        )
    if trip.origin.startswith("https:") and number in (None, errno.ECONNRESET, errno.EPIPE):
        return _no_tls("the connection was closed in the handshake", trip)
    if number == errno.ETIMEDOUT:
        return ConnectFailed(f"{_could_not(trip)}: no reaction; is it reachable from here?", cause="timeout")
    reason = os.strerror(number).lower() if number else "the system gave no reason"
    return ConnectFailed(f"{_could_not(trip)}: {reason}.", cause=_whose(trip, "other"))


def _unresolved(error: socket.gaierror, trip: Trip) -> ConnectFailed:
    cause = _whose(trip, "dns")
    if error.errno == socket.EAI_NONAME:
        return ConnectFailed(
            f"{_could_not(trip)}: the host name does not exist; check its spelling.", cause=cause, permanent=True
        )
    return ConnectFailed(f"{_could_not(trip)}: the host name could not be looked up now.", cause=cause)


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
    return errno.ECONNREFUSED if errno.ECONNREFUSED in numbers else (numbers[0] if numbers else None)


def _could_not(trip: Trip) -> str:
    through = "" if trip.proxy is None else f" through the proxy {trip.proxy.url}"
    return f"could not connect to {trip.origin}{through}"


def _whose(trip: Trip, cause: str) -> str:
    return cause if trip.proxy is None else "proxy"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)[:200]
