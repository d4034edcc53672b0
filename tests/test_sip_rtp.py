"""RTP, RTCP, their statistics, and the score they make."""

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.arrival import StreamReception, round_trip_s
from sip.quality import delay_impairment, mos, r_factor
from sip.rtcp import (
    Goodbye,
    OtherRtcp,
    ReceiverReport,
    ReportBlock,
    RtcpPacket,
    SenderReport,
    SourceDescription,
    build_rtcp,
    middle_of,
    ntp_of,
    parse_rtcp,
)
from sip.rtp import MalformedRtp, RtpPacket, SequenceUnwrapper, is_rtcp, parse_rtp

FULL = RtpPacket(96, 65535, 2**32 - 1, 0xDEADBEEF, b"payload", True, (1, 2, 3), (0xBEDE, b"\x10\xaa\0\0"), 4)
words = st.integers(0, 2**32 - 1)


@given(
    st.builds(
        RtpPacket,
        st.integers(0, 127),
        st.integers(0, 65535),
        words,
        words,
        st.binary(max_size=40),
        st.booleans(),
        st.lists(words, max_size=15).map(tuple),
        st.none() | st.tuples(st.integers(0, 65535), st.binary(max_size=5).map(lambda b: b * 4)),
        st.integers(0, 255),
    )
)
def test_an_rtp_packet_survives_the_wire(packet: RtpPacket) -> None:
    assert parse_rtp(packet.to_bytes()) == packet


def test_rtp_bytes_are_as_the_rfc_draws_them() -> None:
    data = RtpPacket(0, 1, 160, 0x01020304, b"\xff", marker=True).to_bytes()
    assert data == b"\x80\x80\x00\x01\x00\x00\x00\xa0\x01\x02\x03\x04\xff"


@pytest.mark.parametrize("end", range(len(FULL.to_bytes())))
def test_truncated_rtp_is_malformed_or_shorter(end: int) -> None:
    try:
        packet = parse_rtp(FULL.to_bytes()[:end])
    except MalformedRtp:
        return
    assert packet.csrc == FULL.csrc and len(packet.payload) < len(FULL.payload) + FULL.padding


@given(st.binary(max_size=80))
def test_garbage_breaks_neither_parser(data: bytes) -> None:
    for parse in (parse_rtp, parse_rtcp):
        try:
            parse(data)
        except MalformedRtp:
            continue


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80" * 11,
        b"\x00" * 12,
        b"\xa0" + b"\0" * 11 + b"\x05",
        b"\xa0" + b"\0" * 12,
        b"\x8f" + b"\0" * 11,
    ],
)
def test_a_bad_rtp_header_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedRtp):
        parse_rtp(data)


def test_sequence_numbers_go_on_over_the_wrap_in_both_directions() -> None:
    unwrapper = SequenceUnwrapper()
    assert [unwrapper.unwrap(value) for value in (65534, 65535, 0, 65533, 1)] == [
        65534, 65535, 65536, 65533, 65537
    ]  # fmt: skip


BLOCK = ReportBlock(7, 12, -3, 70000, 55, 0x11223344, 0x10000)
COMPOUND: list[RtcpPacket] = [
    SenderReport(
        1, ntp_of(1_700_000_000.25), 99, 1000, 160_000, (BLOCK, ReportBlock(8, 255, 0x7FFFFF, 0, 0))
    ),
    SourceDescription(1, "a-name"),
    OtherRtcp(205, 3, b"\0" * 8),
    Goodbye((1, 2), "bye"),
]


def test_a_compound_packet_survives_the_wire() -> None:
    data = build_rtcp(COMPOUND)
    assert len(data) % 4 == 0 and parse_rtcp(data) == COMPOUND and is_rtcp(data)
    report: list[RtcpPacket] = [ReceiverReport(5, (BLOCK,)), Goodbye((5,))]
    assert parse_rtcp(build_rtcp(report)) == report
    assert not is_rtcp(FULL.to_bytes())


@pytest.mark.parametrize("end", range(len(build_rtcp(COMPOUND))))
def test_truncated_rtcp_is_malformed_or_whole_packets(end: int) -> None:
    try:
        packets = parse_rtcp(build_rtcp(COMPOUND)[:end])
    except MalformedRtp:
        return
    assert packets == COMPOUND[: len(packets)] and len(packets) < len(COMPOUND)


def test_a_compound_packet_begins_with_a_report() -> None:
    with pytest.raises(ValueError):
        build_rtcp([Goodbye((1,))])
    with pytest.raises(MalformedRtp):
        parse_rtcp(struct.pack("!BBHI", 0x81, 203, 1, 1))


def test_padding_of_the_last_rtcp_packet_is_removed() -> None:
    data = build_rtcp([ReceiverReport(5)]) + struct.pack("!BBHI4s", 0xA1, 203, 2, 9, b"\0\0\0\x04")
    assert parse_rtcp(data) == [ReceiverReport(5), Goodbye((9,))]


def stream(lose: set[int] = frozenset(), jitter_ms: float = 0.0, first: int = 65_500) -> StreamReception:  # type: ignore[assignment]
    """100 packets of 20 ms, some lost, arrival shaken by up to jitter_ms each way."""
    rng = random.Random(3)
    reception = StreamReception(7, 8_000)
    for index in range(100):
        if index not in lose:
            arrival = 5 + index * 0.02 + rng.uniform(-jitter_ms, jitter_ms) / 1_000
            reception.take((first + index) % 65_536, (2**32 - 800 + index * 160) % 2**32, arrival)
    return reception


def test_loss_is_counted_over_the_sequence_wrap() -> None:
    reception = stream(lose={10, 11, 50, 80})
    assert (reception.expected, reception.lost, reception.jitter) == (100, 4, pytest.approx(0, abs=1e-3))
    block = reception.report(1.0)
    assert (block.fraction_lost, block.lost, block.highest_sequence) == (4 * 256 // 100, 4, 65_599)
    assert reception.report(2.0).fraction_lost == 0


def test_duplicates_make_the_loss_negative_and_the_fraction_nothing() -> None:
    reception = stream()
    for _ in range(3):
        reception.take(63, 0, 9.0)
    assert reception.lost == -3 and reception.report(1.0).fraction_lost == 0


def test_jitter_converges_to_the_mean_deviation() -> None:
    reception = StreamReception(7, 8_000)
    rng = random.Random(1)
    for index in range(5_000):
        reception.take(index % 65_536, index * 160, index * 0.02 + rng.uniform(0, 0.012))
    # |difference of two uniform(0, 12 ms)| has a mean of 4 ms
    assert reception.jitter_s == pytest.approx(0.004, rel=0.25)


def test_a_stream_that_starts_over_is_counted_anew() -> None:
    reception = stream()
    reception.take(30_000, 5, 50.0)
    assert (reception.expected, reception.lost) == (1, 0)


def test_the_round_trip_comes_out_of_our_own_report() -> None:
    sent_at, back_after, held = 1_700_000_000.0, 0.180, 0.05
    theirs = StreamReception(1, 8_000)
    theirs.take(1, 0, 0.0)
    theirs.take_sender_report(SenderReport(1, ntp_of(sent_at), 0, 0, 0), sent_at + 0.09)
    block = theirs.report(sent_at + 0.09 + held)
    assert round_trip_s(block, sent_at + back_after + held) == pytest.approx(0.180, abs=1e-4)
    assert round_trip_s(ReportBlock(1, 0, 0, 0, 0), sent_at) is None
    assert round_trip_s(ReportBlock(1, 0, 0, 0, 0, middle_of(ntp_of(sent_at)), 99_999_999), sent_at) is None


@pytest.mark.parametrize(
    ("delay", "loss", "low", "high"),
    [(0, 0, 4.40, 4.42), (100, 0, 4.40, 4.42), (400, 0, 3.3, 3.8), (50, 0.01, 4.2, 4.4), (50, 0.1, 3.2, 3.5),
     (500, 0.3, 1.0, 1.8)],
)  # fmt: skip
def test_the_score_falls_with_delay_and_loss(delay: float, loss: float, low: float, high: float) -> None:
    assert low <= mos(r_factor(delay, loss)) <= high


def test_the_e_model_has_the_values_of_its_recommendation() -> None:
    assert mos(93.2) == pytest.approx(4.41, abs=0.005)  # G.107: the default rating
    assert (mos(-1), mos(100), mos(60)) == (1.0, 4.5, pytest.approx(3.1, abs=0.01))  # Annex B
    assert delay_impairment(100) == 0 and delay_impairment(1_000) > delay_impairment(300) > 10
    assert r_factor(0, 1.0) < 20 and r_factor(0, 0.05, burst_ratio=4) < r_factor(0, 0.05)
