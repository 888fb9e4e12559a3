"""The binary framing of AWS event streams (botocore, `eventstream.py`; Smithy, "Amazon Event Stream Specification").

A message: its length, that of its headers, CRC-32 of both; headers; payload; CRC-32 of everything before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from zlib import crc32

from llmopt import InvalidResponse, ServerEvent

_PRELUDE = struct.Struct(">III")
_STRING = 7
MAX_MESSAGE = 1 << 20


def message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """One message with headers of texts."""
    packed = b"".join(
        struct.pack(">B", len(name))
        + name.encode()
        + struct.pack(">BH", _STRING, len(value))
        + value.encode()
        for name, value in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    start = prelude + struct.pack(">I", crc32(prelude)) + packed + payload
    return start + struct.pack(">I", crc32(start))


class Decoder:
    """What a plugin returns from `decode_stream`: an event for each message, of the type that its headers state."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """A generator: the messages before a broken one count."""
        held = self._held
        held += data
        while len(held) >= _PRELUDE.size:
            size, header_size, check = _PRELUDE.unpack_from(held)
            if check != crc32(held[:8]) or not 16 + header_size <= size <= MAX_MESSAGE:
                raise InvalidResponse("a message of the event stream has a broken prelude.", reason="framing")
            if len(held) < size:
                return
            whole = bytes(held[:size])
            del held[:size]
            if struct.unpack(">I", whole[-4:])[0] != crc32(whole[:-4]):
                raise InvalidResponse("a message of the event stream has a wrong checksum.", reason="framing")
            headers = _headers(whole[12 : 12 + header_size])
            kind = headers.get(":event-type") or headers.get(":exception-type", "")
            name = kind if headers.get(":message-type") == "event" else f"exception {kind}"
            yield ServerEvent(event=name, data=whole[12 + header_size : -4].decode())

    def end(self) -> Iterator[ServerEvent]:
        """A body that ends in a message is cut."""
        if self._held:
            raise InvalidResponse("the event stream ends within a message.", reason="truncated")
        return iter(())


def _headers(data: bytes) -> dict[str, str]:
    found, at = {}, 0
    while at < len(data):
        name = data[at + 1 : at + 1 + data[at]].decode()
        at += 1 + data[at]
        kind, size = struct.unpack_from(">BH", data, at)
        if kind != _STRING:
            raise InvalidResponse("a header of the event stream is not text.", reason="framing")
        found[name] = data[at + 3 : at + 3 + size].decode()
        at += 3 + size
    return found
