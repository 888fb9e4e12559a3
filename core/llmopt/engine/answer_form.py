"""Whether the answer to a request for a stream is one."""

from __future__ import annotations

from typing import Final

from attrs import field, frozen

from llmopt.decoding.framing import Decoder, decoder_for
from llmopt.decoding.sse import SSEDecoder
from llmopt.errors import InvalidResponse
from llmopt.values.shown import size
from llmopt.wire.stream import WireStream

_SILENT: Final = ("", "text/plain", "application/octet-stream")
"""Content types that say nothing: what proxies and plain frameworks make of a stream, and of anything else."""
_WHOLE: Final = (b"{", b"[", b"<")
"""How JSON and web pages begin, and no stream of events does."""
_MOST_BYTES: Final = 64 << 20


@frozen(kw_only=True)
class AnswerForm:
    """What an answer is.

    Attributes:
        decoder: of its stream, None for an answer in one piece.
        first: bytes of the stream that were read to find out; None when there was no need.
        body: of an answer in one piece.
    """

    decoder: Decoder | None = None
    first: bytes | None = field(default=None, repr=False)
    body: bytes = field(default=b"", repr=size)


async def form_of(wire: WireStream) -> AnswerForm:
    """The form of an answer: by status and content type, by its first bytes where these say nothing.

    Raises:
        InvalidResponse: an answer in one piece is larger than any can be.
        LLMOptError: as reading does.
    """
    kind = wire.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not 200 <= wire.status < 300:
        return AnswerForm(body=await wire.rest())
    if kind not in _SILENT:
        decoder = decoder_for(kind)
        return AnswerForm(decoder=decoder) if decoder is not None else AnswerForm(body=await wire.rest())
    first = await wire.read()
    if first.lstrip()[:1] in _WHOLE:
        return AnswerForm(body=await _rest(wire, first))
    return AnswerForm(decoder=SSEDecoder(), first=first)


async def _rest(wire: WireStream, first: bytes) -> bytes:
    pieces, size = [first], len(first)
    while piece := await wire.read():
        pieces.append(piece)
        size += len(piece)
        if size > _MOST_BYTES:
            raise InvalidResponse(
                f"the answer is larger than {_MOST_BYTES} bytes, which no chat is.",
                reason="too_large",
                sent="yes",
            )
    return b"".join(pieces)
