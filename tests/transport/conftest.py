"""A fault server and a pool for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from llmopt.transport.pool import ConnectionPool
from tests.support.faults import FaultServer
from tests.transport.helpers import open_pool


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def pool() -> AsyncIterator[ConnectionPool]:
    async with open_pool(pool_size=8) as made:
        yield made
