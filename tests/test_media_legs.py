"""Phone legs beyond plain G.711: other codecs, keys, SRTP, RTCP, holds and longer packets, by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from engine.opus import OpusDecoder, OpusEncoder
from gateway.media import g711
from gateway.media.g722 import G722Decoder, G722Encoder
from gateway.media.messages import Direction, DtmfReceived, RtpMedia, SrtpKeys
from gateway.media.plane import MediaError
from sip.dtmf import DigitEnded, DtmfReceiver, event_packets
from sip.rtcp import Goodbye, ReceiverReport, ReportBlock, SenderReport, build_rtcp, middle_of, parse_rtcp
from sip.sdes import SrtpKeys as SdesKeys
from sip.srtp import SrtpContext
from tests.audio import align, steady_noise
from tests.phone import HEADER, Bench, Phone, speech


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


class CodedPhone(Phone):
    """Speaks through an encoder of its own; keeps what it hears as payloads."""

    def __init__(self, payloads: list[bytes], kind: int, advance: int) -> None:
        super().__init__(np.zeros(160, np.int16))
        self.payloads, self.kind, self.advance = payloads, kind, advance

    def packet(self, payload: bytes | None = None, payload_type: int | None = None) -> bytes:
        stamp = self.timestamp & 0xFFFF_FFFF
        head = HEADER.pack(0x80, self.kind, self.sequence & 0xFFFF, stamp, self.ssrc)
        self.sequence += 1
        self.timestamp += self.advance
        self.sent += 1
        return head + self.payloads[self.sent - 1]


def echo_of(heard: np.ndarray, said: np.ndarray, rate: int) -> float:
    part = slice(4 * rate, 7 * rate)
    return align(heard[part].astype(np.float64), said[part].astype(np.float64), rate // 2).correlation


def test_g722_goes_round_wide_band(bench: Bench) -> None:
    said = steady_noise(8.0, 16_000).astype(np.float32)
    encoder, decoder = G722Encoder(), G722Decoder()
    phone = CodedPhone([encoder.encode(said[i : i + 320]) for i in range(0, len(said), 320)], 9, 160)
    bench.call(0, phone, codec="G722", payload_type=9)
    bench.run(390)
    assert {len(payload) for *_, payload in phone.heard} == {160}
    assert (np.diff([t for _, _, t, _ in phone.heard]) % (1 << 32) == 160).all()
    heard = np.concatenate([decoder.decode(payload) for *_, payload in phone.heard])
    assert echo_of(heard, said, 16_000) > 0.95


def test_l16_goes_round_without_loss_of_a_bit_but_the_resamplers(bench: Bench) -> None:
    said = (steady_noise(8.0, 16_000) * 32_767).astype(np.int16)
    blocks = [said[i : i + 320].astype(">i2").tobytes() for i in range(0, len(said), 320)]
    phone = CodedPhone(blocks, 96, 320)
    bench.call(0, phone, codec="L16", payload_type=96, rate=16_000)
    bench.run(390)
    heard = np.concatenate([np.frombuffer(payload, ">i2") for *_, payload in phone.heard])
    assert echo_of(heard, said, 16_000) > 0.999


def test_opus_goes_round_on_a_phone_leg(bench: Bench) -> None:
    said = steady_noise(8.0, 24_000).astype(np.float32)
    encoder, decoder = OpusEncoder(bitrate=96_000), OpusDecoder()
    phone = CodedPhone([encoder.encode(said[i : i + 480]) for i in range(0, len(said), 480)], 111, 960)
    bench.call(0, phone, codec="opus", payload_type=111)
    bench.run(390)
    heard = np.concatenate([decoder.decode(payload) for *_, payload in phone.heard])
    assert echo_of(heard, said, 24_000) > 0.9


@pytest.mark.parametrize("ptime", [40, 60])
def test_longer_packets_are_sent_where_agreed(bench: Bench, ptime: int) -> None:
    phone = Phone((steady_noise(6.0) * 32_767).astype(np.int16))
    bench.call(0, phone, ptime_ms=ptime)
    bench.run(290)
    assert {len(payload) for *_, payload in phone.heard} == {8 * ptime}
    assert (np.diff([t for _, _, t, _ in phone.heard]) % (1 << 32) == 8 * ptime).all()


def press(bench: Bench, phone: Phone, digit: str, lost: frozenset[int] = frozenset()) -> None:
    """A key by RFC 4733 instead of audio, one packet a step."""
    began = phone.timestamp & 0xFFFF_FFFF
    for i, event in enumerate(event_packets(digit, 100)):
        head = HEADER.pack(0x80, 101 | event.marker << 7, phone.sequence & 0xFFFF, began, phone.ssrc)
        phone.sequence += 1
        phone.timestamp += 160
        phone.sent += 1
        if i not in lost:
            phone.sock.sendto(head + event.payload, phone.peer)
        bench.step(talk=False)


def test_keys_come_once_each_whatever_is_lost_and_are_not_heard(bench: Bench) -> None:
    phone = Phone(np.zeros(80_000, np.int16))
    bench.call(0, phone)
    bench.run(50)
    press(bench, phone, "7")
    bench.run(10)
    press(bench, phone, "#", lost=frozenset({4, 5, 6}))
    bench.run(20)
    press(bench, phone, "7", lost=frozenset({0, 4}))
    bench.run(20)
    keys = [(event.digit, event.duration_ms) for event in bench.events if isinstance(event, DtmfReceived)]
    assert [digit for digit, _ in keys] == ["7", "#", "7"]
    assert all(60 <= ms <= 100 for _, ms in keys)
    assert np.abs(bench.rows.heard[0]).max() < 0.01
    assert bench.plane.stats(0).lost == 5


def test_keys_are_sent_as_events_between_the_audio(bench: Bench) -> None:
    phone = Phone(speech())
    bench.call(0, phone)
    bench.run(30)
    bench.plane.send_dtmf(0, "1#", 100)
    bench.run(60)
    receiver, pressed = DtmfReceiver(), []
    for _, _, timestamp, payload in phone.heard:
        if len(payload) == 4:
            pressed += [e.digit for e in receiver.receive(timestamp, payload) if isinstance(e, DigitEnded)]
    assert pressed == ["1", "#"]
    numbers = [sequence for _, sequence, _, _ in phone.heard]
    assert (np.diff(numbers) % 65_536 == 1).all()
    with pytest.raises(MediaError, match="0-9"):
        bench.plane.send_dtmf(0, "x")


def test_keys_beside_opus_last_as_long_as_the_clock_of_their_events_says(bench: Bench) -> None:
    encoder = OpusEncoder()
    silence = [encoder.encode(np.zeros(480, np.float32)) for _ in range(100)]
    phone = CodedPhone(silence, 111, 960)
    bench.call(0, phone, codec="opus", payload_type=111, dtmf_rate=8_000)
    bench.run(20)
    press(bench, phone, "5")
    bench.run(20)
    assert [(e.digit, e.duration_ms) for e in bench.events if isinstance(e, DtmfReceived)] == [("5", 100)]
    bench.plane.send_dtmf(0, "5", 100)
    bench.run(40)
    events = [payload for _, _, _, payload in phone.heard if len(payload) == 4]
    assert int.from_bytes(events[-1][2:], "big") == 800


KEY = bytes(range(30))
OTHER = bytes(range(100, 130))


def test_an_encrypted_leg_goes_round_and_a_flipped_or_plain_packet_is_refused(bench: Bench) -> None:
    phone = Phone((steady_noise(8.0) * 32_767).astype(np.int16))
    phone.context = SrtpContext(SdesKeys("AES_CM_128_HMAC_SHA1_80", OTHER, KEY))
    bench.call(0, phone, srtp=SrtpKeys("AES_CM_128_HMAC_SHA1_80", KEY, OTHER), cname="us")
    bench.run(100)
    good = phone.packet()
    flipped = good[:20] + bytes([good[20] ^ 1]) + good[21:]
    plain = Phone(np.zeros(160, np.int16), ssrc=phone.ssrc).packet()
    for bad in (flipped, plain, b"\x80\x00"):
        phone.sock.sendto(bad, phone.peer)
    phone.sock.sendto(good, phone.peer)
    phone.sock.sendto(good, phone.peer)
    bench.step(talk=False)
    bench.run(288)
    stats = bench.plane.stats(0)
    assert stats.rejected == 4
    assert stats.lost == 0
    assert echo_of(phone.heard_pcm(), g711.decode(phone.codes, 0), 8_000) > 0.99


def test_a_phone_that_changes_its_key_in_a_long_call_still_reads_ours(bench: Bench) -> None:
    suite, new = "AES_CM_128_HMAC_SHA1_80", bytes(range(200, 230))
    phone = Phone((steady_noise(8.0) * 32_767).astype(np.int16))
    phone.context = SrtpContext(SdesKeys(suite, OTHER, KEY))
    bench.call(0, phone, srtp=SrtpKeys(suite, KEY, OTHER))
    bench.run(2)
    bench.plane._audio.transmitter._packets.sequence[0] = 65_510  # as after some minutes
    bench.step()
    phone.heard.clear()
    phone.context = SrtpContext(SdesKeys(suite, OTHER, KEY))  # it reads none of what was before
    bench.run(47)
    phone.context = SrtpContext(SdesKeys(suite, new, KEY), phone.context)
    bench.plane.change_rtp(0, bench.media(phone, srtp=SrtpKeys(suite, KEY, new)))
    bench.run(50)
    assert [sequence for _, sequence, _, _ in phone.heard][:2] == [65_511, 65_512]
    assert len(phone.heard) >= 96 and bench.plane.stats(0).rejected == 0
    assert bench.plane.stats(0).packets_received == 100


def test_a_key_set_nobody_knows_is_refused_at_once(bench: Bench) -> None:
    with pytest.raises(MediaError, match="SRTP"):
        bench.call(0, Phone(speech()), srtp=SrtpKeys("ROT13", KEY, OTHER))


def test_reports_tell_of_both_streams_and_the_round_trip(bench: Bench) -> None:
    phone = Phone(np.zeros(8000 * 12, np.int16))
    bench.call(0, phone, cname="agent")
    for i in range(400):
        bench.step(lost=i in (50, 60))
    assert len(phone.reports) == 2
    first = parse_rtcp(phone.reports[-1])[0]
    assert isinstance(first, SenderReport)
    assert first.reports[0].lost == 2
    assert first.reports[0].ssrc == phone.ssrc
    block = ReportBlock(77, 64, 9, 5, 0, middle_of(first.ntp), 0)
    phone.sock.sendto(build_rtcp([ReceiverReport(phone.ssrc, (block,))]), phone.peer)
    bench.run(2)
    assert bench.plane.stats(0).remote_loss == pytest.approx(0.25)
    bench.plane.close(0)
    bench.step(talk=False)
    assert any(isinstance(part, Goodbye) for part in parse_rtcp(phone.reports[-1]))


@pytest.mark.parametrize("ptime", [20, 60])
def test_on_hold_nothing_is_sent_time_goes_on_and_no_number_is_left_out(bench: Bench, ptime: int) -> None:
    phone = Phone(speech())
    bench.call(0, phone, ptime_ms=ptime)
    bench.run(50)
    bench.plane.change_rtp(0, bench.media(phone, direction=Direction.RECVONLY, ptime_ms=ptime))
    bench.run(100)
    assert len(phone.heard) <= 51
    bench.plane.change_rtp(0, bench.media(phone, ptime_ms=ptime))
    bench.run(50)
    stamps = [t for _, _, t, _ in phone.heard]
    gap = max(np.diff(stamps) % (1 << 32))
    assert gap == pytest.approx(100 * 160, abs=2 * 8 * ptime)
    numbers = [sequence for _, sequence, _, _ in phone.heard]
    assert set(np.diff(numbers) % (1 << 16)) == {1}, "a phone would count them as lost"


def test_a_codec_change_in_mid_call_goes_on_with_both_sides(bench: Bench) -> None:
    phone = Phone(np.tile(speech(), 2))
    bench.call(0, phone)
    bench.run(100)
    before = len(phone.heard)
    phone.law = 1
    phone.codes = g711.encode(np.tile(speech(), 2), 1)
    bench.plane.change_rtp(0, bench.media(phone))
    bench.run(200)
    later = [payload for *_, payload in phone.heard[before + 30 :]]
    pcm = g711.decode(np.frombuffer(b"".join(later), np.uint8), 1)
    assert 300 < np.abs(pcm.astype(np.int32)).mean() < 6_000
    assert np.abs(pcm.astype(np.int32)).max() < 32_000


@pytest.mark.parametrize(
    "wrong",
    [{"codec": "GSM"}, {"payload_type": 200}, {"codec": "L16", "rate": 44_100}, {"dtmf_payload_type": 128}],
)
def test_media_we_do_not_carry_is_refused_in_words(bench: Bench, wrong: dict[str, object]) -> None:
    with pytest.raises(MediaError):
        bench.call(0, Phone(speech()), **wrong)
    assert isinstance(bench.media(Phone(speech())), RtpMedia)
