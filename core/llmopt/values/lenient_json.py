"""JSON as servers and files really have it: mistakes of writers whose meaning is certain are corrected.

Strict parsing comes first, so that correct JSON costs nothing; only what a parser refuses is looked at here.

Pure: no I/O, no clock, no state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

_T = TypeVar("_T")
_decode: Final = msgspec.json.Decoder().decode

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""RFC 8259, 8.1: a writer must not add it, a reader may ignore it."""
REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"
"""Takes the place of half a surrogate pair, as in a decoder of UTF-8 and in JavaScript's ``toWellFormed``."""
# A pair, half a pair, or any other escape, so that the second backslash of two begins none.
_ESCAPE: Final = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[dD][89a-fA-F][0-9a-fA-F]{2}|.)",
    re.DOTALL,
)
_QUOTE: Final = ord('"')
_HALF_ESCAPE_LENGTH: Final = len(rb"\ud83d")
# Java and some databases encode each half of a pair as three bytes (CESU-8); in UTF-8 they do not occur.
_ENCODED_HALVES: Final = re.compile(rb"(?:\xed[\xa0-\xbf][\x80-\xbf])+")
# A string, also one that is cut off, or a constant outside of strings.
_CONSTANT: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)|-?\b(?:NaN|Infinity)\b', re.DOTALL)


def decode_json(data: bytes, decode: Callable[[bytes], _T] = _decode) -> _T:
    """Decode JSON, after a correction if that is necessary.

    Args:
        data: JSON in UTF-8.
        decode: of a `msgspec.json.Decoder`.

    Raises:
        msgspec.ValidationError: the value has another type.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: it is not JSON.
    """
    try:
        return decode(data)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError):
        corrected = corrected_json(data)
        if corrected == data:
            raise
        return decode(corrected)


def corrected_json(data: bytes) -> bytes:
    """The JSON that the writer meant.

    A byte order mark is left out. NaN and infinite numbers, which JSON lacks and Python writes, become null. Half of
    a surrogate pair, which remains where a text was cut between two UTF-16 units, becomes U+FFFD; two halves
    that were encoded one by one are joined. Whatever else is wrong stays.
    """
    data = without_halves(data.removeprefix(BYTE_ORDER_MARK))
    if b"\\ud" in data or b"\\uD" in data:
        data = _ESCAPE.sub(lambda each: rb"\ufffd" if len(each[0]) == _HALF_ESCAPE_LENGTH else each[0], data)
    if b"NaN" in data or b"Infinity" in data:
        data = _CONSTANT.sub(lambda each: each[0] if each[0].startswith(b'"') else b"null", data)
    return data


def single_halves(data: bytes) -> list[int]:
    """The code units of the escaped halves that another text may complete.

    A second half does so at the beginning of a text, a first one at its end.
    """
    found = [match for match in _ESCAPE.finditer(data) if len(match[0]) == _HALF_ESCAPE_LENGTH]
    units = [(ord(json.loads(b'"%b"' % match[0])), match.start() - 1, match.end()) for match in found]
    return [unit for unit, before, after in units if data[before if unit >= 0xDC00 else after] == _QUOTE]


def without_halves(data: bytes) -> bytes:
    """UTF-8 without encoded halves of surrogate pairs: pairs are joined, and a single half becomes U+FFFD."""
    return _ENCODED_HALVES.sub(_joined, data) if b"\xed" in data else data


def _joined(halves: re.Match[bytes]) -> bytes:
    return join_halves(halves[0].decode("utf-8", "surrogatepass")).encode()


def join_halves(text: str) -> str:
    """Text without halves of surrogate pairs: pairs are joined, and a single half becomes U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
