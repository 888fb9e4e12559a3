"""Whether an endpoint is sent packed request bodies.

A server that does not unpack them answers 415, or takes them for bad JSON and says 400 or 422 in the words of its
parser ("invalid character", "error parsing the body", "unsupported encoding"). No words are looked for: what
may have been refused for being packed is sent once more as it is, and if the server then takes it, packing was the
reason. If it says something else that has nothing to do with packing (a rate limit, a refused key, an outage), nothing is
concluded. A server that has taken packed bodies is believed when it calls a request bad, but not for
ever: what stands in front of it may change.
"""

from __future__ import annotations

from typing import Final

_UNSUPPORTED: Final = 415
_BAD: Final = (400, 422)
_READ: Final = (400, 404, 413, 422)
_MOST: Final = 8
"""Refusals in a row, after a packed request was taken, that are believed to be for something else."""


class PackingTrust:
    """What is known of one endpoint.

    Attributes:
        on: whether it is sent packed bodies; once off, for ever.
    """

    __slots__ = ("_belief", "on")

    def __init__(self) -> None:
        self.on = True
        self._belief = 0

    def doubts(self, status: int) -> bool:
        """A packed request was answered with this status; whether it is to be sent again as it was before packing."""
        if 200 <= status < 300:
            self._belief = _MOST if self.on else 0
        elif status in _BAD and self._belief:
            self._belief -= 1
        else:
            return status == _UNSUPPORTED or status in _BAD
        return False

    def compare(self, packed: int, plain: int) -> bool:
        """The same request had one status packed and one as it was; whether that ends packing, now and here."""
        # A body that is refused as bad once it is read was refused before for how it came, if that is what 415 said.
        read = 200 <= plain < 300 or (packed == _UNSUPPORTED and plain in _READ)
        if not self.on or not read:
            return False
        self.on, self._belief = False, 0
        return True
