"""The blocks of a shared quota: when they are reserved, how large they are, and what is spent without a store."""

from __future__ import annotations

import math
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt.shared.blocks import IDLE_S, Block, SharedBlocks, Waiting
from llmopt.shared.state import Reservation, SharedCost

RATE: Final = 100.0
BURST: Final = 90.0
ONE: Final = (1.0, 10.0)


def blocks_of(requests: float = RATE, tokens: float = math.inf, *, required: bool = False) -> SharedBlocks:
    blocks = SharedBlocks(0.0, lambda: True, required=required)
    blocks.set_limits(requests, tokens)
    return blocks


def ask(blocks: SharedBlocks, now: float, waiting: Waiting | None = None) -> Block:
    block = blocks.next_block(now, waiting or Waiting())
    assert block is not None
    return block


def grant(
    blocks: SharedBlocks,
    now: float,
    requests: float,
    *,
    delay: float = 0.0,
    clients: int = 4,
    total: float = 0.0,
) -> None:
    """The store grants ``requests`` to the request that waits first."""
    block = ask(blocks, now, Waiting(1, ONE))
    answer = Reservation(
        granted=SharedCost(requests), delay_s=delay, clients=clients, total=SharedCost(total or requests)
    )
    blocks.granted(now, block, answer)


def test_a_request_waits_until_a_block_is_there() -> None:
    """Without a block nothing is spent."""
    blocks = blocks_of()
    assert blocks.wait_time(0.0, ONE) > 0
    grant(blocks, 0.0, 1.0)
    assert blocks.wait_time(0.0, ONE) == 0
    blocks.take(0.0, ONE)
    assert blocks.wait_time(0.0, ONE) > 0


def test_a_block_reserved_ahead_is_spent_from_its_time_on() -> None:
    """The wait is known exactly, and the store is not asked for what is reserved already."""
    asked = []
    blocks = SharedBlocks(0.0, lambda: bool(asked.append(1)) or True)
    blocks.set_limits(RATE, math.inf)
    grant(blocks, 0.0, 1.0, delay=0.25)
    assert blocks.wait_time(0.1, ONE) == pytest.approx(0.15)
    assert not asked
    assert blocks.wait_time(0.25, ONE) == 0


def test_a_quota_without_a_known_limit_is_not_shared_out() -> None:
    """There is nothing to reserve a part of."""
    blocks = blocks_of(math.inf)
    assert blocks.wait_time(0.0, ONE) == 0
    blocks.take(0.0, ONE)
    assert blocks.next_block(0.0, Waiting()) is None


def test_a_block_is_a_tenth_of_a_second_of_the_own_demand() -> None:
    """Two of them are in hand after a reservation; the next one is reserved when less than one is left."""
    blocks = blocks_of()
    grant(blocks, 0.0, 90.0)
    for number in range(50):
        blocks.take(number / 50, ONE)
    blocks._level[0] = 3.0
    block = ask(blocks, 1.0)
    demand = 50 * (1 - math.exp(-1))
    assert block.want.requests == pytest.approx(2 * demand / 10 - 3, rel=0.05)
    blocks._level[0] = demand / 10 + 0.5
    assert blocks.next_block(1.0, Waiting()) is None


def test_a_block_is_a_quarter_of_the_burst_at_most_and_one_request_at_least() -> None:
    """However many requests wait, and however few there are."""
    tokens = blocks_of(math.inf, 1_000.0)
    many = ask(tokens, 0.0, Waiting(10_000, (1.0, 50.0)))
    assert many.want.tokens == pytest.approx(2 * 100.0)  # 0.1 s of the whole limit, twice
    short = blocks_of(2.0)
    assert ask(short, 0.0, Waiting(10_000, ONE)).want.requests == pytest.approx(1.0)
    large = ask(blocks_of(math.inf, 1_000.0), 0.0, Waiting(1, (1.0, 9_000.0)))
    assert large.least.tokens == large.want.tokens == 9_000.0
    assert large.max_ahead_s >= 9.0


def test_an_answer_without_a_grant_says_when_to_ask_again() -> None:
    """Nothing polls the store before."""
    blocks = blocks_of()
    block = ask(blocks, 0.0, Waiting(1, ONE))
    blocks.granted(0.0, block, Reservation(delay_s=2.0))
    assert blocks.next_block(1.9, Waiting(1, ONE)) is None
    assert blocks.next_block(2.0, Waiting(1, ONE)) is not None


def test_idle_blocks_are_returned_and_those_of_an_active_process_are_not() -> None:
    """All of them, those reserved ahead too, within a second."""
    blocks = blocks_of()
    grant(blocks, 0.0, 5.0)
    grant_ahead = Reservation(granted=SharedCost(3.0), delay_s=9.0)
    blocks.take(0.0, ONE)
    blocks.granted(
        0.0,
        Block(
            want=SharedCost(3.0),
            least=SharedCost(3.0),
            rates=blocks.rates,
            max_ahead_s=1.0,
            priority="interactive",
            debt=(0.0, 0.0),
            asked_at=0.0,
        ),
        grant_ahead,
    )
    assert blocks.release(IDLE_S / 2) is None
    assert blocks.release(IDLE_S) == SharedCost(7.0, 0.0)
    assert blocks.empty
    assert blocks.release(9.0) is None
    assert 2 * IDLE_S < 1


def test_without_an_answer_the_part_of_what_was_granted_is_spent() -> None:
    """Three quarters of what all were granted, so three quarters of the limit."""
    blocks = blocks_of()
    grant(blocks, 0.0, 75.0, total=100.0)
    for _ in range(75):
        blocks.take(0.0, ONE)
    blocks.failed(0.0, 0.0, 1.0)
    assert spent_until(blocks, 10.0) == pytest.approx(0.75 * RATE * 10, rel=0.02)


@pytest.mark.parametrize(("clients", "part"), [(1, 1.0), (4, 0.25)])
def test_an_equal_part_is_spent_at_least(clients: int, part: float) -> None:
    """Of what was granted to all, this process had nearly nothing."""
    blocks = blocks_of()
    grant(blocks, 0.0, 1.0, clients=clients, total=1_000.0)
    blocks.take(0.0, ONE)
    blocks.failed(0.0, 0.0, 1.0)
    assert spent_until(blocks, 10.0) == pytest.approx(part * RATE * 10, rel=0.02)


def test_a_store_that_never_answered_leaves_half() -> None:
    """Nobody knows how many others there are."""
    blocks = blocks_of()
    blocks.failed(0.0, 0.0, 1.0)
    assert spent_until(blocks, 10.0) == pytest.approx(RATE / 2 * 10, rel=0.02)


def spent_until(blocks: SharedBlocks, end: float) -> int:
    """The requests that can be spent until then, one after the other."""
    now, spent = 0.0, 0
    while True:
        wait = blocks.wait_time(now, ONE)
        if now + wait > end:
            return spent
        now += wait
        if blocks.wait_time(now, ONE) == 0:
            blocks.take(now, ONE)
            spent += 1


def test_nothing_is_saved_up_while_the_store_fails() -> None:
    """After a long silence a process has its part of a burst, not of the whole time."""
    blocks = blocks_of()
    blocks.failed(0.0, 0.0, 1.0)
    blocks.wait_time(1_000.0, ONE)
    taken = 0
    while blocks.wait_time(1_000.0, ONE) == 0:
        blocks.take(1_000.0, ONE)
        taken += 1
    assert taken == BURST / 2


def test_what_was_spent_without_the_store_is_reserved_afterwards() -> None:
    """A burst's part at most; the rest of the grant may be spent."""
    blocks = blocks_of()
    blocks.failed(0.0, 0.0, 0.0)
    spent_until(blocks, 0.1)
    block = ask(blocks, 0.1, Waiting(1, ONE))
    assert block.debt[0] == pytest.approx(RATE / 2 * 0.1, rel=0.01)
    blocks.granted(0.1, block, Reservation(granted=block.want, total=block.want))
    assert not blocks.failing
    spent = 0
    while blocks.wait_time(0.1, ONE) == 0:
        blocks.take(0.1, ONE)
        spent += 1
    assert spent == pytest.approx(block.want.requests - block.debt[0], abs=1)

    long = blocks_of()
    long.failed(0.0, 0.0, 0.0)
    spent_until(long, 60.0)
    assert ask(long, 60.0).debt[0] == pytest.approx(BURST / 2)


def test_what_is_reserved_ahead_is_spent_before_the_own_part() -> None:
    """Otherwise both would flow in at once when the store fails."""
    blocks = blocks_of(clients := 10.0)
    grant(blocks, 0.0, 5.0, delay=2.0, clients=1)
    blocks.failed(0.1, 0.1, 1.0)
    assert spent_until(blocks, 2.0) == 5
    assert clients == 10.0


def test_required_spends_nothing_without_the_store() -> None:
    """The block in hand may be used up."""
    blocks = blocks_of(required=True)
    grant(blocks, 0.0, 3.0)
    blocks.failed(0.0, 0.0, 1.0)
    assert spent_until(blocks, 30.0) == 3


def test_a_store_that_counts_from_zero_again_changes_no_part() -> None:
    """After a restart the total is that of a new store."""
    blocks = blocks_of()
    grant(blocks, 0.0, 50.0, total=100.0)
    for _ in range(50):
        blocks.take(0.0, ONE)
    grant(blocks, 1.0, 5.0, total=10.0)
    assert blocks._part(0) == pytest.approx(0.5)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["take", "grant", "return", "fail", "wait"]),
            st.floats(0.0, 3.0),
            st.integers(1, 20),
        ),
        max_size=60,
    )
)
def test_no_more_is_spent_than_was_granted_and_the_own_part(steps: list[tuple[str, float, int]]) -> None:
    """Whatever happens in whatever order."""
    blocks, now, granted, spent, failing_s = blocks_of(), 0.0, 0.0, 0, 0.0
    for step, seconds, number in steps:
        if blocks.failing:
            failing_s += seconds
        now += seconds
        if step == "take" and blocks.wait_time(now, ONE) == 0:
            blocks.take(now, ONE)
            spent += 1
        elif step == "grant":
            waiting = Waiting(number, ONE)
            if (block := blocks.next_block(now, waiting)) is not None:
                blocks.granted(now, block, Reservation(granted=block.want, total=block.want))
                granted += block.want.requests
        elif step == "return" and (back := blocks.release(now)) is not None:
            granted -= back.requests
        elif step == "fail":
            blocks.failed(now, now, 0.0)
    assert spent <= granted + failing_s * RATE + 1e-6
