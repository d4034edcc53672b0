"""One Opus stream's headers, counts and reports, stepped by hand."""

import struct
from itertools import pairwise

import pytest
from aiortc.rtp import RtcpByePacket, RtcpPacket, RtcpRrPacket, RtcpSdesPacket, RtcpSrPacket
from aiortc.rtp import RtpPacket as TheirPacket
from hypothesis import given
from hypothesis import strategies as st

from gateway.legs.rtp_stream import BadRtp, Reception, RtpStream, ntp, parse_rtp
from gateway.media.messages import OpusPacket

WALL = 1_700_000_000.0


def opus(n: int, payload: bytes = b"voice", marker: bool = False) -> OpusPacket:
    return OpusPacket(payload, 960 * n, marker)


def rtp(sequence: int, timestamp: int = 0, ssrc: int = 7, payload_type: int = 111) -> bytes:
    return (
        bytes(struct.pack("!BBHII", 0x80, payload_type, sequence & 0xFFFF, timestamp & 0xFFFFFFFF, ssrc))
        + b"x"
    )


def test_sent_packets_are_what_another_implementation_reads() -> None:
    stream = RtpStream(0xCAFE, 111, "us")
    read = [TheirPacket.parse(stream.wrap(opus(n, marker=n == 0), WALL)) for n in range(3)]
    assert [p.payload for p in read] == [b"voice"] * 3
    assert {(p.ssrc, p.payload_type) for p in read} == {(0xCAFE, 111)}
    assert [p.marker for p in read] == [1, 0, 0]
    assert [(p.sequence_number - read[0].sequence_number) & 0xFFFF for p in read] == [0, 1, 2]
    assert [(p.timestamp - read[0].timestamp) & 0xFFFFFFFF for p in read] == [0, 960, 1920]


def test_a_pause_moves_the_timestamp_and_not_the_sequence() -> None:
    stream = RtpStream(1, 111, "us")
    before, after = (TheirPacket.parse(stream.wrap(opus(n), WALL)) for n in (0, 50))
    assert after.sequence_number - before.sequence_number == 1
    assert (after.timestamp - before.timestamp) & 0xFFFFFFFF == 48_000


def test_a_header_with_csrc_extension_and_padding_is_skipped() -> None:
    header = struct.pack("!BBHII", 0x80 | 0x20 | 0x10 | 2, 0x80 | 111, 5, 960, 7)
    packet = parse_rtp(header + bytes(8) + b"\xbe\xde\x00\x01abcd" + b"payload" + b"\x00\x00\x03")
    assert (packet.payload, packet.marker, packet.sequence, packet.timestamp) == (b"payload", True, 5, 960)


def test_a_packet_cut_anywhere_is_read_or_refused() -> None:
    whole = (
        struct.pack("!BBHII", 0x80 | 0x20 | 0x10 | 2, 111, 5, 960, 7)
        + bytes(8)
        + b"\xbe\xde\x00\x01abcdpay\x01"
    )
    for end in range(len(whole)):
        try:
            parse_rtp(whole[:end])
        except BadRtp:
            continue


@given(st.binary(max_size=80))
def test_garbage_is_counted_and_ends_nothing(data: bytes) -> None:
    stream = RtpStream(1, 111, "us")
    stream.receive(data, 0.0)
    stream.receive(b"\x80" + data, 0.0)
    stream.receive_rtcp(data, 0.0, WALL)
    stream.receive_rtcp(b"\x81\xc9" + data, 0.0, WALL)


def test_another_payload_type_is_counted_and_not_delivered() -> None:
    stream = RtpStream(1, 111, "us")
    assert stream.receive(rtp(1, payload_type=63), 0.0) is None
    assert stream.unknown_payload == 1 and stream.last_received_at is None


def test_reports_count_loss_since_the_last_one_and_in_all() -> None:
    reception = Reception(7, 65_530)
    for sequence in range(65_530, 65_640):
        if sequence % 10:
            reception.add(sequence & 0xFFFF, sequence * 960, sequence * 0.02)
    first, second = reception.info(10.0), reception.info(11.0)
    assert first.packets_lost == 11
    assert first.fraction_lost == 11 * 256 // 110
    assert first.highest_sequence == 65_639
    assert second.fraction_lost == 0 and second.packets_lost == 11


def test_a_duplicate_or_late_packet_makes_no_loss_negative_in_the_fraction() -> None:
    reception = Reception(7, 0)
    for sequence in (0, 1, 1, 1, 0):
        reception.add(sequence, sequence * 960, 0.0)
    info = reception.info(1.0)
    assert info.fraction_lost == 0 and info.packets_lost == -3
    assert bytes(info)


def test_jitter_is_that_of_the_arrivals_and_survives_the_timestamps_wrap() -> None:
    reception = Reception(7, 0)
    start = (1 << 32) - 10 * 960
    for n in range(2_000):
        late = 0.010 if n % 2 else 0.0
        reception.add(n & 0xFFFF, (start + 960 * n) & 0xFFFFFFFF, n * 0.02 + late)
    assert reception.info(0.0).jitter == pytest.approx(480, abs=5)


def test_a_report_holds_sender_info_reception_and_name() -> None:
    stream = RtpStream(1, 111, "us@here")
    assert stream.report(0.0, WALL) is None, "nothing to report yet"
    stream.receive(rtp(1), 0.0)
    first = RtcpPacket.parse(stream.report(0.0, WALL) or b"")
    assert isinstance(first[0], RtcpRrPacket) and first[0].reports[0].ssrc == 7
    packet = TheirPacket.parse(stream.wrap(opus(0), WALL))
    second = RtcpPacket.parse(stream.report(2.0, WALL + 1.0) or b"")
    assert isinstance(second[0], RtcpSrPacket) and isinstance(second[1], RtcpSdesPacket)
    assert second[0].sender_info.packet_count == 1 and second[0].sender_info.octet_count == 5
    assert (second[0].sender_info.rtp_timestamp - packet.timestamp) & 0xFFFFFFFF == 48_000
    assert second[1].chunks[0].items == [(1, b"us@here")]


def test_reports_come_about_once_a_second_and_never_in_step() -> None:
    stream = RtpStream(1, 111, "us")
    stream.receive(rtp(1), 0.0)
    sent = [n / 100 for n in range(3_000) if stream.report(n / 100, WALL + n / 100)]
    gaps = [b - a for a, b in pairwise(sent)]
    assert min(gaps) >= 0.49 and max(gaps) <= 1.52 and len(set(gaps)) > 5


def test_the_round_trip_is_read_from_the_peers_report() -> None:
    us, peer = RtpStream(1, 111, "us"), RtpStream(7, 111, "peer")
    us.wrap(opus(0), WALL)
    peer.receive(us.wrap(opus(1), WALL), 100.0)
    # 30 ms there, held 0.5 s, 30 ms back.
    peer.receive_rtcp(us.report(0.0, WALL) or b"", 100.03, 0.0)
    us.receive_rtcp(peer.report(100.53, WALL + 0.53) or b"", 0.56, WALL + 0.56)
    assert us.round_trip_s == pytest.approx(0.060, abs=0.001)


def test_the_peers_loss_is_read_from_its_report() -> None:
    us, peer = RtpStream(1, 111, "us"), RtpStream(7, 111, "peer")
    for n in range(40):
        packet = us.wrap(opus(n), WALL)
        if n % 4 != 1:
            peer.receive(packet, n * 0.02)
    us.receive_rtcp(peer.report(1.0, WALL) or b"", 1.0, WALL)
    assert us.remote_loss == pytest.approx(0.25, abs=0.01)


def test_a_goodbye_is_understood() -> None:
    us, peer = RtpStream(1, 111, "us"), RtpStream(7, 111, "peer")
    assert any(isinstance(p, RtcpByePacket) for p in RtcpPacket.parse(us.goodbye()))
    assert peer.receive_rtcp(us.goodbye(), 0.0, WALL)
    assert not peer.receive_rtcp(us.report(0.0, WALL) or b"", 0.0, WALL)


def test_ntp_time_is_counted_from_1900() -> None:
    assert ntp(0.5) == (2_208_988_800 << 32) | (1 << 31)
