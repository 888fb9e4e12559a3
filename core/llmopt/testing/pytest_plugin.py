"""The pytest fixture ``llmopt_fake``.

A wall: pytest imports this file in every run of every project that has llmopt installed, so it imports
nothing of llmopt until the fixture is used.

The fixture makes a provider in memory discoverable for one test; there is no other I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from llmopt.testing.fake import FakeProvider


@pytest.fixture
def llmopt_fake() -> Iterator[FakeProvider]:
    """A `llmopt.testing.FakeProvider` called "fake"."""
    from llmopt.testing.fake import FakeProvider

    with FakeProvider() as fake:
        yield fake
