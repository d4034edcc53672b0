"""A real phone: baresip calls the gateway, speaks, and hears itself through the echo engine."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audio import align, gaps, likeness, steady_noise
from tests.lossy_path import LossyPath
from tests.peers import Baresip, Gateway, StallWatch

pytestmark = pytest.mark.peer
RATE = 8_000


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with Gateway(tmp_path_factory.mktemp("gateway")) as running:
        yield running


def call(gateway: Gateway, folder: Path, seconds: float, codec: str = "PCMU") -> Baresip:
    """baresip in a call for so many seconds, its noise a little longer."""
    phone = Baresip(folder / "phone", gateway.uri, steady_noise(75, RATE), RATE, codec)
    phone.established().talk_for(seconds)
    return phone


@pytest.mark.parametrize("codec", ["PCMU", "PCMA"])
def test_baresip_hears_itself(gateway: Gateway, tmp_path: Path, codec: str) -> None:
    sent, heard = call(gateway, tmp_path, 5.0, codec).hang_up()
    echo = align(heard, sent, longest=RATE)
    assert likeness(heard, sent, RATE) >= 0.95
    assert 0 < echo.lag / RATE < 0.4
    gateway.wait_for_slots(0, 5.0)


def test_sixty_seconds_have_no_gap(gateway: Gateway, tmp_path: Path) -> None:
    phone = call(gateway, tmp_path, 1.0)
    with StallWatch() as machine:
        sent, heard = phone.talk_for(60.0).hang_up()
    assert len(heard) > 60 * RATE
    assert likeness(heard, sent, RATE) >= 0.95
    found = [gap for gap in gaps(heard[2 * RATE :], sent, RATE) if not machine.explains(1 + gap.at_s)]
    assert found == [], f"the machine stood still at {machine.stalls}"
    late = align(heard[-10 * RATE :], sent[-11 * RATE :])
    assert 0 < (len(heard) - len(sent) + RATE + late.lag) / RATE < 0.4, "a minute adds no delay"


def test_one_lost_packet_does_not_slow_the_call_down(gateway: Gateway, tmp_path: Path) -> None:
    """Stock aiortc adds 200 ms for the rest of the call."""
    with LossyPath(gateway.sip_port) as path:
        uri = f"sip:moshi@127.0.0.1:{path.port}"
        phone = Baresip(tmp_path / "phone", uri, steady_noise(30, RATE), RATE)
        phone.established().talk_for(4.0)
        path.lose_one()
        phone.talk_for(6.0)
        phone.hang_up()
        exchange = path.exchange()
    assert path.lost_at is not None
    lost = path.lost_at - exchange.began
    before = exchange.round_trip_s(lost - 2.0, lost)
    after = exchange.round_trip_s(lost + 2.0, lost + 4.0)
    assert math.isclose(after, before, abs_tol=0.040), f"{before * 1e3:.0f} ms, then {after * 1e3:.0f} ms"
    assert before < 0.3
