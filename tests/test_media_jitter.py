"""The jitter buffer on made-up arrivals: what it plays and invents, how its delay goes up and down."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.media import columns as c
from gateway.media import g711
from gateway.media.linked import PLAIN, Steps, steps
from gateway.media.rows import HISTORY_MS, LARGEST_FRAME, PCMU, configure, receive_rows
from tests.audio import steady_noise
from tests.phone import HEADER, speech

TICK_S = 0.02
NETWORK_S = 0.025


def rtp(seq: int, ts: int, payload: bytes, kind: int = 0, ssrc: int = 77) -> bytes:
    return HEADER.pack(0x80, kind, seq & 0xFFFF, ts & 0xFFFF_FFFF, ssrc) + payload


class Line:
    """One G.711 row fed by hand."""

    def __init__(self, found: Steps = PLAIN, limit_ms: int = 400) -> None:
        self.r = receive_rows(2)
        configure(self.r, 1, PCMU, 8_000, 8_000, limit_ms)
        self.found, self.tick = found, 0
        self.played: list[np.ndarray] = []
        self.delays: list[int] = []

    def __getitem__(self, column: int) -> int:
        return int(self.r.n[1, column])

    def take(self, datagrams: list[tuple[float, bytes]]) -> None:
        count = len(datagrams)
        data = np.zeros((count, 1500), np.uint8)
        for k, (_, datagram) in enumerate(datagrams):
            data[k, : len(datagram)] = np.frombuffer(datagram, np.uint8)
        sizes = np.array([len(d) for _, d in datagrams], np.int64)
        arrivals = np.array([t for t, _ in datagrams], np.float64)
        times = (self.tick, arrivals, self.tick * TICK_S - 0.003)
        rows = np.ones(count, np.int64)
        left = np.zeros(count, np.int64)
        self.found.take_packets(self.r, rows, data, sizes, times, g711.DECODE, left)

    def play(self) -> None:
        out, invented = np.zeros((1, LARGEST_FRAME), np.int16), np.zeros(1, np.int64)
        self.found.pull_rows(self.r, np.ones(1, np.int64), self.tick, out, invented)
        self.played.append(out[0, :160].copy())
        self.delays.append(self.tick * 160 - self[c.NEXT])
        self.tick += 1

    def run(self, datagrams: list[tuple[float, bytes]], ticks: int) -> np.ndarray:
        """Play `ticks` more ticks while these arrive at their times."""
        waiting = sorted(datagrams, key=lambda arrival: arrival[0])
        at = 0
        for _ in range(ticks):
            until = at
            while until < len(waiting) and waiting[until][0] <= self.tick * TICK_S:
                until += 1
            self.take(waiting[at:until])
            at = until
            self.play()
        return np.concatenate(self.played)


@dataclass
class Talk:
    """A recording as packets of `ptime` samples, each with its arrival."""

    pcm: np.ndarray
    ptime: int = 160
    clock: float = 8_000.0

    @property
    def codes(self) -> np.ndarray:
        return g711.encode(self.pcm, 0)

    @property
    def count(self) -> int:
        return len(self.pcm) // self.ptime

    def packets(
        self, delays: np.ndarray | None = None, lost: set[int] | None = None
    ) -> list[tuple[float, bytes]]:
        codes, out = self.codes, []
        for i in range(self.count):
            if lost and i in lost:
                continue
            late = 0.0 if delays is None else float(delays[i])
            at = i * self.ptime
            sent = (at + self.ptime) / self.clock + NETWORK_S - 0.02
            payload = codes[at : at + self.ptime].tobytes()
            out.append((sent + late, rtp(65_000 + i, 0xFFFF_8000 + at, payload)))
        return out


def decoded(talk: Talk) -> np.ndarray:
    return g711.decode(talk.codes, 0)


def place_of(part: np.ndarray, whole: np.ndarray) -> int:
    """Where `part` lies in `whole` to the sample, or -1."""
    return whole.tobytes().find(part.tobytes()) // 2


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return (steady_noise(30.0) * 20_000).astype(np.int16)


@pytest.mark.parametrize("ptime", [8, 80, 160, 240, 480])
def test_packets_of_any_length_play_without_a_sample_lost_or_doubled(noise: np.ndarray, ptime: int) -> None:
    talk, line = Talk(noise[: 8000 * 9], ptime), Line()
    played = line.run(talk.packets(), 440)
    steady = played[8000 * 5 : 8000 * 8]
    assert place_of(steady, decoded(talk)) >= 0
    assert line[c.CONCEALED] == 0
    assert line[c.LATE] == line[c.RESYNCED] == line[c.MALFORMED] == 0


def test_an_hour_of_counting_would_wrap_both_counters_and_nothing_is_heard_of_it(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 15]), Line()
    played = line.run(talk.packets(), 740)
    assert line[c.TOP] > 65_535
    assert place_of(played[8000 * 5 : 8000 * 14], decoded(talk)) >= 0


def test_a_lost_packet_costs_its_own_length_and_no_delay(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 10]), Line()
    played = line.run(talk.packets(lost={300}), 480)
    before = place_of(played[8000 * 4 : 8000 * 5], decoded(talk)) - 8000 * 4
    after = place_of(played[8000 * 7 : 8000 * 9], decoded(talk)) - 8000 * 7
    assert before == after
    assert line[c.CONCEALED] == 160


def test_reordered_and_doubled_packets_play_in_order_once(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 20]), Line()
    packets = talk.packets()
    for i in range(200, 900, 7):
        (t0, first), (t1, second) = packets[i], packets[i + 1]
        packets[i], packets[i + 1] = (t0, second), (t1, first)
    packets += packets[500:600]
    played = line.run(packets, 990)
    assert line[c.REORDERED] == 100
    assert line[c.DUPLICATED] == 100
    assert place_of(played[8000 * 15 : 8000 * 17], decoded(talk)) >= 0


@pytest.mark.parametrize("jitter_ms", [30, 60])
def test_under_steady_jitter_the_delay_grows_until_little_is_invented(jitter_ms: int) -> None:
    talk, line = Talk(speech("ast_en_far_8k")[: 8000 * 30]), Line()
    rng = np.random.default_rng(4)
    delays = rng.uniform(0, jitter_ms / 1000, talk.count)
    line.run(talk.packets(delays), talk.count)
    first = line[c.CONCEALED]
    assert first < 0.06 * len(talk.pcm)
    clean = Line()
    clean.run(talk.packets(), talk.count)
    assert 0 < line.delays[-1] - clean.delays[-1] <= (jitter_ms + 20) * 8
    assert line[c.RESYNCED] == 0


def test_after_a_stall_of_200_ms_the_delay_is_back_within_2_s() -> None:
    talk, line = Talk(speech("ast_en_far_8k")[: 8000 * 16]), Line()
    delays = np.zeros(talk.count)
    delays[400:410] = 0.2 - 0.02 * np.arange(10)
    line.run(talk.packets(delays), talk.count)
    clean = line.delays[395]
    assert max(line.delays[400:420]) - clean > 150 * 8
    assert line.delays[410 + 100] - clean <= 40 * 8
    assert line.delays[-1] - clean <= 20 * 8


def test_after_a_storm_of_60_ms_jitter_the_delay_is_back_within_2_s() -> None:
    talk, line = Talk(speech("ast_en_far_8k")[: 8000 * 24]), Line()
    delays = np.zeros(talk.count)
    delays[300:800] = np.random.default_rng(5).uniform(0, 0.06, 500)
    line.run(talk.packets(delays), talk.count)
    clean = line.delays[295]
    assert line.delays[800 + 100] - clean <= 40 * 8


@pytest.mark.parametrize("ppm", [-200, 200])
@pytest.mark.slow
def test_ten_minutes_of_clock_drift_neither_grow_the_delay_nor_lose_speech(ppm: int) -> None:
    pcm = np.tile(speech("ast_en_far_8k"), 14)[: 8000 * 600]
    talk, line = Talk(pcm, clock=8_000 * (1 + ppm / 1e6)), Line(steps(True))
    line.run(talk.packets(), 29_900)
    early, late = (np.array(line.delays[a : a + 500]) for a in (500, 29_000))
    drift = 28_500 * 160 * ppm / 1e6
    assert abs((late.mean() + drift) - early.mean()) < 25 * 8
    assert line[c.CONCEALED] <= 160 * 8


def test_silence_suppression_keeps_the_delay_and_pauses_are_no_loss(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 14]), Line()
    packets = talk.packets()
    packets = [(t, rtp(65_000 + n, 0xFFFF_8000 + i * 160, p[12:])) for n, (i, (t, p)) in enumerate(
        (i, packet) for i, packet in enumerate(packets) if not 300 <= i < 550)]  # fmt: skip
    played = line.run(packets, 690)
    before = place_of(played[8000 * 4 : 8000 * 5], decoded(talk)) - 8000 * 4
    after = place_of(played[8000 * 12 : 8000 * 13], decoded(talk)) - 8000 * 12
    assert before == after
    quiet = played[8000 * 7 : 8000 * 10]
    assert np.abs(quiet).max() < 600
    assert line[c.TOP] - line[c.BASE] + 1 == line[c.STREAM_RECEIVED]


def test_a_new_stream_is_heard_after_two_packets_and_a_forged_one_never(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 10]), Line()
    packets = talk.packets()
    forged = [(t, rtp(9_000 + i, 5 + i * 160, b"\x00" * 160, ssrc=666)) for i, (t, _) in enumerate(packets)]
    line.run(packets[:250] + forged[100:250], 250)
    assert line[c.REJECTED] >= 147
    assert place_of(np.concatenate(line.played)[8000 * 3 : 8000 * 4], decoded(talk)) >= 0
    renewed = [(t, rtp(100 + i, 7_000_000 + i * 160, p[12:], ssrc=99)) for i, (t, p) in enumerate(packets)]
    played = line.run(renewed[250:], 240)
    assert line[c.SSRC] == 99
    assert line[c.RESYNCED] == 1
    assert place_of(played[8000 * 9 : 8000 * 9 + 4000], decoded(talk)) >= 0


def test_a_leap_of_the_timestamp_goes_on_after_one_packet(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 12]), Line()
    packets = talk.packets()
    later = 0xFFFF_8000 + 900_000
    leapt = [(t, rtp(65_000 + i, later + i * 160, p[12:])) for i, (t, p) in enumerate(packets)]
    played = line.run(packets[:300] + leapt[300:], 580)
    assert line[c.RESYNCED] == 1
    assert place_of(played[8000 * 9 : 8000 * 11], decoded(talk)) >= 0


def test_a_sender_at_double_rate_is_cut_short_and_never_piles_up(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 20], clock=16_000.0), Line()
    line.run(talk.packets(), 480)
    assert line[c.HIGH] - line[c.NEXT] <= 3_200
    assert line[c.RESYNCED] > 3


def test_unknown_payload_types_are_counted_and_never_heard(noise: np.ndarray) -> None:
    line = Line()
    strange = [(t, bytes([p[0], 97]) + p[2:]) for t, p in Talk(noise[: 8000 * 3]).packets()]
    played = line.run(strange, 140)
    assert line[c.UNKNOWN] >= 135
    assert not played.any()


def test_padding_extension_and_csrcs_are_stepped_over(noise: np.ndarray) -> None:
    talk, line = Talk(noise[: 8000 * 8]), Line()
    dressed = []
    for i, (t, p) in enumerate(talk.packets()):
        csrcs, extension, padding = b"\x01\x02\x03\x04" * 2, b"\xbe\xde\x00\x01\x10\xff\x00\x00", b"\0\0\x03"
        head = bytes([0x80 | 0x10 | 0x20 | 2])
        dressed.append((t, head + p[1:12] + csrcs + extension + p[12:] + padding if i % 2 else p))
    played = line.run(dressed, 390)
    assert line[c.MALFORMED] == 0
    assert place_of(played[8000 * 5 : 8000 * 7], decoded(talk)) >= 0


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=64), max_size=8), st.integers(0, 2**32 - 1))
def test_any_datagram_is_a_counter_or_audio_and_the_row_goes_on(garbage: list[bytes], ts: int) -> None:
    line = Line()
    line.take([(0.0, rtp(5, ts, b"\x55" * 160))])
    for datagram in garbage:
        line.take([(line.tick * TICK_S, datagram)])
        line.take([(line.tick * TICK_S, b"\x80\x00" + datagram)])
        line.play()
    assert line[c.HIGH] - line[c.NEXT] <= line[c.LIMIT] + 160


def test_every_cut_of_a_packet_is_survived(noise: np.ndarray) -> None:
    line = Line()
    head = bytes([0x80 | 0x10 | 0x20 | 15])
    whole = head + rtp(1, 2, b"")[1:] + bytes(range(120))
    for size in range(len(whole)):
        line.take([(0.0, whole[:size])])
    line.play()
    assert line[c.MALFORMED] > 0


@pytest.mark.slow
def test_compiled_and_interpreted_steps_give_equal_output_to_the_bit() -> None:
    rng = np.random.default_rng(11)
    talk = Talk(speech("ast_en_far_8k")[: 8000 * 30])
    delays = np.where(rng.random(talk.count) < 0.2, rng.uniform(0, 0.12, talk.count), 0.0)
    delays[700:712] = 0.25 - 0.02 * np.arange(12)
    lost = set(np.flatnonzero(rng.random(talk.count) < 0.06).tolist())
    packets = [*talk.packets(delays, lost), (3.0, b"\x80\x61nonsense"), (4.0, b"x" * 30)]
    compiled = steps(True)
    assert compiled.compiled
    one, other = Line(PLAIN), Line(compiled)
    np.testing.assert_array_equal(one.run(packets, 1500), other.run(packets, 1500))
    for a, b in zip(one.r, other.r, strict=True):
        np.testing.assert_array_equal(a, b)
    assert HISTORY_MS == 60 and one[c.SQUEEZED] > 0
