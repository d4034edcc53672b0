"""Phone calls through a bad network: a seeded relay stands between a bare caller and a running gateway."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from tests.audio import level_dbfs, steady_noise
from tests.network import Conditions, Relay
from tests.peers import Gateway, StallWatch
from tests.rtp_caller import Exchange, RtpCaller

pytestmark = pytest.mark.peer
RATE = 8_000
CLEAN = Conditions()
BAD_FROM_S, BAD_TO_S, GOOD_AGAIN_S, END_S = 3.0, 5.5, 7.5, 10.0
WITHIN_S = 0.040
"""Of the clean delay, 2 s after the network behaves again."""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def through(gateway: Gateway, begin: Callable[[Relay], None]) -> Exchange:
    """One call: clean, then what `begin` does to the relay, then clean again."""
    with RtpCaller(gateway.sip_port) as caller:
        assert caller.invite().startswith("SIP/2.0 200")
        assert caller.media is not None
        with Relay(caller.media) as relay:
            caller.media = relay.address
            timers = [
                threading.Timer(BAD_FROM_S, begin, (relay,)),
                threading.Timer(BAD_TO_S, relay.set_conditions, (CLEAN, CLEAN)),
            ]
            for timer in timers:
                timer.start()
            exchange = caller.stream(steady_noise(END_S, RATE))
        assert caller.bye().startswith("SIP/2.0 200")
    return exchange


def delay_s(exchange: Exchange, from_s: float, to_s: float) -> float:
    return float(np.median(exchange.round_trips_s(from_s, to_s)))


@pytest.mark.parametrize(
    "conditions",
    [
        Conditions(loss=0.05, burst=3.0),
        Conditions(delay_ms=60, jitter_ms=20),
        Conditions(delay_ms=30, jitter_ms=15, reorder=True, duplicate=0.1),
        Conditions(rate_bps=60_000, queue_ms=100),
    ],
    ids=["bursts of loss", "60 ms of jitter", "out of order and doubled", "a line too narrow"],
)
def test_the_delay_is_back_two_seconds_after_the_network_is(gateway: Gateway, conditions: Conditions) -> None:
    with StallWatch() as machine:
        exchange = through(gateway, lambda relay: relay.set_conditions(conditions, CLEAN))
    before, after = delay_s(exchange, 1.5, BAD_FROM_S), delay_s(exchange, GOOD_AGAIN_S, END_S)
    assert abs(after - before) <= WITHIN_S or machine.stalls, f"{before:.3f} s, then {after:.3f} s"
    assert abs(level_dbfs(exchange.heard()[RATE:]) + 20) < 2, "nothing loud was made of what was missing"


def test_a_stall_of_200_ms_costs_its_own_length_and_no_delay(gateway: Gateway) -> None:
    with StallWatch() as machine:
        exchange = through(gateway, lambda relay: relay.stall(0.2))
    before, after = delay_s(exchange, 1.5, BAD_FROM_S), delay_s(exchange, GOOD_AGAIN_S, END_S)
    assert abs(after - before) <= WITHIN_S or machine.stalls, f"{before:.3f} s, then {after:.3f} s"


def test_a_phone_whose_nat_forgets_it_goes_on_from_its_new_port(gateway: Gateway) -> None:
    exchange = through(gateway, Relay.rebind)
    heard = [a for a in exchange.arrivals if a.at - exchange.began > GOOD_AGAIN_S]
    assert len(heard) > 0.9 * (END_S - GOOD_AGAIN_S) * 50
    assert delay_s(exchange, GOOD_AGAIN_S, END_S) < 0.3
