"""The protocol of a store through which processes with one key share their limits, and the values it works with.

A store is a service that all processes reach, such as Valkey; its client is a package of its own, found by the scheme
of a URL. The core has no such client. For implementers, `llmopt.testing.SimulatedStore` is a store in memory, and
`llmopt_conformance.shared_state` checks theirs.

`open_store` reads the metadata of installed distributions, imports the package that it finds, and calls its factory.
Otherwise no I/O, no clock and no state: times are durations, because the clocks of two machines may differ by hours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, Protocol, runtime_checkable

from attrs import Attribute, field, frozen

from llmopt.errors import ConfigError
from llmopt.values.calls import Priority

GROUP: Final = "llmopt.shared"
"""Entry-point group of stores; the key is the scheme of the URL, the value a factory that takes the URL."""
_PACKAGES: Final = dict.fromkeys(("valkey", "valkeys", "redis", "rediss"), "llmopt-valkey")
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]{0,31})://.", re.IGNORECASE | re.DOTALL)


@frozen
class SharedCost:
    """An amount of both quantities of a quota. Amounts need not be whole numbers.

    Attributes:
        requests: number of requests.
        tokens: number of tokens.
    """

    requests: float = 0.0
    tokens: float = 0.0


@frozen
class SharedRate:
    """The limit of one quantity, as a token bucket.

    Attributes:
        per_second: inflow.
        burst: the most that may be taken at once.
    """

    per_second: float
    burst: float


@frozen(kw_only=True)
class SharedRates:
    """The limits of both quantities; None for one without a limit.

    Attributes:
        requests: limit of requests.
        tokens: limit of tokens.
    """

    requests: SharedRate | None = None
    tokens: SharedRate | None = None


def _sensible(_: object, attribute: Attribute[Any], value: Any) -> None:
    # A wrong number would block a quota, or open it.
    for number in (value.requests, value.tokens) if isinstance(value, SharedCost) else (value,):
        if not 0 <= number < math.inf:
            raise ValueError(f"{attribute.name} must be a number, 0 or more, not {number}")


@frozen(kw_only=True)
class Reservation:
    """The answer of a store to `SharedState.reserve`.

    Attributes:
        granted: what this client may spend, nothing or at least what it asked for at least.
        delay_s: seconds until it may be spent; where nothing is granted, seconds until it is worth asking again.
        pause_s: seconds left of a pause of this quota; nothing is granted meanwhile.
        clients: number of clients that used this quota within the last minute, this one included.
        total: all that was granted of this quota so far, to all clients; refunds are not subtracted. It may start again
            from 0.
    """

    granted: SharedCost = field(default=SharedCost(), validator=_sensible)
    delay_s: float = field(default=0.0, validator=_sensible)
    pause_s: float = field(default=0.0, validator=_sensible)
    clients: int = field(default=1, validator=_sensible)
    total: SharedCost = field(default=SharedCost(), validator=_sensible)


@frozen(kw_only=True)
class SharedRecord:
    """Something that one client has published.

    Attributes:
        state: names and numbers or short texts, as they were published.
        version: counts what was published under this name, so that news can be told from what is known.
        left_s: seconds until the store forgets it, by the store's own clock.
    """

    state: Mapping[str, str | float]
    version: int
    left_s: float


@runtime_checkable
class SharedState(Protocol):
    """A store that several processes share. Any object with these methods can be given to a client as ``shared=``.

    Names of quotas and records are 32 bytes that tell nothing about the key or the model. Every method may raise. A
    call that has not returned after 0.25 s is cancelled, and this client goes on alone until the store answers again.
    Only the store's own clock counts. Calls may come from several event loops, at the same time from several threads.
    """

    async def reserve(
        self,
        quota: bytes,
        want: SharedCost,
        least: SharedCost,
        rates: SharedRates,
        *,
        max_ahead_s: float,
        priority: Priority,
    ) -> Reservation:
        """Take from the bucket of a quota, in one atomic step for both quantities: from both or from neither.

        A bucket that is seen for the first time is full. What is not there yet may be reserved ahead: the level of the
        bucket then is below 0, and ``delay_s`` is the time until it would have been enough. So the reservations of
        all clients form one queue.

        Args:
            quota: name of the quota.
            want: what to grant, if it can be spent within ``max_ahead_s``.
            least: what to grant otherwise; if that is not possible either, nothing is granted.
            rates: the limits that apply from now on.
            max_ahead_s: longest delay of a grant.
            priority: of the request that waits for it, "interactive" or "bulk"; a store may ignore it.
        """

    async def refund(self, quota: bytes, cost: SharedCost, rates: SharedRates) -> None:
        """Return what was granted and not used. A bucket never gets fuller than its burst."""

    async def pause(self, quota: bytes, seconds: float) -> None:
        """Grant nothing of a quota for ``seconds``. A pause that already lasts longer stays."""

    async def publish(self, name: bytes, state: Mapping[str, str | float], ttl_s: float) -> None:
        """Keep a record for ``ttl_s``, in place of the one of that name."""

    async def read(self, name: bytes) -> SharedRecord | None:
        """The record of that name, None if there is none or its time is over."""

    async def aclose(self) -> None:
        """Close connections. The store may be used again later."""


@frozen(kw_only=True)
class SharedOptions:
    """How a client shares its limits.

    Attributes:
        store: the store.
        secret: with it the names of quotas are made; equal in all processes.
        required: whether calls fail while the store does not answer.
        owned: whether the client closes the store.
    """

    store: SharedState = field(repr=False)
    secret: bytes = field(repr=False)
    required: bool = False
    owned: bool = False


def open_store(url: str) -> SharedState:
    """Make the store that a URL names.

    Raises:
        ConfigError: no package for this scheme is installed, or it refuses the URL. The message never contains the URL,
            which may hold a password.
    """
    match = _SCHEME.match(url)
    if match is None:
        raise ConfigError("shared: expected a URL such as valkey://host:6379/0.")
    scheme = match[1].lower()
    from importlib_metadata import entry_points

    found = entry_points(group=GROUP, name=scheme)
    if not found:
        package = _PACKAGES.get(scheme)
        advice = (
            f"try: pip install {package}" if package else "a URL such as valkey://host:6379/0 is expected"
        )
        raise ConfigError(f"shared: no store for {scheme}:// is installed; {advice}.")
    try:
        store = next(iter(found)).load()(url)
    except Exception as error:  # noqa: BLE001 - a package may raise anything; its words may repeat the URL
        problem = f"shared: the store for {scheme}:// cannot be made ({type(error).__name__})."
    else:
        if isinstance(store, SharedState):
            return store
        problem = f"shared: what the package for {scheme}:// made is no llmopt.SharedState."
    # Outside the handler, so that no traceback shows the URL.
    raise ConfigError(problem)
