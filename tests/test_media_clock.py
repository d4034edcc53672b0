"""The media thread in real time: ticks without drift, a call through it, and an error that ends nothing."""

from __future__ import annotations

import threading
import time

import pytest

from engine.rows import AudioRows
from gateway.media.clock import MediaClock
from gateway.media.plane import MediaPlane
from tests.phone import Bench, Phone, bound_socket, speech


class Counted(MediaPlane):
    """Notes when it was ticked; rings after `enough`."""

    def __init__(self, enough: int, fail_at: int = -1) -> None:
        super().__init__(AudioRows(2))
        self.times: list[float] = []
        self.enough, self.fail_at, self.rung = enough, fail_at, threading.Event()

    def tick(self, now: float) -> None:
        self.times.append(now)
        if len(self.times) == self.enough:
            self.rung.set()
        if len(self.times) == self.fail_at:
            raise RuntimeError("made up")
        super().tick(now)


def test_ticks_lie_on_multiples_of_20_ms_and_none_is_left_out() -> None:
    plane = Counted(40)
    clock = MediaClock(plane)
    clock.start()
    clock.start()
    assert plane.rung.wait(5)
    clock.stop()
    clock.stop()
    numbers = [round(t / 0.02) for t in plane.times]
    assert [n * 0.02 for n in numbers] == pytest.approx(plane.times)
    if clock.lateness().skipped == 0:
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert abs(plane.times[0] - time.monotonic()) < 10


def test_an_error_in_one_tick_is_logged_and_the_next_ones_come(caplog: pytest.LogCaptureFixture) -> None:
    plane = Counted(20, fail_at=5)
    clock = MediaClock(plane)
    clock.start()
    assert plane.rung.wait(5)
    clock.stop()
    assert clock.lateness().failed == 1
    assert "made up" in caplog.text


def test_a_phone_gets_a_packet_every_20_ms_from_the_thread() -> None:
    plane = MediaPlane(AudioRows(2))
    ours, phone = bound_socket(), Phone(speech())
    phone.peer = ours.getsockname()
    phone.sock.settimeout(2)
    clock = MediaClock(plane)
    plane.open_rtp(0, ours, Bench.media(phone))
    plane.start(0)
    clock.start()
    arrivals = []
    for _ in range(50):
        phone.say()
        phone.sock.recv(2000)
        arrivals.append(time.monotonic())
    clock.stop()
    stats = plane.stats(0)
    plane.close_all()
    assert arrivals[-1] - arrivals[0] == pytest.approx(49 * 0.02, abs=0.1)
    assert stats.packets_received >= 47
    assert plane.rows.heard_end[0] >= 45 * 480
