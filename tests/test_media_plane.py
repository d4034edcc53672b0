"""Phone calls through the media plane and an echo engine, stepped by hand over loopback sockets."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from gateway.media import g711
from gateway.media.messages import Closed, FirstPacket, Latched, RtpTimedOut
from tests.audio import align, correlation, steady_noise
from tests.phone import BLOCK, Bench, Phone, bound_socket, speech


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def told(phone: Phone) -> np.ndarray:
    """What the phone said, as its far end hears it after companding."""
    return g711.decode(phone.codes, phone.law).astype(np.float64)


@pytest.mark.parametrize("law", [0, 1])
def test_a_caller_hears_the_echo_of_every_word_and_no_gap(bench: Bench, law: int) -> None:
    # Noise of the telephone band: nothing in it is silent, so every hole shows.
    phone = Phone((steady_noise(12.0) * 32_767).astype(np.int16), law)
    bench.call(0, phone)
    bench.run(12 * 50)
    heard = phone.heard_pcm().astype(np.float64)
    settled = slice(4 * 8000, 11 * 8000)
    echo = align(heard[settled], told(phone)[settled], 4000)
    assert correlation(echo.heard, echo.sent) >= 0.99
    assert echo.lag / 8 < 120
    assert not echo.gaps()


def test_one_packet_goes_out_at_every_tick_with_its_own_number_and_time(bench: Bench) -> None:
    phone = Phone(speech())
    bench.call(2, phone)
    bench.run(200)
    steps = [step for step, *_ in phone.heard]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert len(steps) >= 197
    numbers = np.array([sequence for _, sequence, _, _ in phone.heard])
    times = np.array([timestamp for _, _, timestamp, _ in phone.heard])
    assert (np.diff(numbers) % 65_536 == 1).all()
    assert (np.diff(times) % (1 << 32) == BLOCK).all()


def test_every_tick_of_a_started_call_writes_480_samples_and_every_frame_is_whole(bench: Bench) -> None:
    bench.call(1, Phone(speech()))
    bench.run(401)
    assert bench.rows.heard_end[1] % 480 == 0
    assert bench.rows.heard_end[1] == pytest.approx(400 * 480, abs=4 * 480)
    counters = bench.engine.counters_of(1)
    assert counters.short_samples == counters.dropped_samples == 0


def test_one_lost_packet_leaves_the_delay_as_it_was(bench: Bench) -> None:
    phone = Phone(speech("ast_en_far_8k"))
    bench.call(0, phone)
    bench.run(300)
    bench.step(lost=True)
    bench.run(700)
    heard, said = phone.heard_pcm().astype(np.float64), told(phone)
    before = align(heard[3 * 8000 : 6 * 8000], said[3 * 8000 : 6 * 8000], 4000)
    after = align(heard[7 * 8000 : 19 * 8000], said[7 * 8000 : 19 * 8000], 4000)
    stats = bench.plane.stats(0)
    assert after.lag == before.lag
    assert correlation(after.heard, after.sent) > 0.99
    assert (stats.lost, stats.late) == (1, 0)
    assert stats.concealed_samples == 480


def test_calls_do_not_hear_each_other(bench: Bench) -> None:
    first, second = Phone(speech()), Phone(np.zeros(8000 * 4, np.int16), law=1, ssrc=9)
    bench.call(0, first)
    bench.call(1, second)
    bench.run(150)
    assert np.abs(first.heard_pcm()).max() > 3000
    assert np.abs(second.heard_pcm()).max() < 100


def test_events_tell_the_first_packet_the_latch_and_the_end_with_its_counts(bench: Bench) -> None:
    phone = Phone(speech())
    number = bench.call(3, phone)
    bench.run(100)
    bench.plane.close(3)
    bench.run(1)
    kinds = [type(event) for event in bench.events]
    assert kinds == [Latched, FirstPacket, Closed]
    assert {event.call for event in bench.events} == {number}
    final = bench.events[-1]
    assert isinstance(final, Closed)
    assert final.stats.packets_received == 100
    assert final.stats.packets_sent >= 97
    assert bench.plane._taken[3] is None


def test_a_row_can_be_opened_again_and_hears_nothing_of_the_last_call(bench: Bench) -> None:
    phone = Phone(speech())
    bench.call(0, phone)
    bench.run(60)
    bench.plane.close(0)
    bench.run(1)
    fresh = Phone(np.zeros(8000, np.int16))
    bench.rows.clear(0)
    ours = bound_socket()
    fresh.peer = ours.getsockname()
    bench.phones[0] = fresh
    bench.plane.open_rtp(0, ours, bench.media(fresh))
    bench.run(40)
    assert np.abs(fresh.heard_pcm()).max() < 100
    assert bench.plane.stats(0).packets_received == 40


def test_a_silent_caller_is_reported_once_after_20_s() -> None:
    bench, phone = Bench(count=1), Phone(speech())
    bench.call(0, phone)
    bench.run(50)
    for _ in range(50 * 21):
        bench.step(talk=False)
    bench.close()
    silences = [event for event in bench.events if isinstance(event, RtpTimedOut)]
    assert len(silences) == 1
    assert silences[0].silent_s == pytest.approx(20, abs=0.1)


def test_a_caller_who_returned_may_fall_silent_again() -> None:
    bench, phone = Bench(count=1, rtp_timeout_s=2.0), Phone(speech())
    bench.call(0, phone)
    for silent in (0, 150, 150):
        for _ in range(silent):
            bench.step(talk=False)
        bench.run(5)
    bench.close()
    assert sum(isinstance(event, RtpTimedOut) for event in bench.events) == 2
