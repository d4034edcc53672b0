"""Ogg pages: what Kyutai's servers expect byte for byte, and whatever a peer may send."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.ogg import OPUS_HEAD, OPUS_TAGS, OggReader, OggWriter, page_crc
from engine.opus import OpusEncoder, OpusError


def packets(count: int, ms: int = 40) -> list[bytes]:
    encoder, noise = OpusEncoder(), np.random.default_rng(5)
    size = 24 * ms
    return [encoder.encode(noise.standard_normal(size).astype(np.float32) * 0.1) for _ in range(count)]


def page(body: bytes, lacing: bytes, flags: int = 0, serial: int = 7, sequence: int = 0) -> bytes:
    head = (
        struct.pack("<4sBBqIII", b"OggS", 0, flags, -1, serial, sequence, 0) + bytes([len(lacing)]) + lacing
    )
    whole = head + body
    return whole[:22] + page_crc(whole).to_bytes(4, "little") + whole[26:]


def slow_crc(data: bytes) -> int:
    """RFC 3533's CRC, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1) ^ (0x04C11DB7 if crc & 0x80000000 else 0)
        crc &= 0xFFFFFFFF
    return crc


@given(st.binary(max_size=300))
def test_the_crc_is_that_of_the_rfc(data: bytes) -> None:
    assert page_crc(data) == slow_crc(data)


def test_the_headers_are_kyutais_byte_for_byte() -> None:
    first = packets(1)[0]
    stream = OggWriter().write(first)
    assert OPUS_HEAD.hex() == "4f707573486561640101000f80bb0000000000"
    assert (
        stream[:28]
        == b"OggS\0\2" + bytes(8) + (42).to_bytes(4, "little") + bytes(4) + stream[22:26] + b"\1\x13"
    )
    assert stream[28:47] == OPUS_HEAD
    tags = stream[47:]
    assert tags[:6] == b"OggS\0\0" and tags[18:22] == (1).to_bytes(4, "little")
    assert tags[28 : 28 + len(OPUS_TAGS)] == OPUS_TAGS == b"OpusTags\x0b\0\0\0KyutaiMoshi\0\0\0\0"
    audio = tags[28 + len(OPUS_TAGS) :]
    assert audio[5] == 0 and audio[6:14] == (1920).to_bytes(8, "little") and audio.endswith(first)


def test_packets_come_back_whatever_the_splits() -> None:
    sent = packets(12)
    writer = OggWriter()
    stream = b"".join(writer.write(packet) for packet in sent)
    assert stream.count(b"OpusHead") == 1
    for seed in range(20):
        cuts, reader, got, at = random.Random(seed), OggReader(), [], 0
        while at < len(stream):
            size = cuts.choice((1, 2, 27, 100, 700))
            got += reader.receive(stream[at : at + size])
            at += size
        assert got == sent and reader.bad_pages == 0


def test_several_packets_a_page_missing_and_repeated_headers_are_read() -> None:
    a, b, c = packets(3)
    lacing = b"".join(b"\xff" * (len(p) // 255) + bytes([len(p) % 255]) for p in (a, b, c))
    headers = page(OPUS_HEAD, bytes([19]), flags=2) + page(OPUS_TAGS, bytes([len(OPUS_TAGS)]))
    reader = OggReader()
    body = page(a + b + c, lacing)
    assert reader.receive(body + headers + body + headers) == [a, b, c, a, b, c]
    assert reader.bad_pages == 0


def test_a_packet_may_go_on_in_the_next_page_and_an_orphan_is_dropped() -> None:
    packet = bytes(range(1, 256)) * 3
    first, rest = page(packet[:510], b"\xff\xff"), page(packet[510:], b"\xff\0", flags=1)
    assert OggReader().receive(first + rest) == [packet]
    whole = packets(1)[0]
    reader = OggReader()
    assert reader.receive(rest + page(whole, bytes([len(whole)]))) == [whole]


def test_a_damaged_page_costs_itself_alone() -> None:
    sent = packets(6)
    writer = OggWriter()
    pages = [writer.write(packet) for packet in sent]
    broken = bytearray(pages[3])
    broken[40] ^= 1
    reader = OggReader()
    got = reader.receive(b"".join([*pages[:3], bytes(broken), *pages[4:]]))
    assert got == sent[:3] + sent[4:] and reader.bad_pages >= 1


def test_a_stream_cut_at_any_byte_resumes_at_the_next_page() -> None:
    sent = packets(3)
    writer = OggWriter()
    pages = [writer.write(packet) for packet in sent]
    for cut in range(1, len(pages[1])):
        reader = OggReader()
        got = reader.receive(pages[0] + pages[1][:cut] + pages[2] + OggWriter().write(sent[0]))
        assert got[0] == sent[0] and got[-2:] == [sent[2], sent[0]], cut


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(st.binary(max_size=80), st.just(b"OggS"), st.just(b"OggS\0\0" + b"\xff" * 40)), max_size=20
    )
)
def test_garbage_never_raises_and_memory_stays_bounded(pieces: list[bytes]) -> None:
    reader = OggReader()
    for piece in pieces * 5:
        reader.receive(piece)
    assert len(reader._bytes) <= 65_307


def test_a_megabyte_of_false_beginnings_is_given_up_at_once() -> None:
    reader = OggReader()
    assert reader.receive((b"OggS\0\0" + bytes(20) + b"\1\0") * 40_000) == []
    assert len(reader._bytes) < 65_307
    whole = packets(1)[0]
    assert reader.receive(page(whole, bytes([len(whole)]))) == [whole]


def test_what_is_no_opus_packet_is_not_written() -> None:
    with pytest.raises(OpusError):
        OggWriter().write(b"")
