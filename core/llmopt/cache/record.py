"""How a value is written: what it is, when it was made, its parts, and a checksum over all of it.

::

    4 bytes   what it is, such as b"LOV1"
    8 bytes   when it was made: seconds since 1970, float64, little-endian
    4 bytes   length of the head, uint32, little-endian
    head      text in UTF-8 or JSON
    body      the rest
    4 bytes   CRC32 of the key and of everything before, uint32, little-endian

Nothing is ever executed or imported to read it (pickle is how caches became a way into a process:
CVE-2025-69872). The key is in the checksum, so that a value moved to another key is no value.
"""

from __future__ import annotations

import struct
from typing import Final
from zlib import crc32

from attrs import field, frozen

from llmopt.values.shown import size

_HEAD: Final = struct.Struct("<4sdI")
_CHECK: Final = struct.Struct("<I")


@frozen(kw_only=True)
class Record:
    """A value that was read and is whole.

    Attributes:
        created: when it was made, in seconds since 1970.
        head: its first part.
        body: its second part, not copied.
    """

    created: float
    head: bytes
    body: memoryview = field(repr=size)


def write_record(kind: bytes, key: bytes, created: float, head: bytes, body: bytes | memoryview) -> bytes:
    """The bytes of a value.

    Args:
        kind: four bytes.
        key: what it is going to be kept under.
        created: when it was made.
        head: its first part.
        body: its second part.
    """
    start = _HEAD.pack(kind, created, len(head)) + head
    # Bodies may be megabytes, which are copied once.
    return b"".join((start, body, _CHECK.pack(crc32(body, crc32(start, crc32(key))))))


def read_record(kind: bytes, key: bytes, data: bytes) -> Record | None:
    """The value that bytes stand for; None when they are of another kind, cut, changed or another key's."""
    try:
        found, created, length = _HEAD.unpack_from(data)
        end = len(data) - _CHECK.size
        (check,) = _CHECK.unpack_from(data, end)
    except (struct.error, TypeError):
        return None
    start = _HEAD.size + length
    view = memoryview(data)
    if found != kind or start > end or crc32(view[:end], crc32(key)) != check:
        return None
    # A date that is none (NaN) is smaller than nothing and larger than nothing.
    if not 0 <= created < 1e12:
        return None
    return Record(created=created, head=bytes(view[_HEAD.size : start]), body=view[start:end])
