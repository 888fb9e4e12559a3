"""Every fault that a server can play: right vectors or one clear error, and the next call succeeds."""

from __future__ import annotations

import functools
import logging
import traceback
from typing import Any

import numpy as np
import pytest

import llmopt
from llmopt.policies.clock import Clock
from tests.support.configuration import provider_config
from tests.support.faults import FaultServer, answer_openai, faults_of, vector_for
from tests.support.faults.fault import Fault
from tests.support.scale import NIGHTLY, nightly_only
from tests.support.simulated import run_fault

KEY = "canary-key-58d1"
TEXTS = ["canary-text-a07c one", "canary-text-a07c two", "canary-text-a07c three"]
LATE_STRAY = ("N06", "another answer right behind it")
"""An answer to nothing that arrives in the same instant as the next request leaves is that request's
answer as far as anybody on this side can tell. Those that lie there before are found: see the other
variants of N06, and tests/transport."""

EMBEDDINGS = [
    fault
    for fault in faults_of("N", "H", "P")
    # P13 is of catalogues; P11, a zero or constant vector, is an answer like any other and is accepted.
    if fault.row not in {"P11", "P13"} and (fault.row, fault.name) != LATE_STRAY
]


REFUSED_KEYS = {"H07", "H11"}
"""A key that was refused, or that has no money left, is not used again for a while."""


WAITS = {"H01", "H02", "H03", "H04", "H05", "H06"}
"""Hints to wait: the next call keeps to them too, so they are tested in simulated time."""


config = functools.partial(provider_config, api_key=KEY, timeouts={"connect": 0.5, "read": 0.5, "pool": 0.5})


def expected() -> np.ndarray[Any, Any]:
    return np.array([vector_for(text, 4) for text in TEXTS], dtype=np.float32)


def shown(error: BaseException) -> str:
    return "\n".join([repr(error), *traceback.format_exception(error)])


WAYS = [pytest.param(True, id="lane"), pytest.param(False, id="no lane", marks=nightly_only)]
"""The second call of each test runs in the lane, or without it; nothing that is seen may differ."""


@pytest.mark.parametrize("lane", WAYS)
@pytest.mark.parametrize("fault", EMBEDDINGS, ids=str)
def test_one_attempt_returns_correct_rows_or_one_clear_error(
    fault: Fault, lane: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Never a shifted row, never another kind of exception, never the key or a text in what is shown."""
    check_one_attempt(fault, caplog, lane=lane)


NOT_OVER_HTTPX = {
    ("N05", "length too short"),
    ("N05", "length 0"),
    ("N06", "another answer in the same segment"),
    ("N06", "noise in the same segment"),
}
"""httpx's pool keeps a connection on which bytes lie that nobody asked for."""
OVER_HTTPX = [fault for fault in EMBEDDINGS if (fault.row, fault.name) not in NOT_OVER_HTTPX]


@pytest.mark.parametrize("fault", OVER_HTTPX if NIGHTLY else OVER_HTTPX[::20], ids=str)
def test_the_same_over_httpx(fault: Fault, caplog: pytest.LogCaptureFixture) -> None:
    """With ``transport = "httpx"``; docs/development/fault-matrix.md says why some rows are left out."""
    check_one_attempt(fault, caplog, transport="httpx")


def check_one_attempt(
    fault: Fault, caplog: pytest.LogCaptureFixture, *, lane: bool = True, **entry: Any
) -> None:
    async def main(clock: Clock) -> None:
        caplog.set_level(logging.DEBUG)
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, **entry), clock=clock, flags={"retry": False, "lane": lane}
            ) as client,
        ):
            server.default(answer_openai)
            # What the model's vectors look like is known from an earlier call.
            await client.embed("server/model", TEXTS)
            fault.inject(server)
            try:
                found = await client.embed("server/model", TEXTS)
            except llmopt.LLMOptError as error:
                assert error.provider == "server"
                assert error.endpoint == server.base_url.removesuffix("/v1")
                assert error.attempts
                text = shown(error)
                assert KEY not in text
                assert "canary-text" not in text.replace("TEXTS", "")
            else:
                np.testing.assert_array_equal(found.vectors, expected())
            if fault.row not in REFUSED_KEYS | WAITS:
                again = await client.embed("server/model", TEXTS)
                np.testing.assert_array_equal(again.vectors, expected())
        assert KEY not in caplog.text
        assert "canary-text" not in caplog.text

    run_fault(fault, main)


VETOED = {"408, x-should-retry false", "409, x-should-retry false"}

RETRIED = [fault for fault in EMBEDDINGS if fault.row not in WAITS and fault.name not in VETOED]


@pytest.mark.parametrize("lane", WAYS)
@pytest.mark.parametrize("fault", RETRIED, ids=str)
def test_retries_hide_a_transient_fault_or_end_in_one_clear_error(fault: Fault, lane: bool) -> None:
    """What may be retried comes right; what may not is sent once."""

    async def main(clock: Clock) -> None:
        async with (
            FaultServer(sleep=clock.sleep, clock=clock.now) as server,
            llmopt.AsyncClient(
                config(server, retry_delay=0.001), clock=clock, flags={"lane": lane}
            ) as client,
        ):
            server.default(answer_openai)
            await client.embed("server/model", TEXTS)
            before = len(server.requests)
            fault.inject(server)
            try:
                found = await client.embed("server/model", TEXTS)
            except llmopt.LLMOptError as error:
                assert not isinstance(error, (llmopt.TransportError, llmopt.ServerError, llmopt.Overloaded))
                assert len(server.requests) - before <= 2
            else:
                np.testing.assert_array_equal(found.vectors, expected())
                assert len(server.requests) - before <= 1 + len(TEXTS)

    run_fault(fault, main)
