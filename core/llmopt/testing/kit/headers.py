"""Which headers a request may have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_VALUE: Final = re.compile(r"[\t\x20-\x7e\x80-\xff]*\Z")

OF_THE_WIRE: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
"""Headers that belong to whoever carries the request."""
OF_KEYS: Final = frozenset({"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"})
"""Headers that usually carry a secret."""


def header_faults(headers: Mapping[str, str]) -> list[str]:
    """A sentence for each header that HTTP does not allow. Values are not shown: they may be keys."""
    return [fault for name, value in headers.items() if (fault := _fault(name, value))]


def _fault(name: object, value: object) -> str:
    if not isinstance(name, str) or not _NAME.match(name):
        return f"a header is called {name!r:.60}; names are letters, digits and -."
    if not isinstance(value, str):
        return f"the header {name} is a {type(value).__name__}; expected text."
    if "\r" in value or "\n" in value:
        return f"the header {name} holds a line break (CR or LF), which would start another header."
    if not _VALUE.match(value):
        return f"the header {name} holds a character that HTTP does not allow."
    return ""
