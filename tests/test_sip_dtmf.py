"""Digits in RTP: each once, whatever the network does to its packets."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sip.dtmf import (
    DIGITS,
    DigitEnded,
    DigitStarted,
    DtmfReceiver,
    TelephoneEvent,
    event_packets,
    parse_event,
)
from sip.rtp import MalformedRtp

Packets = list[tuple[int, bytes, bool]]


def typed(text: str, duration_ms: int = 100, gap: int = 1_600) -> Packets:
    """(timestamp, payload, marker) of a number typed on a phone."""
    packets: Packets = []
    timestamp = 4_294_960_000
    for digit in text:
        for packet in event_packets(digit, duration_ms):
            packets.append((timestamp % 2**32, packet.payload, packet.marker))
        timestamp += duration_ms * 8 + gap
    return packets


def heard(packets: Packets) -> tuple[str, list[int]]:
    receiver = DtmfReceiver()
    told = [event for packet in packets for event in receiver.receive(*packet)] + receiver.flush()
    started = [event for event in told if isinstance(event, DigitStarted)]
    ended = [event for event in told if isinstance(event, DigitEnded)]
    assert [event.digit for event in started] == [event.digit for event in ended]
    return "".join(event.digit for event in started), [event.duration for event in ended]


def test_every_digit_is_heard_with_its_length() -> None:
    assert heard(typed(DIGITS)) == (DIGITS, [800] * len(DIGITS))
    assert heard(typed("5555"))[0] == "5555"


@pytest.mark.parametrize("seed", range(20))
def test_each_digit_once_under_five_percent_loss(seed: int) -> None:
    rng = random.Random(seed)
    number = "".join(rng.choice(DIGITS[:16]) for _ in range(200))
    assert heard([packet for packet in typed(number) if rng.random() > 0.05])[0] == number


@pytest.mark.parametrize("seed", range(10))
def test_reordered_and_doubled_packets_make_no_second_digit(seed: int) -> None:
    rng = random.Random(seed)
    number = "".join(rng.choice(DIGITS[:12]) for _ in range(100))
    packets = [packet for packet in typed(number) for _ in range(rng.choice((1, 1, 2)))]
    shaken = sorted(enumerate(packets), key=lambda item: item[0] + rng.uniform(0, 2.5))
    assert heard([packet for _, packet in shaken])[0] == number


def test_a_digit_whose_every_end_was_lost_ends_with_the_next() -> None:
    packets = [packet for packet in typed("12") if not parse_event(packet[1]).end]  # type: ignore[union-attr]
    assert heard(packets) == ("12", [640, 640])


def test_a_key_held_for_longer_than_16_bits_is_one_digit() -> None:
    first = [(1_000, TelephoneEvent("7", False, 10, d).to_bytes(), d == 160) for d in range(160, 65_536, 160)]
    again = 1_000 + 0xFFFF
    second = [
        (again, TelephoneEvent("7", e, 10, d).to_bytes(), False) for d, e in ((160, False), (320, True))
    ]
    assert heard(first + second) == ("7", [0xFFFF + 320])


def test_a_tone_that_is_no_digit_is_passed_by() -> None:
    assert DtmfReceiver().receive(1, b"\x20\x0a\x00\xa0") == []
    with pytest.raises(MalformedRtp):
        DtmfReceiver().receive(1, b"\x01\x0a\x00")


@given(st.binary(max_size=8), st.integers(0, 2**32 - 1), st.booleans())
def test_no_payload_breaks_the_receiver(payload: bytes, timestamp: int, marker: bool) -> None:
    receiver = DtmfReceiver()
    try:
        receiver.receive(timestamp, payload, marker)
    except MalformedRtp:
        assert len(payload) < 4


def test_a_digit_is_sent_with_its_marker_first_and_its_end_three_times() -> None:
    packets = event_packets("#", 100)
    events = [parse_event(packet.payload) for packet in packets]
    assert [packet.marker for packet in packets] == [True] + [False] * 6
    assert [event.duration for event in events if event] == [160, 320, 480, 640, 800, 800, 800]
    assert [event.end for event in events if event] == [False] * 4 + [True] * 3
    for digit, duration in (("x", 100), ("12", 100), ("", 100), ("1", 9_000)):
        with pytest.raises(ValueError):
            event_packets(digit, duration)
