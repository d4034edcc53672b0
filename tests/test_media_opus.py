"""A browser's Opus through the media plane: own decoder, FEC, concealment, one callback a tick."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from engine.opus import OpusDecoder, OpusEncoder
from gateway.media.messages import OpusMedia, OpusPacket
from gateway.media.opus_port import MOST_WAITING, OpusPort
from tests.audio import align, steady_noise
from tests.phone import Bench

FRAME = 480


class Browser:
    """Sends 20 ms Opus packets into its port, and decodes what comes back by timestamp."""

    def __init__(self, pcm: np.ndarray, fec: bool = False, bitrate: int = 32_000) -> None:
        self.encoder = OpusEncoder(bitrate=bitrate)
        self.encoder.set_loss(20 if fec else 0, fec)
        self.packets = [
            self.encoder.encode(pcm[i : i + FRAME]) for i in range(0, len(pcm) - FRAME + 1, FRAME)
        ]
        self.port: OpusPort | None = None
        self.sent = 0
        self.heard: list[OpusPacket] = []
        self.calls = 0

    def take(self, packets: list[tuple[int, OpusPacket]]) -> None:
        self.calls += 1
        self.heard += [packet for _, packet in packets]

    def say(self, now: float, lost: bool = False) -> None:
        i = self.sent
        self.sent += 1
        if not lost and self.port is not None:
            stamp = (0xFFFF_0000 + i * 960) & 0xFFFF_FFFF
            self.port.receive((65_530 + i) & 0xFFFF, stamp, self.packets[i], i == 0, now)

    def heard_pcm(self) -> np.ndarray:
        decoder = OpusDecoder()
        return np.concatenate([decoder.decode(packet.payload) for packet in self.heard])


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def call(bench: Bench, row: int, browser: Browser) -> None:
    asyncio.run(bench.engine.open(row=row))
    browser.port = bench.plane.open_opus(row, OpusMedia(), browser.take)
    bench.plane.start(row)


def run(bench: Bench, browser: Browser, steps: int, lost: frozenset[int] = frozenset()) -> None:
    for _ in range(steps):
        browser.say(bench.now, browser.sent in lost)
        bench.step()


def test_a_browser_hears_the_echo_of_its_own_voice(bench: Bench) -> None:
    said = steady_noise(10.0, 24_000).astype(np.float32)
    browser = Browser(said, bitrate=96_000)
    call(bench, 0, browser)
    run(bench, browser, 490)
    heard = browser.heard_pcm()
    echo = align(heard[4 * 24_000 : 9 * 24_000].astype(np.float64), said[4 * 24_000 : 9 * 24_000], 6_000)
    assert echo.correlation > 0.9
    assert echo.lag / 24 < 130
    assert not echo.gaps(24_000)


def test_one_packet_a_tick_is_handed_over_for_all_browsers_at_once(bench: Bench) -> None:
    browser = Browser(np.zeros(24_000 * 2, np.float32))
    call(bench, 0, browser)
    second = bench.plane.open_opus(1, OpusMedia(), browser.take)
    run(bench, browser, 50)
    assert second.call == 2
    assert browser.calls == 49
    assert len(browser.heard) == 2 * 49
    stamps = np.array([packet.timestamp for packet in browser.heard[::2]])
    assert (np.diff(stamps) % (1 << 32) == 960).all()


@pytest.mark.parametrize("fec", [False, True])
def test_lost_packets_are_replaced_and_leave_the_delay_as_it_was(bench: Bench, fec: bool) -> None:
    said = steady_noise(12.0, 24_000).astype(np.float32)
    browser = Browser(said, fec)
    call(bench, 0, browser)
    run(bench, browser, 590, lost=frozenset(range(300, 500, 23)))
    heard = browser.heard_pcm().astype(np.float64)
    before = align(heard[4 * 24_000 : 6 * 24_000], said[4 * 24_000 : 6 * 24_000], 6_000)
    after = align(heard[10 * 24_000 : 11 * 24_000], said[10 * 24_000 : 11 * 24_000], 6_000)
    stats = bench.plane.stats(0)
    assert stats.lost == 9
    assert abs(after.lag - before.lag) <= 20 * 24
    assert 0 < stats.concealed_samples + stats.recovered_samples <= 9 * FRAME
    assert not align(heard[6 * 24_000 : 9 * 24_000], said[6 * 24_000 : 9 * 24_000], 6_000).heard.max() > 1.0


def test_garbage_from_a_browser_is_counted_and_nothing_else(bench: Bench) -> None:
    browser = Browser(steady_noise(4.0, 24_000).astype(np.float32))
    call(bench, 0, browser)
    run(bench, browser, 100)
    assert browser.port is not None
    rng = np.random.default_rng(3)
    for i in range(100):
        noise = rng.bytes(int(rng.integers(0, 60)))
        browser.port.receive(65_530 + browser.sent + i, browser.sent * 960, noise, False, bench.now)
        run(bench, browser, 1)
    assert bench.plane.stats(0).packets_received >= 150
    assert np.isfinite(bench.rows.heard[0]).all()
    assert np.abs(bench.rows.heard[0]).max() <= 1.0


def test_a_flood_between_two_ticks_keeps_the_newest(bench: Bench) -> None:
    port = OpusPort(1)
    for i in range(500):
        port.receive(i, i * 960, b"x", False, 0.0)
    taken = port.take()
    assert len(taken) == MOST_WAITING
    assert taken[-1].sequence == 499
    assert port.take() == []
