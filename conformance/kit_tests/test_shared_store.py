"""The kit for stores of shared limits: the simulated store conforms, and a store with a fault does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from llmopt import Reservation, SharedCost, SharedRate, SharedRates, SharedRecord
from llmopt.testing import SimulatedClock, SimulatedStore
from llmopt_conformance import StoreServer, shared_state
from llmopt_conformance.shared_store import STORE_CHECKS, run_store_check
from llmopt_conformance.subject import CheckFailed, NotApplicable


def server_of(kind: Callable[[SimulatedClock], SimulatedStore]) -> Callable[[SimulatedClock], StoreServer]:
    def make(clock: SimulatedClock) -> StoreServer:
        store = kind(clock)
        return StoreServer(connect=store.connect, restart=lambda: store.start(keep=False), sleep=clock.sleep)

    return make


def simulated(clock: SimulatedClock) -> SimulatedStore:
    return SimulatedStore(clock, delay_s=(0.001, 0.01), skew_s=3_600.0)


test_the_simulated_store = shared_state(server_of(simulated), simulated=True)


class Forgetful(SimulatedStore):
    """Counts tokens only."""

    def reserve(
        self,
        member: str,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        max_ahead_s: float,
    ) -> Reservation:
        return super().reserve(member, quota, want, least, SharedRates(tokens=rates.tokens), max_ahead_s)


class Separate(SimulatedStore):
    """A bucket for each client."""

    def reserve(
        self,
        member: str,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        max_ahead_s: float,
    ) -> Reservation:
        return super().reserve(member, quota + member.encode(), want, least, rates, max_ahead_s)


class Timestamps(SimulatedStore):
    """Answers with moments of its clock in place of delays."""

    def reserve(
        self,
        member: str,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        max_ahead_s: float,
    ) -> Reservation:
        answer = super().reserve(member, quota, want, least, rates, max_ahead_s)
        return Reservation(
            granted=answer.granted,
            delay_s=self.now() + answer.delay_s,
            clients=answer.clients,
            total=answer.total,
        )


class Deaf(SimulatedStore):
    """Ignores refunds."""

    def refund(self, quota: bytes, cost: SharedCost, rates: SharedRates) -> None:
        """Do nothing."""


class Generous(SimulatedStore):
    """A bucket may hold more than its burst."""

    @staticmethod
    def capped(level: float, limit: SharedRate | None) -> float:
        return level


class Impatient(SimulatedStore):
    """The last pause counts, not the longest."""

    def pause(self, quota: bytes, seconds: float) -> None:
        self._bucket(quota, (None, None)).paused_until = self.now() + seconds


class Restless(SimulatedStore):
    """Ignores pauses."""

    def pause(self, quota: bytes, seconds: float) -> None:
        """Do nothing."""


class Immortal(SimulatedStore):
    """Records do not expire."""

    def publish(self, name: bytes, state: Mapping[str, str | float], ttl_s: float) -> None:
        super().publish(name, state, 1e9)


class Versionless(SimulatedStore):
    """Every record has the same version."""

    def read(self, name: bytes) -> SharedRecord | None:
        record = super().read(name)
        return record and SharedRecord(state=record.state, version=1, left_s=record.left_s)


class Stingy(SimulatedStore):
    """Never grants ahead."""

    def reserve(
        self,
        member: str,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        max_ahead_s: float,
    ) -> Reservation:
        return super().reserve(member, quota, want, least, rates, 0.0)


FAULTS = (
    Forgetful,
    Separate,
    Timestamps,
    Deaf,
    Generous,
    Impatient,
    Restless,
    Immortal,
    Versionless,
    Stingy,
)


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_found(kind: type[SimulatedStore]) -> None:
    """At least one check fails, and says something."""
    failed = {}
    for check in STORE_CHECKS:
        try:
            run_store_check(check, server_of(kind), simulated=True)
        except CheckFailed as error:
            failed[check.__name__] = str(error)
        except NotApplicable:
            pass
    assert failed
    assert all(failed.values())


def test_a_check_that_does_not_apply_is_skipped() -> None:
    """A server that cannot be restarted is not tested for it."""

    def server(clock: SimulatedClock) -> StoreServer:
        return StoreServer(connect=SimulatedStore(clock).connect, sleep=clock.sleep)

    (restart,) = [check for check in STORE_CHECKS if check.__name__ == "restart_is_survived"]
    with pytest.raises(NotApplicable):
        run_store_check(restart, server, simulated=True)
