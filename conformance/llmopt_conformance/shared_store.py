"""Conformance tests for stores of shared limits, that is for implementations of `llmopt.SharedState`.

::

    from llmopt_conformance import StoreServer, shared_state


    def server(clock):
        return StoreServer(connect=lambda: ValkeyState("valkey://127.0.0.1:6379/9"), restart=flush)


    test_shared_state = shared_state(server)

Each check is a test of its own, with quotas of its own. The checks wait for the store's clock, 5 s in all. They allow for
0.15 s of delay in the store and on the way to it.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from attrs import field, frozen

from llmopt import Reservation, SharedCost, SharedRate, SharedRates, SharedState
from llmopt.testing import SimulatedClock, run_simulated
from llmopt_conformance.subject import CheckFailed, NotApplicable, expect

RATE: Final = 20.0
BURST: Final = 10.0
TOLERANCE_S: Final = 0.15
RATES: Final = SharedRates(requests=SharedRate(RATE, BURST), tokens=SharedRate(100 * RATE, 100 * BURST))
NOTHING: Final = SharedCost()


@frozen(kw_only=True)
class StoreServer:
    """A server with a store, as the checks need it.

    Attributes:
        connect: makes the `llmopt.SharedState` of one more client; may be asynchronous.
        restart: makes the server forget everything, as a restart without persistence does; None if that is not possible.
        sleep: waits while the server's clock goes on.
    """

    connect: Callable[[], SharedState | Awaitable[SharedState]]
    restart: Callable[[], object] | None = None
    sleep: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep)


class Probe:
    """What a check works with: clients of one server, and one quota.

    Attributes:
        server: the server.
        quota: name of a quota that no other check uses.
    """

    def __init__(self, server: StoreServer) -> None:
        self.server: Final = server
        self.quota: Final = os.urandom(32)
        self._clients: Final[list[SharedState]] = []

    async def client(self) -> SharedState:
        """One more client."""
        made = self.server.connect()
        client = await made if inspect.isawaitable(made) else made
        expect(
            isinstance(client, SharedState), f"{type(client).__name__} lacks methods of llmopt.SharedState"
        )
        self._clients.append(client)
        return client

    async def reserve(
        self,
        client: SharedState,
        requests: float,
        tokens: float = 0.0,
        *,
        least: SharedCost | None = None,
        ahead: float = 0.0,
        rates: SharedRates = RATES,
    ) -> Reservation:
        """Reserve in the quota of the check."""
        want = SharedCost(requests, tokens)
        answer = await client.reserve(
            self.quota, want, least or want, rates, max_ahead_s=ahead, priority="interactive"
        )
        expect(
            isinstance(answer, Reservation),
            f"reserve returned {type(answer).__name__}, no llmopt.Reservation",
        )
        return answer

    async def aclose(self) -> None:
        """Close all clients."""
        for client in self._clients:
            await client.aclose()


StoreCheck = Callable[[Probe], Coroutine[Any, Any, None]]


def _granted(answer: Reservation, requests: float, tokens: float = 0.0) -> None:
    expect(
        abs(answer.granted.requests - requests) < 1e-3 and abs(answer.granted.tokens - tokens) < 1e-3,
        f"granted {answer.granted}, not {requests:g} requests and {tokens:g} tokens",
    )


def _about(seconds: float, expected: float, what: str) -> None:
    expect(abs(seconds - expected) <= TOLERANCE_S, f"{what} is {seconds:.3f} s, not about {expected:.3f} s")


async def new_bucket_is_full(probe: Probe) -> None:
    """A bucket that is seen for the first time holds its burst, and no more."""
    client = await probe.client()
    answer = await probe.reserve(client, BURST, 100 * BURST)
    _granted(answer, BURST, 100 * BURST)
    _about(answer.delay_s, 0.0, "the delay of a full burst")
    _granted(await probe.reserve(client, BURST / 2), 0.0)


async def both_or_neither(probe: Probe) -> None:
    """What lacks tokens takes no requests, and the reverse."""
    client = await probe.client()
    _granted(await probe.reserve(client, 1.0, 200 * BURST), 0.0)
    _granted(await probe.reserve(client, 2 * BURST, 1.0), 0.0)
    _granted(await probe.reserve(client, BURST, 100 * BURST), BURST, 100 * BURST)


async def reservations_ahead_queue(probe: Probe) -> None:
    """What is not there yet is granted with the delay until it is; each reservation stands behind the ones before."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    first = await probe.reserve(client, RATE / 4, ahead=1.0)
    second = await probe.reserve(client, RATE / 4, ahead=1.0)
    _granted(first, RATE / 4)
    _about(first.delay_s, 0.25, "the delay of the first reservation ahead")
    _about(second.delay_s, 0.5, "the delay of the second reservation ahead")


async def no_further_than_max_ahead(probe: Probe) -> None:
    """Beyond ``max_ahead_s`` nothing is granted, and the delay says when it is worth asking again."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    answer = await probe.reserve(client, RATE, ahead=0.5)
    _granted(answer, 0.0)
    _about(answer.delay_s, 0.5, "the delay until it is worth asking again")
    await probe.server.sleep(answer.delay_s + 0.01)
    _granted(await probe.reserve(client, RATE, ahead=0.5 + TOLERANCE_S), RATE)


async def least_instead_of_want(probe: Probe) -> None:
    """Where ``want`` is too far ahead, at least ``least`` is granted."""
    client = await probe.client()
    answer = await probe.reserve(client, 5 * BURST, 0.0, least=SharedCost(1.0, 0.0))
    granted = answer.granted.requests
    expect(1.0 <= granted < 5 * BURST, f"granted {granted:g} requests, not 1 or a few more")


async def delay_is_of_the_later_quantity(probe: Probe) -> None:
    """The delay is that of the quantity that is there later."""
    client = await probe.client()
    await probe.reserve(client, BURST, 100 * BURST)
    answer = await probe.reserve(client, RATE / 10, 100 * RATE / 2, ahead=1.0)
    _about(answer.delay_s, 0.5, "the delay, which the tokens decide,")


async def bucket_refills(probe: Probe) -> None:
    """The bucket fills up at its rate, to its burst at most."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    await probe.server.sleep(0.25)
    _granted(await probe.reserve(client, RATE / 4), RATE / 4)
    await probe.server.sleep(BURST / RATE + TOLERANCE_S)
    _granted(await probe.reserve(client, BURST + RATE * TOLERANCE_S + 1), 0.0)
    _granted(await probe.reserve(client, BURST), BURST)


async def refund_fills_no_more_than_the_burst(probe: Probe) -> None:
    """A refund can be reserved again; a bucket never holds more than its burst."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    await client.refund(probe.quota, SharedCost(BURST / 2, 0.0), RATES)
    _granted(await probe.reserve(client, BURST / 2), BURST / 2)
    await client.refund(probe.quota, SharedCost(10 * BURST, 1_000 * BURST), RATES)
    answer = await probe.reserve(client, BURST + RATE * TOLERANCE_S + 1)
    _granted(answer, 0.0)
    _granted(await probe.reserve(client, BURST, 100 * BURST), BURST, 100 * BURST)


async def refund_of_a_reservation_ahead(probe: Probe) -> None:
    """A refund of what was reserved ahead brings the ones behind it forward."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    ahead = await probe.reserve(client, RATE / 2, ahead=1.0)
    await client.refund(probe.quota, ahead.granted, RATES)
    _about((await probe.reserve(client, RATE / 4, ahead=1.0)).delay_s, 0.25, "the delay after the refund")


async def one_limit_only(probe: Probe) -> None:
    """A quantity without a limit is not counted, and does not hold the other one back."""
    client = await probe.client()
    requests_only = SharedRates(requests=SharedRate(RATE, BURST))
    _granted(await probe.reserve(client, 1.0, 0.0, rates=requests_only), 1.0)
    tokens_only = SharedRates(tokens=SharedRate(100 * RATE, 100 * BURST))
    probe = Probe(probe.server)
    _granted(await probe.reserve(client, 0.0, 50 * BURST, rates=tokens_only), 0.0, 50 * BURST)
    _granted(await probe.reserve(client, 0.0, 90 * BURST, rates=tokens_only), 0.0)


async def clients_share_one_bucket(probe: Probe) -> None:
    """What one client takes, the others do not get; each answer tells how many they are and what all have taken."""
    one, two = await probe.client(), await probe.client()
    await probe.reserve(one, BURST / 2, 100.0)
    answer = await probe.reserve(two, BURST / 2, 100.0)
    _granted(answer, BURST / 2, 100.0)
    _granted(await probe.reserve(one, BURST / 2), 0.0)
    expect(answer.clients == 2, f"{answer.clients} clients, not 2")
    total = (answer.total.requests, answer.total.tokens)
    expect(total == (BURST, 200.0), f"the total is {total}, not {(BURST, 200.0)}")


async def calls_at_once_are_atomic(probe: Probe) -> None:
    """Many calls of several clients at once get the burst together, and what flows in meanwhile."""
    clients = [await probe.client() for _ in range(3)]
    answers = await asyncio.gather(*(probe.reserve(clients[number % 3], 1.0) for number in range(60)))
    granted = sum(answer.granted.requests for answer in answers)
    most = BURST + RATE * TOLERANCE_S * 4
    expect(BURST <= granted <= most, f"{granted:g} requests were granted at once, of a burst of {BURST:g}")


async def quotas_are_independent(probe: Probe) -> None:
    """Another quota has a bucket of its own."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    _granted(await Probe(probe.server).reserve(client, BURST), BURST)


async def rates_change(probe: Probe) -> None:
    """The limits of the newest call apply."""
    client = await probe.client()
    await probe.reserve(client, BURST)
    faster = SharedRates(requests=SharedRate(4 * RATE, BURST))
    answer = await probe.reserve(client, RATE, ahead=1.0, rates=faster)
    _about(answer.delay_s, 0.25, "the delay at four times the rate")


async def pause_stops_all(probe: Probe) -> None:
    """A pause of one client stops all, for as long as the longest one."""
    one, two = await probe.client(), await probe.client()
    await probe.reserve(two, 1.0)
    await one.pause(probe.quota, 0.6)
    await one.pause(probe.quota, 0.1)
    answer = await probe.reserve(two, 1.0, ahead=5.0)
    _granted(answer, 0.0)
    _about(answer.pause_s, 0.6, "the pause")
    expect(answer.delay_s >= answer.pause_s - TOLERANCE_S, "the delay ends before the pause")
    _granted(await Probe(probe.server).reserve(two, 1.0), 1.0)
    await probe.server.sleep(0.6 + TOLERANCE_S)
    answer = await probe.reserve(two, 1.0)
    _granted(answer, 1.0)
    expect(answer.pause_s == 0, f"a pause that is over is still reported: {answer.pause_s:.3f} s")


async def records_are_published(probe: Probe) -> None:
    """The last record of a name is read by all, with another version than the one before."""
    one, two = await probe.client(), await probe.client()
    name = os.urandom(32)
    expect(await two.read(name) is None, "a record is there that nobody has published")
    await one.publish(name, {"rpm": 600.0, "by": "one"}, 60.0)
    first = await two.read(name)
    await two.publish(name, {"rpm": 300.5, "by": "two"}, 60.0)
    second = await one.read(name)
    if first is None or second is None:
        raise CheckFailed("a published record cannot be read")
    expect(dict(first.state) == {"rpm": 600.0, "by": "one"}, f"read {dict(first.state)}")
    expect(dict(second.state) == {"rpm": 300.5, "by": "two"}, f"read {dict(second.state)}")
    expect(first.version != second.version, "two records have the same version")
    expect(0 < second.left_s <= 60.0, f"{second.left_s:.3f} s are left of 60 s")


async def records_expire(probe: Probe) -> None:
    """A record is forgotten after its time, and tells how much is left of it."""
    client = await probe.client()
    name = os.urandom(32)
    await client.publish(name, {"circuit": "c"}, 0.5)
    await probe.server.sleep(0.2)
    record = await client.read(name)
    if record is None:
        raise CheckFailed("a record is gone before its time")
    _about(record.left_s, 0.3, "what is left")
    await probe.server.sleep(0.3 + TOLERANCE_S)
    expect(await client.read(name) is None, "a record is still there after its time")


async def restart_is_survived(probe: Probe) -> None:
    """After a restart without its data the store works as a new one, for the clients from before, too."""
    if probe.server.restart is None:
        raise NotApplicable("the server cannot be restarted")
    client = await probe.client()
    await probe.reserve(client, BURST)
    done = probe.server.restart()
    if inspect.isawaitable(done):
        await done
    try:
        answer = await probe.reserve(client, 1.0)
    except Exception:  # noqa: BLE001 - the first call may find the connection closed, whatever that raises
        answer = await probe.reserve(client, 1.0)
    _granted(answer, 1.0)


async def cancelled_calls_mix_up_no_answers(probe: Probe) -> None:
    """After cancelled calls a client still gets the answers to its own calls."""
    client = await probe.client()
    for number in range(20):
        task = asyncio.ensure_future(probe.reserve(client, 0.01))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        name = os.urandom(32)
        await client.publish(name, {"number": float(number)}, 60.0)
        record = await client.read(name)
        expect(
            record is not None and record.state.get("number") == number,
            f"read {record} after a cancelled call",
        )


async def closing_twice(probe: Probe) -> None:
    """A client may be closed twice."""
    client = await probe.client()
    await probe.reserve(client, 1.0)
    await client.aclose()
    await client.aclose()


STORE_CHECKS: Final[tuple[StoreCheck, ...]] = (
    new_bucket_is_full,
    both_or_neither,
    reservations_ahead_queue,
    no_further_than_max_ahead,
    least_instead_of_want,
    delay_is_of_the_later_quantity,
    bucket_refills,
    refund_fills_no_more_than_the_burst,
    refund_of_a_reservation_ahead,
    one_limit_only,
    clients_share_one_bucket,
    calls_at_once_are_atomic,
    quotas_are_independent,
    rates_change,
    pause_stops_all,
    records_are_published,
    records_expire,
    restart_is_survived,
    cancelled_calls_mix_up_no_answers,
    closing_twice,
)


def run_store_check(
    check: StoreCheck, server: Callable[[SimulatedClock], StoreServer], *, simulated: bool = False
) -> None:
    """Run one check.

    Args:
        check: one of `STORE_CHECKS`.
        server: see `shared_state`.
        simulated: see `shared_state`.

    Raises:
        CheckFailed: the store does not conform.
        NotApplicable: the check does not apply to it.
    """

    async def main(clock: SimulatedClock) -> None:
        probe = Probe(server(clock))
        try:
            await check(probe)
        finally:
            await probe.aclose()

    if simulated:
        run_simulated(main)
    else:
        asyncio.run(main(SimulatedClock()))


def shared_state(
    server: Callable[[SimulatedClock], StoreServer], *, simulated: bool = False
) -> Callable[..., None]:
    """A test that pytest runs once for each check of a store.

    Args:
        server: makes the server for one check; it gets the clock of a simulation, which a real store ignores.
        simulated: whether the checks run in simulated time.
    """
    import pytest

    @pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.__name__)
    def test_shared_state(check: StoreCheck) -> None:
        """The store conforms."""
        __tracebackhide__ = True
        try:
            run_store_check(check, server, simulated=simulated)
        except CheckFailed as error:
            failed = f"{check.__doc__}\n{error}"
        except NotApplicable as reason:
            pytest.skip(str(reason))
        else:
            return
        pytest.fail(failed, pytrace=False)

    return test_shared_state
