"""Splits bytes into chunks, in every way that a network may split them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence

from llmopt import ServerEvent
from llmopt.decoding.sse import StreamDecoder


def events(decoder: StreamDecoder, pieces: Iterable[bytes]) -> list[ServerEvent]:
    """All events of a stream in these pieces."""
    result = [event for piece in pieces for event in decoder.feed(piece)]
    return result + decoder.end()


def halves(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Two pieces, split at every place."""
    return ((body[:place], body[place:]) for place in range(len(body) + 1))


def single_bytes(body: bytes) -> Sequence[bytes]:
    """One piece for each byte."""
    return [body[place : place + 1] for place in range(len(body))]


def random_cuts(body: bytes, seed: int) -> Sequence[bytes]:
    """Pieces of random sizes, some of them empty."""
    rng = random.Random(seed)
    places = sorted(rng.randint(0, len(body)) for _ in range(rng.randint(1, 40)))
    return [body[start:stop] for start, stop in zip([0, *places], [*places, len(body)], strict=True)]
