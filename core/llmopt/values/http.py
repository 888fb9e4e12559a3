"""A request and an answer as plugins see them: no HTTP library's types."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import msgspec
from attrs import field, frozen

from llmopt.errors import InvalidResponse
from llmopt.values.attempt import AttemptInfo
from llmopt.values.shown import names, size


@frozen(kw_only=True)
class HttpRequest:
    """What to send.

    Attributes:
        method: "GET" or "POST".
        path: appended to the endpoint's base URL; or a whole URL of that endpoint's own origin.
        headers: header names and values; the place, and the only one, for a secret.
        json: the body, encoded once by the core; None for no body.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(factory=dict, repr=names)
    json: Any = field(default=None, repr=False)


@frozen(kw_only=True, slots=False)
class HttpResponse:
    """A complete answer.

    Attributes:
        status: HTTP status.
        headers: lower-case names; of a repeated header the values are joined with ", ".
        body: the unpacked body.
        info: how the request travelled.
        received: when it came, in seconds since 1970: what dates in headers are measured against.
    """

    status: int
    headers: Mapping[str, str] = field(factory=dict, repr=False)
    body: bytes = field(default=b"", repr=size)
    info: AttemptInfo = field(factory=AttemptInfo)
    received: float = field(factory=time.time, eq=False)

    @cached_property
    def json(self) -> Any:
        """The body as JSON (UTF-8 only).

        Raises:
            InvalidResponse: the body is not JSON.
        """
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            kind = self.headers.get("content-type", "no content type")
            raise InvalidResponse(
                f"the answer ({kind[:80]}, {len(self.body)} bytes) is not JSON.",
                reason="json",
                status=self.status,
                sent="yes",
            ) from error
