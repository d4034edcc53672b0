"""What no peer should send: counted, concealed, never heard as noise, never in another call."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from gateway.media.linked import steps
from gateway.media.rows import LARGEST_FRAME
from tests.audio import align, level_dbfs, steady_noise
from tests.phone import BLOCK, Bench, Phone
from tests.test_media_jitter import TICK_S, Line, Talk

SECONDS = 6
GOOD, BAD = 1, 0
HOUR_TICKS = 180_000

LOUD = b"\x00\x80" * (BLOCK // 2)
"""\u00b5-law at full scale."""


def never_offered(phone: Phone, step: int) -> list[bytes]:
    return [phone.packet(LOUD, payload_type=97)]


def forged(phone: Phone, step: int) -> list[bytes]:
    """Beside his own packets another stream's, loud."""
    other = bytearray(phone.packet(LOUD))
    phone.sequence, phone.timestamp = phone.sequence - 1, phone.timestamp - BLOCK
    other[2:4], other[8:12] = (step & 0xFFFF).to_bytes(2, "big"), b"\x66\x66\x66\x66"
    return [bytes(other), phone.packet()]


def wrong_clock(phone: Phone, step: int) -> list[bytes]:
    """Timestamps of a 16 kHz clock."""
    datagram = phone.packet()
    phone.timestamp += BLOCK
    return [datagram]


def twice_as_fast(phone: Phone, step: int) -> list[bytes]:
    return [phone.packet(), phone.packet()]


def garbage(phone: Phone, step: int) -> list[bytes]:
    rng = np.random.default_rng(step)
    return [rng.bytes(int(rng.integers(0, 1_400))) for _ in range(4)]


@pytest.mark.parametrize("says", [never_offered, forged, wrong_clock, twice_as_fast, garbage])
def test_a_bad_caller_costs_his_neighbour_not_a_sample(says: Callable[[Phone, int], list[bytes]]) -> None:
    noise = steady_noise(SECONDS, 8_000, seed=3)
    good, alone = (Phone((noise * 32_767).astype(np.int16)) for _ in range(2))
    bad = Phone((steady_noise(SECONDS, 8_000) * 32_767).astype(np.int16), ssrc=0x77)
    bench, quiet = Bench(), Bench()
    bench.call(GOOD, good)
    bench.call(BAD, bad)
    quiet.call(GOOD, alone)
    del bench.phones[BAD]
    for step in range(SECONDS * 50 - 50):
        for datagram in says(bad, step):
            bad.sock.sendto(datagram, bad.peer)
        bench.step()
        bad.listen(step)
        quiet.step()
    stats = bench.plane.stats(BAD)
    bench.close()
    quiet.close()
    bad.sock.close()
    assert [payload for *_, payload in good.heard] == [payload for *_, payload in alone.heard]
    heard = bad.heard_pcm() / 32_768
    assert level_dbfs(heard[8_000:]) < -17, "nothing louder than what he said himself"
    assert stats.delay_ms <= 400
    counted = stats.unknown_payload + stats.malformed + stats.rejected + stats.resynced
    assert counted + stats.concealed_samples > 0


@pytest.mark.slow
def test_after_an_hour_of_silence_the_first_words_are_heard_at_once() -> None:
    noise = (steady_noise(4.0, 8_000) * 32_767).astype(np.int16)
    line = Line(steps(True))
    line.run(Talk(noise[:16_000]).packets(), 110)
    out, invented, row = np.zeros((1, LARGEST_FRAME), np.int16), np.zeros(1, np.int64), np.ones(1, np.int64)
    loudest = 0
    for _ in range(HOUR_TICKS):
        line.found.pull_rows(line.r, row, line.tick, out, invented)
        line.tick += 1
        loudest = max(loudest, int(np.abs(out[0, :BLOCK]).max()) if line.tick > 200 else 0)
    assert loudest < 400, "what stands in for an hour of nothing is quiet"
    packets = []
    for at, datagram in Talk(noise[16_000:]).packets():
        sequence, stamp = struct.unpack_from("!HI", datagram, 2)
        head = struct.pack("!HI", (sequence + 100) & 0xFFFF, (stamp + line.tick * BLOCK) & 0xFFFF_FFFF)
        packets.append((line.tick * TICK_S + at, datagram[:2] + head + datagram[8:]))
    played = line.run(packets, 95)[-95 * BLOCK :]
    found = align(played[2_000:6_000] / 32_768, noise[16_000:24_000] / 32_768, 4_000)
    assert found.correlation > 0.9
