"""The one place that turns the exceptions of aiohttp and of the system into llmopt's errors.

Those of aiohttp are never chained: they hold the request with its headers.
"""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.streams import EofStream

from llmopt.errors import LLMOptError
from llmopt.wire import endings
from llmopt.wire.trip import Trip


def translate(error: BaseException, trip: Trip) -> LLMOptError | None:
    """The error of llmopt for whatever ended an attempt, or None for what is not to be translated.

    A cancellation is the caller's and passes, unless it is how aiohttp says that the pool was closed.
    """
    if isinstance(error, LLMOptError):
        return endings.placed(error, trip)
    if trip.closed and _ours(error):
        return endings.placed(endings.closed(), trip)
    fault = _fault(error, trip)
    return None if fault is None else endings.placed(fault, trip)


def _ours(error: BaseException) -> bool:
    """Whether closing the pool can have brought it about: a cancellation that nobody asked of this task."""
    if not isinstance(error, asyncio.CancelledError):
        return isinstance(error, Exception)
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def _fault(error: BaseException, trip: Trip) -> LLMOptError | None:
    # One with a number is the system's: the peer's machine does not react.
    if isinstance(error, TimeoutError) and error.errno is None:
        return endings.attempt_timeout(trip)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return endings.unsendable(trip)
    return _unconnected(error, trip) if trip.connecting else _broken(error, trip)


def _broken(error: BaseException, trip: Trip) -> LLMOptError | None:
    if isinstance(error, HttpProcessingError):
        return endings.malformed(trip)
    if isinstance(error, aiohttp.ClientPayloadError) and not trip.broken:
        return endings.truncated(trip)
    # RuntimeError is what aiohttp reports when it reads from a connection that is gone.
    if isinstance(error, (aiohttp.ClientError, OSError, EofStream, RuntimeError)):
        return endings.lost(trip)
    return None


def _unconnected(error: BaseException, trip: Trip) -> LLMOptError | None:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return endings.proxy_refused(trip, error.status, error.message)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        found = error.certificate_error
        return endings.connect_failed(found if isinstance(found, OSError) else None, trip)
    if isinstance(error, aiohttp.ClientConnectorError):
        return endings.connect_failed(error.os_error, trip)
    if isinstance(error, aiohttp.ClientOSError) or not isinstance(error, OSError):
        known = isinstance(error, (aiohttp.ClientError, HttpProcessingError, RuntimeError))
        return endings.connect_failed(None, trip) if known else None
    return endings.connect_failed(error, trip)
