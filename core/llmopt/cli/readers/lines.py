"""Bytes into lines: decoded in large pieces, so that a line costs next to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from llmopt.cli.exits import BadInput
from llmopt.cli.readers.source import Source

_LONGEST_LINE: Final = 64 << 20


class Lines:
    """The text of a source in pieces of whole lines, without a byte order mark.

    Args:
        source: where the bytes come from.
    """

    def __init__(self, source: Source) -> None:
        self._source: Final = source
        self.name: Final = source.name

    def pieces(self) -> Iterator[str]:
        """Text that ends with a line feed, except for the last piece perhaps.

        Raises:
            BadInput: a byte is not UTF-8, or a line never ends; all lines before it come first.
        """
        line, offset = 1, 0
        for chunk in self._chunks():
            try:
                text = chunk.decode()
            except UnicodeDecodeError as error:
                start = chunk.rfind(b"\n", 0, error.start) + 1
                yield _without_mark(chunk[:start].decode(), offset)
                raise self._undecodable(chunk, error.start, line, offset) from None
            yield _without_mark(text, offset)
            line += chunk.count(b"\n")
            offset += len(chunk)

    def _undecodable(self, chunk: bytes, at: int, line: int, offset: int) -> BadInput:
        return BadInput(
            f"{self.name}, line {line + chunk.count(10, 0, at)}: byte {offset + at + 1} of the input "
            f"(0x{chunk[at]:02X}) is not UTF-8; convert it first, for instance with: iconv -f LATIN1 -t UTF-8"
        )

    def _chunks(self) -> Iterator[bytes]:
        """Blocks, cut behind a line feed."""
        parts: list[bytes] = []
        size = 0
        for block in self._source.blocks():
            end = block.rfind(b"\n") + 1
            if end:
                yield b"".join([*parts, block[:end]])
                parts, size = [], 0
            parts.append(block[end:])
            size += len(block) - end
            if size > _LONGEST_LINE:
                raise BadInput(
                    f"{self.name} has a line of more than {_LONGEST_LINE >> 20} MiB; cut it into several texts."
                )
        if size:
            yield b"".join(parts)


def _without_mark(text: str, offset: int) -> str:
    return text if offset else text.removeprefix("\ufeff")
