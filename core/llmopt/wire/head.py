"""The head of a request as bytes. Written once for all requests that share it: a provider's differ in their length only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from llmopt.wire.body import ACCEPT_ENCODING
from llmopt.wire.request import WireRequest
from llmopt.wire.target import Target

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")
_OWN: Final = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": "llmopt"}
_BODILESS: Final = ("GET", "HEAD", "OPTIONS", "TRACE")
_MOST_KEPT: Final = 256


class Heads:
    """The heads written so far.

    Args:
        close: whether the server is told that each connection is for one request.
    """

    def __init__(self, *, close: bool) -> None:
        self._own: Final = {**_OWN, "connection": "close"} if close else _OWN
        self._written: Final[dict[tuple[object, ...], bytes]] = {}
        self._last: tuple[Mapping[str, str], str, str, bytes] = ({}, "", "", b"")

    def of(self, target: Target, request: WireRequest) -> bytes:
        """Everything before the body.

        Raises:
            ValueError: the method or a header holds what HTTP forbids.
        """
        headers, url, method, head = self._last
        # Requests to one endpoint share their headers as an object, too, and nobody changes it.
        if headers is not request.headers or url != request.url or method != request.method:
            head = self._find(target, request)
            self._last = (request.headers, request.url, request.method, head)
        if request.body is not None:
            return b"%bcontent-length: %d\r\n\r\n" % (head, len(request.body))
        return head + (b"\r\n" if request.method in _BODILESS else b"content-length: 0\r\n\r\n")

    def _find(self, target: Target, request: WireRequest) -> bytes:
        key = (request.method, request.url, *request.headers.items())
        head = self._written.get(key)
        if head is None:
            head = self._write(target, request.method, request.headers)
            # A token that changes by the hour, or a path per call, must not grow it for ever.
            if len(self._written) >= _MOST_KEPT:
                self._written.clear()
            self._written[key] = head
        return head

    def _write(self, target: Target, method: str, given: Mapping[str, str]) -> bytes:
        headers = {"host": target.url.host_port_subcomponent or "", **self._own}
        headers.update((name.lower(), value) for name, value in given.items())
        path = target.url.raw_path_qs
        if target.proxy is not None and not target.tunnelled:
            # A proxy is given the whole URL, and its own credentials.
            path = str(target.url)
            if target.proxy.authorization is not None:
                headers["proxy-authorization"] = target.proxy.authorization
        if not _TOKEN.fullmatch(method):
            raise ValueError("the method is none")
        for name, value in headers.items():
            if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
                # Neither is said: it may be a key.
                raise ValueError("a header cannot be sent")
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), ""]
        return "\r\n".join(lines).encode("ascii")
