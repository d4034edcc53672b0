"""A running gateway whose media lives in processes of its own: what callers made of bare sockets see when one
of its parts stands still or dies."""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audio import likeness, steady_noise
from tests.peers import Gateway
from tests.rtp_caller import RtpCaller

pytestmark = pytest.mark.peer
RATE = 8_000


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    with Gateway(tmp_path, MG_MEDIA__PROCESSES="2", MG_ENGINE__SLOTS="4") as running:
        yield running


def media_processes(gateway: Gateway) -> list[int]:
    """Their process ids, in the order they were started."""
    children = Path(f"/proc/{gateway.process.pid}/task/{gateway.process.pid}/children").read_text().split()
    return [int(c) for c in children if b"gateway.media.served" in Path(f"/proc/{c}/cmdline").read_bytes()]


def test_a_gateway_that_stands_still_delays_no_packet(gateway: Gateway) -> None:
    with RtpCaller(gateway.sip_port) as caller:
        assert caller.invite().startswith("SIP/2.0 200")
        stop = threading.Timer(1.0, os.kill, (gateway.process.pid, signal.SIGSTOP))
        go_on = threading.Timer(3.0, os.kill, (gateway.process.pid, signal.SIGCONT))
        stop.start()
        go_on.start()
        exchange = caller.stream(steady_noise(5.0, RATE))
        sequences = [arrival.sequence for arrival in exchange.arrivals]
        assert all((b - a) & 0xFFFF == 1 for a, b in itertools.pairwise(sequences))
        during = [a for a in exchange.arrivals if 1.1 <= a.at - exchange.began <= 2.9]
        assert len(during) >= 88, "one every 20 ms is 90"
        assert caller.bye().startswith("SIP/2.0 200")
    gateway.wait_for_slots(0, 5.0)


def test_a_media_process_that_dies_ends_its_calls_and_no_others_and_is_replaced(gateway: Gateway) -> None:
    first = media_processes(gateway)
    assert len(first) == 2
    with RtpCaller(gateway.sip_port) as even, RtpCaller(gateway.sip_port) as odd:
        assert even.invite().startswith("SIP/2.0 200")
        assert odd.invite().startswith("SIP/2.0 200")
        os.kill(first[0], signal.SIGKILL)
        even.wait_for_bye(3.0)
        exchange = odd.stream(steady_noise(5.0, RATE))
        assert likeness(exchange.heard(), exchange.sent, RATE) >= 0.95
        odd.bye()
    gateway.wait_for_slots(0, 5.0)
    assert gateway.metrics()["media_restarts_total"] == 1
    gateway.wait_for(r"media steps ready[^$]*media steps ready[^$]*media steps ready", 30.0)
    with RtpCaller(gateway.sip_port) as caller:
        while not caller.invite().startswith("SIP/2.0 200"):
            pass
        exchange = caller.stream(steady_noise(4.0, RATE))
        assert likeness(exchange.heard(), exchange.sent, RATE) >= 0.95
        caller.bye()
    assert sorted(set(media_processes(gateway)) & set(first)) == [first[1]]


def test_no_process_is_left_behind_by_a_gateway_that_was_killed(gateway: Gateway) -> None:
    left = media_processes(gateway)
    gateway.end(signal.SIGKILL)
    for pid in left:
        with pytest.raises(ProcessLookupError):
            for _ in range(200):
                os.kill(pid, 0)
                threading.Event().wait(0.02)


def test_a_signal_to_the_whole_group_lets_the_calls_finish(gateway: Gateway) -> None:
    with RtpCaller(gateway.sip_port) as caller:
        assert caller.invite().startswith("SIP/2.0 200")
        for pid in [*media_processes(gateway), gateway.process.pid]:
            os.kill(pid, signal.SIGTERM)
        exchange = caller.stream(steady_noise(3.0, RATE))
        assert likeness(exchange.heard(), exchange.sent, RATE) >= 0.95
        assert caller.bye().startswith("SIP/2.0 200")
    assert gateway.process.wait(15.0) == 0
